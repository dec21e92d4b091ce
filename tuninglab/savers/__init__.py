"""Memory savers for training: each keeps less for the backward pass, and can be had alone."""

from tuninglab.savers.checkpointing import checkpoint_blocks
from tuninglab.savers.choice import add_savers

__all__ = ["add_savers", "checkpoint_blocks"]
