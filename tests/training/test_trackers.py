"""Trackers get every line, and never stand in the way of a run."""

import json
import struct
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from tuninglab.config import FinetuneConfig
from tuninglab.errors import UserError
from tuninglab.run_folder import RunFolder
from tuninglab.training import trackers
from tuninglab.training.trackers import check_trackers, flat_settings, open_trackers

TRAINED = [
    {"step": s, "epoch": 0.1 * s, "loss": 4.0 / s, "grad_norm": None if s == 1 else 1.5}
    for s in range(1, 6)
]
LINES = [{"step": 0, "epoch": 0.0, "val_loss": 5.0}, *TRAINED]
LINES.insert(4, {"step": 3, "epoch": 0.3, "val_loss": 2.0, "val_loss/a": 2.5})


class Fake(GeneralTracker):
    """Keeps what it is given, by the test that is running."""

    name = "fake"
    requires_logging_directory = False
    given: list = []

    def __init__(self, run_name, **options):
        super().__init__()
        self.given.append(("began", run_name, options))

    @property
    def tracker(self):
        return self

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.given.append(("settings", values))

    def log(self, values, step=None):
        self.given.append((step, values))

    def finish(self):
        self.given.append(("finished",))


@pytest.fixture
def fake(monkeypatch):
    """A function (**methods) -> a tracker class of the name "fake", which accelerate then has."""

    def make(name="fake", **methods):
        kind = type("Made", (Fake,), {"name": name, "given": [], **methods})
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
        return kind

    return make


@pytest.fixture
def begun(tmp_path):
    """Settings that name the tracker, and a run folder."""
    PartialState(cpu=True)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    return FinetuneConfig(track=["fake"], run_name="a"), RunFolder(tmp_path / "runs" / "a")


def follow(config, run, lines=LINES, after=lambda tell: None):
    with open_trackers(config, run) as tell:
        for line in lines:
            tell(line)
        after(tell)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wandbb", "wandbb is unknown. Did you mean wandb?"),
        ("TensorBoard", "Did you mean tensorboard?"),
        ("comet", "Did you mean comet_ml?"),
        ("all", "Known: aim, .*wandb"),
        ("\x1b[31m", r"\\x1b"),
    ],
)
def test_unknown_trackers_are_refused_with_the_nearest(name, said):
    with pytest.raises(UserError, match=said):
        check_trackers([name])


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["wandb"])
    check_trackers(["wandb"])
    check_trackers(None)
    with pytest.raises(UserError, match=r"--track mlflow: .*\(pip install mlflow\)"):
        check_trackers(["wandb", "mlflow"])


def test_every_line_arrives_by_its_step_and_the_settings_once(fake, begun):
    kind = fake()
    follow(*begun)
    first, settings, *lines, last = kind.given
    assert first == ("began", "tuninglab", {}) and last == ("finished",)
    assert settings[1]["tuning_config.r"] == 16 and settings[1]["run_name"] == "a"
    wanted = [
        (line["step"], {k: v for k, v in line.items() if k != "step" and v is not None})
        for line in LINES
    ]
    assert lines == wanted


def test_settings_are_flat_plain_and_of_the_run_not_of_the_call():
    values = flat_settings(FinetuneConfig(data=["a", "b"], debug=True, json=True))
    assert all(isinstance(value, (bool, int, float, str)) for value in values.values())
    assert values.keys() & {"json", "debug", "resume", "overwrite", "config"} == set()
    assert values["tuning_config.lora_alpha"] == 16 and "a" in values["data"]


def test_several_at_once_and_a_name_twice_is_one(fake, begun):
    kinds = [fake(), fake("other")]
    config, run = begun
    follow(replace(config, track=["fake", "other", "fake"]), run)
    assert [len(kind.given) for kind in kinds] == [len(LINES) + 3] * 2


def fail(*args, **options):
    raise RuntimeError("no network:\n down")


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_told_of_once_and_others_go_on(method, fake, begun, capsys):
    fake(**{method: fail})
    other = fake("other")
    config, run = begun
    follow(replace(config, track=["fake", "other"]), run)
    said = "--track fake: no network: down. The run goes on without it.\n"
    assert capsys.readouterr().err.count(said) == 1
    assert len(other.given) == len(LINES) + 3


