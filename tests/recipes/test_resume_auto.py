"""`--resume auto`: starts, goes on, starts over what saved nothing, or says that it has ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import ByT5Tokenizer

from tests.killed_runs import metrics_of
from tests.killing import start
from tests.tiny import t5
from tuninglab.cli import main
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.errors import UserError
from tuninglab.recipes import common, settling
from tuninglab.recipes.common import open_run
from tuninglab.recipes.flamingo import finetune
from tuninglab.recipes.flan_t5 import flan_t5
from tuninglab.training import loop
from tuninglab.training.manifest import write_manifest

ROOT = Path(__file__).parents[2]
ADAPTER = Path("adapter") / "adapter_model.safetensors"


class Killed(BaseException):
    pass


def killed(*args, **options):
    raise Killed


@pytest.fixture
def auto(config) -> FinetuneConfig:
    return replace(config, resume="auto")


@pytest.fixture
def run(config) -> Path:
    return Path(config.output_dir) / "a"


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """What would show that somebody wrote there, apart from the pages of the report."""
    pages = ("report.html", "loss.png")
    stats = {path: path.stat() for path in folder.rglob("*") if path.name not in pages}
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def test_the_same_command_starts_and_then_says_that_it_has_ended(auto, run, monkeypatch, capsys):
    report = finetune(auto)
    assert report["train"]["steps"] == 3
    before = state_of(run)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(common, "prepare", killed)
        assert finetune(auto) == report
    said = capsys.readouterr().err
    assert f"{run} has ended" in said and "Loss" in said and str(run / "adapter") in said
    assert state_of(run) == before


def test_a_kill_between_the_reports_leaves_no_page_of_a_run_that_runs(
    auto, run, monkeypatch, capsys
):
    finetune(replace(auto, max_steps=1))
    page, picture = run / "report.html", run / "loss.png"
    whole = page.read_bytes(), picture.read_bytes()
    # As `report --watch` wrote it before the end.
    page.write_text("It runs: step 1 of 1.")
    picture.unlink()
    monkeypatch.setattr(common, "prepare", killed)
    finetune(replace(auto, max_steps=1))
    assert (page.read_bytes(), picture.read_bytes()) == whole
    # What cannot be written stays, and the run has ended all the same.
    (run / "metrics.jsonl").write_text("[]\n")
    capsys.readouterr()
    finetune(replace(auto, max_steps=1))
    said = capsys.readouterr().err
    assert "Its page stays as it is: " in said and "Adapter: " in said
    assert page.read_bytes() == whole[0]


def test_a_report_without_its_figures_is_named(auto, run):
    finetune(replace(auto, max_steps=1))
    path = run / "report.json"
    for train in ({}, [], {"first_loss": "x"}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"train": train}))
        with pytest.raises(UserError, match=r"a/report.json lacks figures .* Delete it"):
            finetune(replace(auto, max_steps=1))


def test_it_is_typed_as_a_word_and_the_exit_of_an_ended_run_is_0(config, run, capsys):
    words = ["finetune", "--model", config.model, "--data", str(config.data), "--resume", "auto"]
    words += ["--output_dir", config.output_dir, "--run_name", "a", "--precision", "fp32"]
    words += ["--max_steps", "1", "--json"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0
    again = capsys.readouterr()
    assert again.out == first and "has ended" in again.err
    assert main([*words, "--overwrite"]) == 2
    assert main(["finetune", "--resume", "auto"]) == 2
    assert "--run_name" in capsys.readouterr().err


def test_a_higher_end_goes_on_and_the_earlier_report_goes_with_the_first_step(
    auto, run, monkeypatch
):
    finetune(auto)
    further = replace(auto, max_steps=5, lr_scheduler="constant")
    with pytest.raises(UserError, match="--lr_scheduler is 'constant'"):
        finetune(further)
    further = replace(further, lr_scheduler="cosine")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(common, "train_setup", killed)
        finetune(further)
    # As of now its end is step 5, and the report would be of another.
    assert not (run / "report.json").exists() and not (run / "report.html").exists()
    assert finetune(further)["train"]["steps"] == 5
    # The command of before asks for less than was reached.
    with pytest.raises(UserError, match="has made 5 steps"):
        finetune(auto)


def test_an_end_that_is_not_whole_is_written_anew(auto, run):
    report = finetune(replace(auto, max_steps=1))

    def ends_again() -> None:
        again = finetune(replace(auto, max_steps=1))
        assert again["evaluation"] == report["evaluation"]
        assert json.loads((run / "report.json").read_text()) == again
        assert (run / "report.html").is_file() and (run / ADAPTER).is_file()

    (run / "report.html").unlink()
    ends_again()
    shutil.rmtree(run / "adapter")
    ends_again()
    (run / "report.json").write_text(json.dumps({"run_name": "a"}))
    ends_again()


def test_stopped_before_its_first_checkpoint_it_is_started_over(auto, run, monkeypatch, capsys):
    whole = finetune(replace(auto, run_name="whole"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("tuninglab.training.loop.save_checkpoint", killed)
        finetune(auto)
    assert metrics_of(run) and not (run / "checkpoints").exists()
    with pytest.raises(UserError, match="--learning_rate is 0.5, but the run was started with"):
        finetune(replace(auto, learning_rate=0.5))
    # Its name is enough, as it is to go on.
    again = finetune(FinetuneConfig(output_dir=auto.output_dir, run_name="a", resume="auto"))
    assert "it is started over" in capsys.readouterr().err
    assert again["train"]["last_loss"] == whole["train"]["last_loss"]
    assert metrics_of(run) == metrics_of(run.parent / "whole")


@pytest.mark.parametrize("there", [[], [".tuninglab"], [".tuninglab", ".lock"]])
def test_what_a_kill_at_the_start_leaves_is_no_dead_end(auto, run, there):
    run.mkdir()
    for name in there:
        (run / name).touch()
    settings, opened = open_run(auto)
    assert (settings.resume, opened.resumed) == (False, False)
    opened.create(settings)
    opened.release()
    assert {path.name for path in run.iterdir()} == {".tuninglab", "config.yaml"}


def test_what_is_not_ours_is_left_alone(auto, run):
    (run / "pictures").mkdir(parents=True)
    (run / "config.yaml").write_text("title: my thesis\n")
    with pytest.raises(UserError, match="--resume auto: .*/a is no run folder of tuninglab"):
        finetune(auto)
    shutil.rmtree(run)
    run.write_text("a file")
    with pytest.raises(UserError, match="no run folder"):
        finetune(auto)
    run.unlink()
    # Ours, and killed, but with something of somebody's in it.
    run.mkdir()
    (run / ".tuninglab").touch()
    (run / "pictures").mkdir()
    (run / "pictures" / "holiday.jpg").write_text("mine")
    with pytest.raises(UserError, match="holiday.jpg.*Nothing was deleted"):
        finetune(auto)
    assert (run / "pictures" / "holiday.jpg").exists()


def test_a_run_that_another_process_writes_is_refused(auto, run, tmp_path):
    started, hold = open_run(auto)
    hold.create(started)
    try:
        other = start(lambda: refused(auto), run, tmp_path / "log")
        assert "refused: " in other.said
    finally:
        hold.release()


def refused(config: FinetuneConfig) -> None:
    try:
        open_run(config)
    except UserError as error:
        assert "is being written by process" in str(error)
        print("refused:", error)


def test_a_run_without_its_checkpoints_is_not_started_over(auto, run):
    finetune(auto)
    shutil.rmtree(run / "checkpoints")
    (run / "report.json").unlink()
    before = (run / ADAPTER).read_bytes()
    with pytest.raises(UserError, match="no checkpoint in .* that is whole"):
        finetune(auto)
    assert (run / ADAPTER).read_bytes() == before


def test_settings_that_lack_something_are_told_where_it_starts(auto, run):
    with pytest.raises(UserError, match="--keep_best val_loss"):
        finetune(replace(auto, patience=2))
    assert not run.exists()


def test_one_process_decides_for_all(auto, run, tmp_path, monkeypatch):
    """The second would find nothing at all, and start."""
    finetune(auto)
    look = settling._settled
    blind = replace(auto, run_name="nothing")
    monkeypatch.setattr(
        settling, "_settled", lambda c: look(c if os.environ["RANK"] == "0" else blind)
    )

    def decided() -> None:
        config, opened = open_run(auto)
        print("decided:", config.resume, opened.resumed, opened.ended, opened.path.name)

    said = start(decided, run, tmp_path / "log", processes=2).said
    assert said.count("decided: True True True a\n") == 2


@pytest.mark.parametrize(
    ("damage", "manifest"),
    [("another form", True), ("no pickle", False), ("no tensors", False)],
)
def test_damage_found_while_loading_gives_way_to_the_checkpoint_before(
    auto, run, damage, manifest, capsys
):
    settings = replace(auto, lr_scheduler="constant", save_steps=1)
    finetune(replace(settings, run_name="whole"))
    finetune(replace(settings, max_steps=2))
    newest = run / "checkpoints" / "step-000002"
    if damage == "no pickle":
        (newest / "state.pt").write_bytes(b"nothing")
    elif damage == "another form":
        saved = torch.load(newest / "state.pt", weights_only=True)
        del saved["optimizer"]["state"]
        torch.save(saved, newest / "state.pt")
    else:
        (newest / "trainable.safetensors").write_bytes(b"nothing")
    (newest / "manifest.json").unlink()
    if manifest:
        write_manifest(newest)
    finetune(settings)
    said = capsys.readouterr().err
    assert "step-000002 is damaged" in said and "Going on after step 1" in said
    assert metrics_of(run) == metrics_of(run.parent / "whole")
    assert (run / ADAPTER).read_bytes() == (run.parent / "whole" / ADAPTER).read_bytes()


def test_weights_of_another_model_are_no_damage(auto, run):
    finetune(replace(auto, save_steps=1, max_steps=2))
    path = run / "checkpoints" / "step-000002" / "trainable.safetensors"
    weights = load_file(path)
    del weights[min(weights)]
    save_file(weights, path)
    (path.parent / "manifest.json").unlink()
    with pytest.raises(UserError, match="1 parameters differ"):
        finetune(auto)


def test_going_on_deletes_what_kills_left_beside_the_checkpoints(auto, run):
    finetune(replace(auto, max_steps=1))
    for left in (".step-000001.old", ".step-000009.writing", "..step-000003.old.old"):
        (run / "checkpoints" / left).mkdir()
    (run / "report.html").unlink()
    open_run(auto)[1].release()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]


def dying(step):
    """`optimizer_step`, in which the second process is killed once, in its fourth step."""
    made = []

    def made_or_dead(*args):
        made.append(0)
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and os.environ["RANK"] == "1" and len(made) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    return made_or_dead


@pytest.fixture
def healing(config, tmp_path) -> dict[str, FinetuneConfig | FlanT5Config]:
    """Settings by recipe of a run whose fourth step is after its first checkpoint."""
    pairs = [json.dumps({"source": f"say {n}", "target": "yes"}) for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "t5")
    t5(vocab_size=259).save_pretrained(tmp_path / "t5")
    own = {"max_steps": 5, "save_steps": 2, "batch_size": 2, "resume": "auto"}
    text = {"model": str(tmp_path / "t5"), "data": str(tmp_path / "pairs.jsonl")}
    text |= {"output_dir": config.output_dir, "precision": "fp32", "run_name": "a"}
    return {"finetune": replace(config, **own), "flan-t5": FlanT5Config(**text, **own)}


def equals_one_that_was_not_killed(config, work, run: Path, tmp_path) -> bool:
    whole = replace(config, run_name="whole")
    start(lambda: work(whole), run.parent / "whole", tmp_path / "log", processes=2)
    files = [run.parent / name / ADAPTER for name in ("a", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    return metrics_of(run) == metrics_of(run.parent / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "work"), [("finetune", finetune), ("flan-t5", flan_t5)])
def test_a_killed_rank_is_healed_by_the_agent_of_torchrun(healing, recipe, work, run, tmp_path):
    """The agent forks its processes here, so that they need not import torch anew."""
    config = healing[recipe]
    once = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 3}
    meeting = {"run_id": "healed", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}

    def train() -> None:
        loop.optimizer_step = dying(loop.optimizer_step)
        work(config)

    def launch() -> None:
        settings = LaunchConfig(**once, **meeting, start_method="fork", monitor_interval=0.1)
        elastic_launch(settings, train)()

    said = start(launch, run, tmp_path / "log").said
    assert said.count("Going on after step 2 ") == 1
    assert equals_one_that_was_not_killed(config, work, run, tmp_path)


SCRIPT = """
import sys
from tests.recipes.test_resume_auto import dying
from tuninglab.training import loop

loop.optimizer_step = dying(loop.optimizer_step)
from tuninglab.cli import finetune_main
sys.exit(finetune_main())
"""


@pytest.mark.slow
def test_torchrun_heals_a_killed_rank_by_itself(healing, run, tmp_path):
    """The command as users type it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    config = healing["finetune"]
    names = ("model", "data", "output_dir", "run_name", "precision", "max_steps", "save_steps")
    names += ("batch_size", "learning_rate", "resume")
    words = [word for name in names for word in (f"--{name}", str(getattr(config, name)))]
    words += ["--tuning_config.train_answer_tokens", "false"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "--max_restarts=3", str(tmp_path / "script.py"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Going on after step 2 ") == 1
    assert equals_one_that_was_not_killed(config, finetune, run, tmp_path)
