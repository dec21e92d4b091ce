"""A run tells its trackers what metrics.jsonl holds, and what was answered."""

import json
from dataclasses import replace

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tests.training.test_trackers import Fake
from tuninglab.errors import UserError
from tuninglab.recipes.flamingo import finetune
from tuninglab.training import trackers


def test_a_tracker_gets_the_lines_of_the_file_and_the_answers(config, monkeypatch, tmp_path):
    kind = type("Made", (Fake,), {"given": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", kind)
    shown = []
    monkeypatch.setattr(trackers, "show", lambda *given: shown.append(given[1:]))
    finetune(replace(config, track=["fake"], val_split=0.25, score_questions=2, max_steps=2))
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    told = [(step, values) for step, values in kind.given[2:-1]]
    assert told == [(line.pop("step"), line) for line in lines]
    assert [step for step, _ in told] == [0, 1, 2, 2]
    cards = json.loads((tmp_path / "a/answers.json").read_text())
    assert shown == [(tmp_path / "a", cards, 2)] and len(cards) == 2


def test_an_unknown_tracker_is_told_before_anything_is_made(config, tmp_path):
    with pytest.raises(UserError, match="Did you mean tensorboard"):
        finetune(replace(config, track=["tensorbord"]))
    assert not (tmp_path / "a").exists()
