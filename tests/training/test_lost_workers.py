"""A run whose workers die saves what it has learned, and goes on as if nothing had been."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from tests.training.test_loop import config, losses, trained  # noqa: F401
from tuninglab.data.loading import LostWorker
from tuninglab.training import loop
from tuninglab.training.checkpoint import trainable_weights


def dying(original, also_this, after):
    """`step_batches` whose worker is lost after some steps, with a signal to all or without."""

    def steps(loader, count):
        for number, batches in enumerate(original(loader, count), 1):
            yield batches
            if number == after:
                if also_this:
                    os.kill(os.getpid(), signal.SIGTERM)
                raise LostWorker("A process that loads the data has ended")

    return steps


@pytest.mark.parametrize("to_all", [False, True])
def test_what_was_learned_is_saved(config, monkeypatch, capsys, to_all):  # noqa: F811
    model, lines = trained(config)
    stopped = replace(config, run_name="b")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step_batches", dying(loop.step_batches, to_all, 3))
        with pytest.raises(KeyboardInterrupt if to_all else LostWorker) as caught:
            trained(stopped)
    said = capsys.readouterr().err if to_all else str(caught.value)
    assert "after step 3" in said.lower() and "--resume --run_name b" in said
    resumed, resumed_lines = trained(replace(stopped, resume=True))
    assert losses(resumed_lines) == losses(lines)
    for name, weight in trainable_weights(model).items():
        assert torch.equal(trainable_weights(resumed)[name], weight), name
