"""The settings of a short run on the tiny Flamingo and its data, and one run made in two ways."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.recipes.flamingo import finetune


@pytest.fixture
def config(tiny_bases, tiny_data, tmp_path) -> FinetuneConfig:
    return FinetuneConfig(
        model=str(tiny_bases["plain"]),
        data=str(tiny_data),
        output_dir=str(tmp_path),
        run_name="a",
        precision="fp32",
        max_steps=3,
        batch_size=4,
        learning_rate=3e-3,
        # Nobody trained this base: it is worse than guessing, and its rows would train too.
        tuning_config=TuningConfig(train_answer_tokens="false"),
    )


@pytest.fixture
def stopped_and_whole():
    """A function: trains without a stop, and with one; both come to the same adapter, bit by bit.

    Returns the report of the first and the tensors.
    """

    def train_twice(config: FinetuneConfig) -> tuple[dict, dict[str, torch.Tensor]]:
        report = finetune(replace(config, run_name="whole"))
        finetune(replace(config, max_steps=1))
        go_on = FinetuneConfig(run_name="a", output_dir=config.output_dir, resume=True, max_steps=3)
        finetune(go_on)
        folder = Path(config.output_dir)
        files = [folder / n / "adapter" / "adapter_model.safetensors" for n in ("a", "whole")]
        resumed, whole = map(load_file, files)
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
        return report, resumed

    return train_twice


@pytest.fixture
def own(config, tiny_data, tiny_bases, tmp_path) -> FinetuneConfig:
    """The settings, with data and base that may be changed."""
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    shutil.copytree(tiny_bases["plain"], tmp_path / "base")
    data, model = str(tmp_path / "data" / tiny_data.name), str(tmp_path / "base")
    return replace(config, data=data, model=model, max_steps=2)
