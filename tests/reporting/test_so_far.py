"""The report of a run that has not ended: what there is of it, and following it to its end."""

import json
import os
import re
import shutil
import signal
import time

import pytest

from tests.reporting.test_report import parsed, run  # noqa: F401 (a fixture)
from tuninglab import cli
from tuninglab.reporting import report, report_command
from tuninglab.reporting.report import look
from tuninglab.reporting.run_files import read_final
from tuninglab.run_folder import lock, ownership
from tuninglab.run_folder.lock import writer_of


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The picture beside the page is a matter of test_report.py, and takes long."""
    monkeypatch.setattr(report, "draw_curves", lambda metrics, path: path.touch())


@pytest.fixture
def begun(run):  # noqa: F811
    """A run that has made 3 of 10 steps."""
    (run / "report.json").unlink()
    (run / "answers.json").unlink()
    (run / "config.yaml").write_text("recipe: finetune\nmodel: embedded\nmax_steps: 10\n")
    more = {"step_s": 2.0, "tokens_per_s": 90.0, "peak_memory_mib": 700.0}
    lines = [{"step": k, "loss": 2.5 / k, **more} for k in (1, 2, 3)]
    lines.append({"step": 3, "val_loss": 1.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ownership.mark(run)
    return run


@pytest.fixture
def held(begun):
    """A function: another process holds the run, does something, and ends, killed or not."""
    children = []

    def hold(work=lambda: time.sleep(60), release=True):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                lock.take(begun)
                os.write(told, b"x")
                work()
                if release:
                    lock.release(begun)
            finally:
                os._exit(0)
        assert os.read(ready, 1) == b"x"
        children.append(child)
        return child

    yield hold
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def ended(folder):
    (folder / "report.json").write_text(json.dumps({"train": {"steps": 10}, "run_name": "demo"}))


def test_a_run_that_goes_on_has_a_page_that_loads_itself_again(begun, held):
    held()
    page, figures, stands = look(begun)
    text = page.read_text()
    assert '<meta http-equiv="refresh" content="5">' in text
    assert "It runs: step 3 of 10, about 14 s left." in text and "2.500" in text
    # The run draws that itself when it ends.
    assert not (begun / "loss.png").exists()
    assert (stands.state, stands.left_s) == ("running", 14.0)
    assert figures["train"] == {
        "steps": 3,
        "first_loss": 2.5,
        "last_loss": pytest.approx(2.5 / 3),
        "tokens_per_s": 90.0,
        "peak_memory_mib": 700.0,
        "trainable_parameters": 4096,
    }


def test_of_a_run_that_died_and_of_one_that_was_stopped_it_says_how_to_end_it(begun, held):
    (begun / "checkpoints" / "step-000003").mkdir(parents=True)
    text = parsed(begun).text
    assert "It has not ended and does not run: step 3 of 10." in text
    assert "--resume --run_name demo" in text
    child = held(release=False)
    assert writer_of(begun) == "runs"
    os.kill(child, signal.SIGKILL)
    while writer_of(begun) == "runs":
        time.sleep(0.01)
    page, figures, _ = look(begun)
    text = re.sub(r"\s+", " ", page.read_text())
    assert "The process that ran it is gone" in text and "--resume" in text
    assert 'http-equiv="refresh"' not in text
    assert figures["state"] == "died"


def test_without_a_step_it_says_so(begun):
    (begun / "metrics.jsonl").unlink()
    text = parsed(begun).text
    assert "no step yet" in text and "No loss logged." in text
    assert "once the run has ended" in text and "No questions were answered" not in text


def test_half_a_line_is_of_a_process_that_writes_it(begun):
    with open(begun / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert look(begun)[2].step == 3


@pytest.mark.parametrize(
    ("settings", "total"),
    [("max_steps: 7", 7), ("epochs: 2", 12), ("epochs: 0.1", 3), ("model: embedded", None)],
)
def test_the_last_step_is_foreseen_from_the_settings(begun, settings, total):
    (begun / "config.yaml").write_text(f"recipe: finetune\n{settings}\n")
    (begun / "metrics.jsonl").write_text('{"step": 3, "epoch": 0.5, "loss": 1.0, "step_s": 1.0}\n')
    assert look(begun)[2].total == total


def test_the_report_of_an_earlier_end_is_passed_over_once_more_steps_are_made(begun, held):
    (begun / "report.json").write_text(json.dumps({"train": {"steps": 2}}))
    held()
    assert look(begun)[2].state == "running"
    (begun / "report.json").write_text(json.dumps({"train": {"steps": 3}}))
    # It has written that and is about to let go.
    assert look(begun)[2].state == "ended"


def test_watching_ends_with_the_run_whose_report_it_leaves(begun, held, monkeypatch, capsys):
    monkeypatch.setattr(report_command, "INTERVAL_S", 0.01)
    monkeypatch.setattr(report_command, "LINES_S", 0.01)
    looks = []

    def seen(folder):
        looks.append(look(folder))
        # The run goes on once it has been looked at.
        (begun / f"looked{len(looks)}").touch()
        return looks[-1]

    def work():
        for number, line in ((1, {"step": 4, "loss": 0.5}), (2, {"step": 5, "loss": 0.25})):
            while not (begun / f"looked{number}").exists():
                time.sleep(0.01)
            with open(begun / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        while not (begun / "looked3").exists():
            time.sleep(0.01)
        ended(begun)

    monkeypatch.setattr(report_command, "look", seen)
    held(work)
    assert cli.main(["report", str(begun), "--watch"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{begun / 'report.html'}\n"
    assert "step 5 of 10" in captured.err and "loss 0.2500" in captured.err
    assert captured.err.rstrip().endswith("It has ended.")
    text = (begun / "report.html").read_text()
    assert "refresh" not in text and (begun / "loss.png").exists()


def test_watching_a_run_that_does_not_run_ends_at_once(begun, capsys):
    assert cli.main(["report", str(begun), "--watch", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["state"] == "stopped"
    assert "does not run" in captured.err


def test_ctrl_c_ends_the_watching_alone(begun, held, monkeypatch):
    child = held()

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_command.time, "sleep", interrupt)
    assert cli.main(["report", str(begun), "--watch"]) == cli.INTERRUPTED
    os.kill(child, 0)
    assert writer_of(begun) == "runs"


def test_who_looks_leaves_the_files_of_the_run_alone(begun, held):
    held()
    before = {
        p: p.read_bytes() for p in begun.rglob("*") if p.is_file() and p.name != "report.html"
    }
    look(begun)
    after = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file() and p.name != "report.html"}
    assert before == after
    # Not even what the run itself is writing at the moment.
    half = begun / ".report.html.writing"
    half.write_text("half")
    look(begun)
    assert half.read_text() == "half"


def test_writers_as_others_see_them(begun, held):
    assert writer_of(begun) == "none"
    holder = {"host": "elsewhere", "pid": 1, "started": "1", "mount": "other", "locked": None}
    (begun / lock.LOCK).write_text(json.dumps(holder))
    assert writer_of(begun) == "unseen"
    assert "cannot be seen from here" in parsed(begun).text
    (begun / lock.LOCK).unlink()


def test_plan_and_measured_stand_side_by_side(run):  # noqa: F811
    final = read_final(run)
    final["plan"] = {"peak_memory_mib": 1100.0, "step_s": 0.5}
    final["train"]["peak_memory_mib"] = 1000.0
    final["data"] = {"train": 900, "val": 80, "skipped": 7}
    final["train"]["left_out"] = 3
    (run / "report.json").write_text(json.dumps(final))
    steps = [{"step": k, "loss": 1.0, "step_s": s} for k, s in ((1, 9.0), (2, 1.0), (3, 1.0))]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    text = re.sub(r"\s+", "", parsed(run).text)
    for row in (
        "peakmemory1.07GiB1000MiB10%toomuch",
        "timeofastep500ms1.0s50%toolittle",
        "recordsleftout,astheyhaveproblems7",
        "apictureoftheirsisbad3",
    ):
        assert row in text
    shutil.rmtree(run / "pictures")
    del final["plan"]
    (run / "report.json").write_text(json.dumps(final))
    assert "Planned and measured" not in parsed(run).text
