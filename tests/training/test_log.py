import io
import re
import sys

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
            log.show({"step": step, "loss": 1.5, "tokens_per_s": 1234.5})
        log.show({"step": 50, "val_loss": 1.25})
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0] == "training: 50 steps"
    assert lines[1].startswith("step 1/50: loss 1.5000, 1,234 tokens/s")
    assert lines[-2].startswith("step 50/50:")
    assert lines[-1] == "step 50: val_loss 1.2500"
    assert len(lines) < 10


def test_a_line_has_memory_and_the_time_left_in_words(capsys, monkeypatch):
    clock = iter((0.0, 10.0, 20.0))
    monkeypatch.setattr("tuninglab.training.log.time.monotonic", lambda: next(clock))
    with TrainingLog(total_steps=50, first_step=9) as log:
        for step in (10, 11):
            line = {"step": step, "loss": 1.5, "tokens_per_s": 90.0, "peak_memory_mib": 1234.4}
            log.show(line)
    lines = capsys.readouterr().err.splitlines()
    # 10 s a step, 39 steps to go.
    assert lines[2] == "step 11/50: loss 1.5000, 90 tokens/s, 1,234 MiB, 6 min 30 s left"


class Terminal(io.StringIO):
    """What is written, for programs that ask whether a person looks on."""

    def isatty(self):
        return True

    def seen(self):
        """The text without colours and movements; a bar is drawn again and again."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def on_terminal(monkeypatch, rank="0"):
    # Not as a fixture: pytest takes standard error for itself again before the test begins.
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("RANK", rank)):
        monkeypatch.setenv(name, value)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_on_a_terminal_a_bar_moves_in_place_of_lines(monkeypatch, capsys):
    terminal = on_terminal(monkeypatch)
    with TrainingLog(total_steps=50, first_step=20) as log:
        assert "20/50" in terminal.seen()
        for step in range(21, 51):
            log.show({"step": step, "loss": 2.0 - step / 100, "tokens_per_s": 1234.5})
        log.show({"step": 50, "val_loss": 1.25})
    text = terminal.seen()
    # The end of the bar stays, below what the validation said.
    assert re.search(r"50/50 loss 1\.5000, 1,23[45] tokens/s 0:00:00\s*$", text)
    assert text.count("step 50: val_loss 1.2500") == 1
    # No plain lines besides, and nothing for programs to read.
    assert "s left" not in text and capsys.readouterr().out == ""
    # Hidden while the bar runs, the cursor comes back.
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1


def test_an_error_in_the_loop_leaves_the_terminal_as_it_was(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), TrainingLog(total_steps=5) as log:
        log.show({"step": 1, "loss": 2.0, "tokens_per_s": 10.0})
        raise KeyboardInterrupt
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
    assert "1/5 loss 2.0000" in terminal.seen()


def test_a_terminal_that_cannot_move_gets_lines(monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with TrainingLog(total_steps=2) as log:
        assert terminal.getvalue() == "training: 2 steps\n"
        log.show({"step": 1, "loss": 2.0, "tokens_per_s": 10.0})
        assert "step 1/2: loss 2.0000" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


def test_the_table_of_what_trains_tells_names_apart_at_80_columns(monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    layers = "lang_encoder.model.layers.*"
    ends = ["to_q (LoRA)", "to_kv (LoRA)", "to_out (LoRA)"]
    names = [f"{layers}.gated_cross_attn_layer.attn.{end}" for end in ends]
    # Different only where it would be cut.
    alike = [f"{part}.{'x' * 50}.gate" for part in ("lang_encoder.one", "lang_encoder.two")]
    rows = [
        {"module": name, "dtype": "float32", "tensors": 1, "parameters": 1}
        for name in [*names, *alike]
    ]
    print_trainable(rows, total_parameters=6000)
    lines = terminal.seen().splitlines()
    assert max(map(len, lines)) <= 80
    shown = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    for name, end in zip(shown, ends, strict=False):
        assert name.startswith("lang_encoder…") and name.endswith(f"attn.{end}")
    assert "".join(shown[3:]).startswith("".join(alike))


def test_other_processes_draw_no_bar(monkeypatch, second_process):
    terminal = on_terminal(monkeypatch, rank="1")
    with TrainingLog(total_steps=2) as log:
        log.show({"step": 2, "loss": 2.0, "tokens_per_s": 10.0})
    assert terminal.seen() == ""


@pytest.mark.parametrize("shown", [True, False])
def test_table_of_what_trains(capsys, request, shown):
    if not shown:
        request.getfixturevalue("second_process")
    rows = [{"module": "gate", "dtype": "float32", "tensors": 2, "parameters": 1500}]
    print_trainable(rows, total_parameters=6000)
    text = capsys.readouterr().err
    assert all((part in text) == shown for part in ("gate", "1,500", "25.00% of 6,000"))
