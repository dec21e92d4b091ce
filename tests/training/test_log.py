import pytest

from tuninglab.training.log import TrainingLog, print_trainable
from tuninglab.training.state import Counts, Progress


def test_progress_adds_up_and_averages_the_window():
    progress = Progress()
    for loss in (4.0, 2.0):
        progress.note(loss, Counts(9, 50, 3), seconds=2.0)
    assert progress.take_window() == {"loss": 3.0, "step_s": 2.0, "tokens_per_s": 25.0}
    progress.note(1.0, Counts(9, 10, 3), seconds=1.0)
    assert progress.take_window() == {"loss": 1.0, "step_s": 1.0, "tokens_per_s": 10.0}
    assert (progress.step, progress.samples, progress.tokens) == (3, 9, 110)
    assert (progress.first_loss, progress.last_loss) == (4.0, 1.0)


def test_wall_time_is_the_whole_loop_not_the_steps_alone(monkeypatch):
    progress, clock = Progress(), iter((12.0, 17.5))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    lap = progress.spend(10.0)
    assert (lap, progress.wall_s) == (12.0, 2.0)
    progress.spend(lap)
    assert progress.wall_s == 7.5


def test_plain_lines_are_few_and_end_with_the_last_step(capsys):
    with TrainingLog(total_steps=50) as log:
        for step in range(1, 51):
            log.step({"step": step, "loss": 1.5, "tokens_per_s": 1234.5})
        log.validation({"step": 50, "val_loss": 1.25})
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("step 1/50: loss 1.5000, 1,234 tokens/s")
    assert lines[-2].startswith("step 50/50:")
    assert lines[-1] == "step 50: val_loss 1.2500"
    assert len(lines) < 10


@pytest.mark.parametrize("shown", [True, False])
def test_table_of_what_trains(capsys, request, shown):
    if not shown:
        request.getfixturevalue("second_process")
    rows = [{"module": "gate", "dtype": "float32", "tensors": 2, "parameters": 1500}]
    print_trainable(rows, total_parameters=6000)
    text = capsys.readouterr().err
    assert all((part in text) == shown for part in ("gate", "1,500", "25.00% of 6,000"))
