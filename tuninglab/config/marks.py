"""What a field of settings says of itself beside its type."""

from enum import Enum, auto


class Mark(Enum):
    """What a field says of itself beside its type: `Annotated[int, Mark.CHANGEABLE]`."""

    # Names a file or folder; hub ids stay as they are.
    PATH = auto()
    # How one call behaves, not what the run is: it does not belong into a run's config.yaml.
    CALL = auto()
    # May differ when a run goes on: nothing that was computed so far depends on it.
    CHANGEABLE = auto()
    # Left open by its default; what a run's start decides is kept for its resume.
    DECIDED = auto()
    # Its flag may stand without a value, which is then `auto`.
    BARE = auto()
