import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tuninglab import run_folder
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.console import Choices
from tuninglab.errors import UserError, WorkError
from tuninglab.run_folder import RunFolder, git_commit, how_to_end


@pytest.fixture
def config(tmp_path) -> FinetuneConfig:
    return FinetuneConfig(output_dir=str(tmp_path / "runs"), run_name="a", data="my.json")


def made(config: FinetuneConfig) -> RunFolder:
    run = RunFolder.plan(config)
    run.create(config)
    return run


def test_planning_writes_nothing(config):
    RunFolder.plan(config)
    assert not Path(config.output_dir).exists()


def test_config_is_saved_in_full(config):
    run = made(replace(config, learning_rate=1e-5))
    saved = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (saved["run_name"], saved["learning_rate"], saved["batch_size"]) == ("a", 1e-5, 8)
    assert saved["tuning_config"]["lora_target_modules"][0] == "q_proj"


def test_a_given_name_that_exists_is_refused(config):
    run = made(config)
    with pytest.raises(UserError, match="exists. Replace it: --overwrite"):
        RunFolder.plan(config)
    (run.checkpoints / "step-000003").mkdir(parents=True)
    with pytest.raises(UserError, match="exists.*--resume.*--overwrite"):
        RunFolder.plan(config)


def test_free_names_are_made_up(config):
    config.run_name = None
    names = [made(config).path.name for _ in range(3)]
    assert names == ["run_1", "run_2", "run_3"]


def test_overwrite_deletes_what_runs_write_and_nothing_else(config):
    run = made(config)
    run.append_metrics({"step": 1})
    (run.path / "checkpoints" / "step-000001").mkdir(parents=True)
    (run.path / "notes.txt").write_text("mine")
    made(replace(config, overwrite=True))
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "notes.txt"}


def test_overwrite_leaves_other_folders_alone(config):
    folder = Path(config.output_dir) / "a"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.plan(replace(config, overwrite=True))
    assert (folder / "thesis.tex").exists()


def test_overwrite_follows_no_link(config, tmp_path):
    made(replace(config, run_name="real"))
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "runs" / "real")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.plan(replace(config, overwrite=True))


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc/runs"])
def test_places_that_cannot_hold_a_run_are_told_before_the_work(config, tmp_path, place):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(UserError, match="--output_dir"):
        RunFolder.plan(replace(config, output_dir=str(tmp_path / place)))


def test_a_file_of_that_name(config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.plan(replace(config, overwrite=True))


def test_only_the_main_process_writes(config, second_process):
    run = made(config)
    run.write("report.json", {})
    run.append_metrics({"step": 1})
    assert not Path(config.output_dir).exists()


def test_resume_needs_a_run(config):
    with pytest.raises(UserError, match="--resume: .* no run folder"):
        RunFolder.plan(replace(config, resume=True))


def test_resume_takes_the_settings_of_the_run(config):
    made(replace(config, batch_size=3, learning_rate=1e-5, max_steps=7))
    given = FinetuneConfig(output_dir=config.output_dir, run_name="a", resume=True, max_steps=9)
    resumed = RunFolder.plan(given).resumed_config(given)
    assert (resumed.batch_size, resumed.learning_rate, resumed.data) == (3, 1e-5, "my.json")
    assert (resumed.max_steps, resumed.resume) == (9, True)


def test_resume_refuses_settings_that_would_change_the_past(config):
    made(config)
    given = replace(config, resume=True, batch_size=3, seed=4)
    with pytest.raises(UserError, match="--batch_size is 3.*with 8.*\n--seed is 4.*with 0"):
        RunFolder.plan(given).resumed_config(given)


def test_a_run_goes_on_with_its_own_recipe(config):
    text = FlanT5Config(output_dir=config.output_dir, run_name="t", batch_size=3)
    run = made(text)
    given = FlanT5Config(output_dir=config.output_dir, run_name="t", resume=True)
    assert RunFolder.plan(given).resumed_config(given).batch_size == 3
    (run.checkpoints / "step-000003").mkdir(parents=True)
    assert "tuninglab flan-t5 --resume --run_name t" in how_to_end(run.path)
    # What a run keeps of its base is resolved; what is left open again changes nothing.
    kept = replace(text, overwrite=True).resolved()
    made(kept)
    assert RunFolder.plan(given).resumed_config(given).base_format == "int8"
    with pytest.raises(UserError, match="--quantization is 'none', but .* 'int8'"):
        RunFolder.plan(given).resumed_config(replace(given, quantization="none"))
    other = replace(config, run_name="t", resume=True)
    with pytest.raises(UserError, match="recipe: is 'flan-t5'; expected one of finetune"):
        RunFolder.plan(other).resumed_config(other)


def test_metrics_are_cut_where_a_run_goes_on(config):
    run = made(config)
    for step in range(4):
        run.append_metrics({"step": step, "loss": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # killed while writing
    run.cut_metrics(2)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_full_disk_stops_the_work(config, monkeypatch):
    run = made(config)

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(WorkError, match="No space left"):
        run.append_metrics({"step": 1})


def test_environment(config):
    run = made(config)
    choices = Choices()
    choices.add("precision", "fp32", "because")
    run.write_environment(choices, threads=2, device="cpu")
    written = json.loads((run.path / "environment.json").read_text())
    assert {"torch", "transformers", "peft", "python"} <= set(written["versions"])
    assert written["threads"] == 2 and written["command"]
    assert written["choices"] == [{"choice": "precision", "value": "fp32", "reason": "because"}]


def test_commit_is_that_of_the_package(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "run_folder.py").write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "run_folder.py"))
    # An environment inside somebody's repository: not ours to report.
    assert git_commit() is None
    git("add", "run_folder.py")
    git("commit", "-m", "x")
    assert git_commit() == git("rev-parse", "HEAD")
