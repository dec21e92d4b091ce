"""The settings of a short run on the tiny Flamingo and its data."""

import pytest

from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig


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
