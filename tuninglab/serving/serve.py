"""The verb `serve`: a page and an API on a port of this machine."""

from tuninglab.config import ServeConfig


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    raise NotImplementedError