def test_a_tracker_that_hangs_is_left_behind(fake, begun, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSING_S", 0.05)
    free = threading.Event()
    kind = fake(start=lambda self: free.wait(30))
    follow(*begun)
    assert "--track fake: it has not taken everything within" in capsys.readouterr().err
    free.set()
    assert kind.given == [("began", "tuninglab", {})]


def test_lines_that_nobody_takes_do_not_heap_up(fake, begun, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "MOST_WAITING", 3)
    free = threading.Event()
    fake(start=lambda self: free.wait(30))
    follow(*begun, after=lambda tell: free.set())
    assert capsys.readouterr().err.count("it has not taken 3 lines. The run goes on") == 1


def test_trackers_print_nothing_on_standard_output_and_ask_nobody(fake, begun, capsys):
    def start(self):
        print("a greeting")
        self.given.append(sys.stdin.readline())

    kind, before = fake(start=start), sys.stdin
    follow(*begun)
    captured = capsys.readouterr()
    assert captured.out == "" and "a greeting" in captured.err
    assert kind.given[1] == "" and sys.stdin is before


def test_an_error_of_the_run_ends_the_trackers_and_passes_through(fake, begun):
    kind = fake()
    with pytest.raises(KeyboardInterrupt), open_trackers(*begun) as tell:
        tell(LINES[0])
        raise KeyboardInterrupt
    assert kind.given[-1] == ("finished",)


def test_other_processes_have_no_trackers(fake, begun, second_process):
    kind = fake()
    follow(*begun)
    assert kind.given == []


def go_on(run, step):
    """The run as it goes on from the checkpoint of a step, killed after all its lines."""
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return replace(run, resumed=True, checkpoint=run.checkpoints / f"step-{step:06d}")


def test_a_run_that_goes_on_tells_no_step_twice(fake, begun):
    config, run = begun
    kind = fake()
    follow(config, run)
    assert set(json.loads((run.path / "trackers.json").read_text())) == {"fake"}
    kind.given.clear()
    resumed = go_on(run, 2)
    # Killed while it wrote; and one line of this start is new.
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    follow(config, resumed, [*LINES[3:], {"step": 6, "loss": 0.1}])
    assert [entry[0] for entry in kind.given] == ["began", 6, "finished"]


def test_a_tracker_that_had_nothing_of_the_run_gets_all_from_here_on(fake, begun, capsys):
    config, run = begun
    kind = fake()
    follow(config, go_on(run, 2), LINES[3:])
    assert [one[0] for one in kind.given] == ["began", "settings", 3, 3, 4, 5, "finished"]
    assert "the steps from here on" in capsys.readouterr().err


def answered(run):
    """Two answers, one of them about a picture that is there."""
    (run.path / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (60, 30), "red").save(run.path / "pictures" / "000.png")
    card = {"question": "Which | colour?", "truth": "red", "before": "a\nb", "after": "红"}
    cards = [card | {"picture": f"pictures/00{k}.png"} for k in range(2)]
    (run.path / "answers.json").write_text(json.dumps(cards))
    return lambda tell: tell.show_answers(run.path, cards, 5)


@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_reads_what_was_written_and_after_a_resume_each_step_once(begun):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    config, run = begun
    config = replace(config, track=["tensorboard"])
    follow(config, run, after=answered(run))
    again = [line | {"loss": 9.0} if line["step"] == 4 else line for line in LINES[3:]]
    follow(config, go_on(run, 2), again, answered(run))
    files = EventAccumulator(str(run.path / "tensorboard"), {"images": 0, "scalars": 0})
    files.Reload()
    losses = {event.step: event.value for event in files.Scalars("loss")}
    assert losses == pytest.approx({1: 4.0, 2: 2.0, 3: 4 / 3, 4: 9.0, 5: 0.8})
    assert [(e.step, e.value) for e in files.Scalars("val_loss")] == [(0, 5.0), (3, 2.0)]
    assert [e.value for e in files.Scalars("val_loss/a")] == [2.5]
    text = files.Tensors("answers/text_summary")[-1]
    rows = text.tensor_proto.string_val[0].decode().splitlines()
    assert rows[2] == "| Which \\| colour? | red | a b | 红 |" and len(rows) == 4
    assert files.Images("answers")[-1].step == 5
    settings = files.summary_metadata["_hparams_/session_start_info"]
    assert settings.plugin_data.plugin_name == metadata.PLUGIN_NAME


def test_pictures_of_answers_stand_beside_their_questions(begun):
    from tuninglab.training.tracked_answers import SIDE_PX, pictures

    _, run = begun
    answered(run)
    cards = json.loads((run.path / "answers.json").read_text())
    red, missing = pictures(run.path, cards)
    assert red.shape == (SIDE_PX, SIDE_PX, 3)
    assert (red[:30, :60] == (255, 0, 0)).all() and (red[30:] == 255).all()
    assert (missing == 255).all()
    assert pictures(run.path, [{"question": "text alone"}]) is None


def whole_records(path):
    """The records of a .wandb file, once the last of them is there: another process writes it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        records = list(wandb_records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    pytest.fail(f"{path} is not ended")


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format, in blocks of 32 KiB, after 7 bytes.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        # Whole, or the last of several parts.
        if kind in (1, 4):
            if place > len(content):
                return
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("wandb"), reason="wandb is not installed")
def test_wandb_offline_keeps_all_lines_and_goes_on_under_its_name(begun, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Of a busy machine, on which it takes half a minute to begin.
    monkeypatch.setattr(trackers, "CLOSING_S", 300)
    monkeypatch.chdir(tmp_path)
    config, run = begun
    config = replace(config, track=["wandb"])
    follow(config, run, after=answered(run))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    histories, kept, names = {}, {}, []
    for record in whole_records(path):
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or ".".join(item.nested_key): item.value_json
                for item in record.history.item
            }
            histories[json.loads(row["_step"])] = row
        kept |= {item.key: json.loads(item.value_json) for item in record.config.update}
        names += [record.run.run_id] if record.HasField("run") else []
    for line in LINES:
        # The two lines of step 3 are one there, with the epoch of both.
        known = {k: v for k, v in line.items() if v is not None and k not in ("step", "epoch")}
        row = histories[line["step"]]
        assert {k: json.loads(row[k]) for k in known} == known
    assert {"answers.path", "pictures.count"} <= histories[5].keys()
    assert kept["tuning_config.r"] == 16
    assert names == [json.loads((run.path / "trackers.json").read_text())["wandb"]]
