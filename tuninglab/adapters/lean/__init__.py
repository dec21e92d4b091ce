"""Memory savers for training: each keeps less for the backward pass, and can be had alone."""

from tuninglab.adapters.lean.checkpointing import checkpoint_blocks
from tuninglab.adapters.lean.pieces import make_lean

__all__ = ["checkpoint_blocks", "make_lean"]
