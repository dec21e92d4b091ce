"""Weights that torch.save wrote into a model directory, read without running what they hold."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import modeling_utils

from tuninglab.models.formats.reading import read_weights


@contextmanager
def read_inert() -> Iterator[None]:
    """Let transformers read pytorch_model.bin and its shards through the reader of checkpoints.

    torch's own refuses code too, but some files changed its functions, and others took gigabytes.

    Raises:
        UserError: a file is damaged, or asks for code to run.
    """
    library: Any = modeling_utils
    loading = library.load_state_dict

    def reading(file: str | os.PathLike[str], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if os.fspath(file).endswith(".safetensors"):
            return loading(file, *args, **kwargs)
        content = read_weights(Path(file))
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}

    # transformers 5.23 has no switch for it.
    library.load_state_dict = reading
    try:
        yield
    finally:
        library.load_state_dict = loading
