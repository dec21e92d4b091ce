"""A picture that is damaged after the check: the run stops, or keeps the step without that row."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tuninglab.data.reading import splits as splits_module
from tuninglab.errors import UserError
from tuninglab.recipes.flamingo import finetune


@pytest.fixture
def damaged(own, monkeypatch):
    """The settings of a run, one of whose pictures is cut off once it was checked."""
    open_part = splits_module.open_part

    def check_and_cut(*words):
        samples = open_part(*words)
        picture = Path(own.data).parent / "0.png"
        picture.write_bytes(picture.read_bytes()[:40])
        return samples

    monkeypatch.setattr(splits_module, "open_part", check_and_cut)
    return replace(own, max_steps=None, epochs=2, batch_size=3)


def test_it_stops_the_run_by_name(damaged):
    with pytest.raises(UserError, match=r"line 1: picture .*0\.png' is not a picture"):
        finetune(damaged)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("flags", [{}, {"pack_tokens": 60, "batch_size": 1}], ids=["rows", "bins"])
def test_or_its_row_is_left_out_and_counted(damaged, flags, workers, capfd):
    report = finetune(replace(damaged, on_bad_picture="skip", workers=workers, **flags))
    train, records = report["train"], report["data"]["train"]
    assert train["left_out"] == 2
    # Two epochs without that record.
    assert train["samples"] == 2 * (records - 1)
    said = capfd.readouterr().err
    assert said.count("left out in this step: ") == 2 and "2 rows taught nothing" in said
    metrics = Path(damaged.output_dir) / damaged.run_name / "metrics.jsonl"
    losses = [json.loads(line).get("loss", 1.0) for line in metrics.read_text().splitlines()]
    assert all(0 < loss < 100 for loss in losses)
