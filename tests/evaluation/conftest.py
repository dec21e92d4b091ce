"""The tiny random Flamingos of tests/models."""

from tests.models.conftest import make_batch, make_flamingo

__all__ = ["make_batch", "make_flamingo"]
