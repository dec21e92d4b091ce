"""Tests of passes over rows run with the C kernels and without."""

import pytest

from tuninglab.adapters.native import library


@pytest.fixture(params=["native", "torch"])
def kernels(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(library, "library", lambda: None)
    elif library.library() is None:
        pytest.skip("no C compiler here")
    return request.param
