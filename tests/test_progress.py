"""What takes longer than a moment says so: lines in a pipe, a bar on a terminal."""

import time

import pytest

from tests.training.test_log import on_terminal
from tuninglab import progress
from tuninglab.progress import bars, working


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(progress, "QUIET_S", 0.05)
    monkeypatch.setattr(progress, "INTERVAL_S", 0.1)


def test_what_is_quick_says_nothing(capsys):
    with working("checking"):
        pass
    assert capsys.readouterr() == ("", "")


def test_lines_come_while_one_call_goes_on(capsys):
    with working("loading"):
        time.sleep(0.4)
    with working("checking pictures", 2000) as note:
        note(1500)
        time.sleep(0.4)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "loading ..." and lines[1] == "loading: 0 s"
    assert "checking pictures ..." in lines
    assert "checking pictures: 1,500 of 2,000, 0 s" in lines


def test_an_error_ends_it(capsys):
    with pytest.raises(ZeroDivisionError), working("checking"):
        time.sleep(0.2)
        raise ZeroDivisionError
    said = capsys.readouterr().err
    time.sleep(0.3)
    assert said.startswith("checking ...") and capsys.readouterr().err == ""


def test_other_processes_say_nothing(capsys, second_process):
    with working("checking"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_that_leaves_nothing_behind(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with working("checking pictures", 2000) as note:
        note(1500)
        # Redrawn ten times a second, where the machine has the time.
        until = time.monotonic() + 10
        while "1500/2000" not in terminal.seen() and time.monotonic() < until:
            time.sleep(0.05)
    assert "1500/2000 checking pictures" in terminal.seen()
    assert "..." not in terminal.seen()
    last = terminal.seen().rindex("checking pictures")
    assert terminal.getvalue().rindex("\x1b[?25h") > last


def test_work_inside_a_training_adds_a_bar_to_its_display(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with bars() as shown:
        task = shown.add_task("", total=10, completed=3, note="loss 1.0")
        with working("validating"):
            time.sleep(0.5)
        assert shown.task_ids == [task]
    assert "3/10 loss 1.0" in terminal.seen() and "validating" in terminal.seen()
    with bars() as again:
        assert again is not shown


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_gets_lines(monkeypatch, term):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", term)
    with working("checking"):
        time.sleep(0.3)
    assert terminal.getvalue().startswith("checking ...\nchecking: 0 s\n")
