"""Killed at any moment and started again, a run ends as if nobody had: `--resume auto`.

`KILLS=20 python -m pytest tests/training/test_kills.py` kills each kind of run so often.
"""

import os
import random

import pytest

from tests.killed_runs import KINDS, Killed, make_world, moments_of

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
    assert list(runs.kill(moments, random.Random(name))) == moments
