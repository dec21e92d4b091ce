"""Killed at any moment and started again, a run ends as if nobody had: `--resume auto`.

`KILLS=20 python -m pytest tests/training/test_kills.py` kills each kind of run so often.
"""

import json
import os
import random

import pytest

from tests.killed_runs import KINDS, Killed, make_world, moments_of
from tests.killing import draw, start
from tuninglab.config import EvaluateConfig
from tuninglab.recipes.evaluate import evaluate
from tuninglab.run_folder.ownership import LEFT_OVER

KILLS = int(os.environ.get("KILLS", "3"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_killed_and_started_again_a_run_ends_as_one_that_was_not(name, world, tmp_path):
    moments = moments_of(list(KINDS).index(name), KILLS)
    runs = Killed(KINDS[name], world, tmp_path / "runs")
    survived = list(runs.kill(moments, random.Random(name)))
    assert [moment for run in survived for moment in run] == moments


def test_a_killed_evaluation_goes_on_and_says_the_same(world, tmp_path):
    def work(name):
        place = {"model": str(world / "flamingo"), "output_dir": str(tmp_path), "name": name}
        asked = {"data": str(world / "a.jsonl"), "batch_size": 2, "precision": "fp32"}
        return lambda: evaluate(EvaluateConfig(**place, **asked))

    whole = start(work("whole"), tmp_path / "whole", tmp_path / "log")
    chance, kills = random.Random(0), 0
    for moment in ("answers", "answers", "report"):
        kill = draw(moment, whole.events, whole.seconds, chance)
        ended = start(work("killed"), tmp_path / "killed", tmp_path / "log", kill)
        kills += ended.killed
        for path in (tmp_path / "killed").glob("*.json"):
            json.loads(path.read_text())
    assert kills > 1
    start(work("killed"), tmp_path / "killed", tmp_path / "log")
    one, other = ((tmp_path / n / "predictions.jsonl").read_bytes() for n in ("whole", "killed"))
    assert one == other
    one, other = (
        json.loads((tmp_path / n / "report.json").read_text()) for n in ("whole", "killed")
    )
    for part in ("metrics", "controls", "prior", "count"):
        assert one[part] == other[part]
    left = [p for p in (tmp_path / "killed").rglob("*") if LEFT_OVER.fullmatch(p.name)]
    assert not left and not (tmp_path / "killed" / ".lock").exists()
