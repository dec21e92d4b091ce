"""The run folder: its files, whose they are, and what a resumed run takes over from them."""

from tuninglab.run_folder.environment import git_commit, read_starts, versions
from tuninglab.run_folder.folder import RunFolder
from tuninglab.run_folder.going_on import elsewhere, has_checkpoint, how_to_end

__all__ = [
    "RunFolder",
    "elsewhere",
    "git_commit",
    "has_checkpoint",
    "how_to_end",
    "read_starts",
    "versions",
]
