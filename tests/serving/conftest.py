"""What all tests of this folder share."""

import pytest

from tuninglab.adapters import products


@pytest.fixture(autouse=True)
def nothing_large_enough_to_try(monkeypatch):
    """Which products are faster depends on what else the machine does; texts shall not."""
    monkeypatch.setattr(products, "SMALL", 2**30)
