import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.flags import parse
from tuninglab.console import Choices
from tuninglab.errors import UserError, WorkError
from tuninglab.reporting.run_files import read_final
from tuninglab.run_folder import RunFolder, environment, git_commit, how_to_end, read_starts
from tuninglab.run_folder.named_model import NamedModel, find_model


@pytest.fixture
def config(tmp_path) -> FinetuneConfig:
    return FinetuneConfig(
        output_dir=str(tmp_path / "runs"), run_name="a", data="my.json", batch_size=8
    )


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
    left = {path.name for path in run.path.iterdir()}
    assert left == {".tuninglab", ".lock", "config.yaml", "notes.txt"}


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


def typed(config: FinetuneConfig, *words: str) -> FinetuneConfig:
    """The settings of a resumed run, as the command line comes to them."""
    place = ["--resume", "--run_name", "a", "--output_dir", config.output_dir]
    given = parse("tuninglab finetune", FinetuneConfig, [*place, *words])
    return RunFolder.plan(given).resumed_config(given)


def test_resume_refuses_what_is_typed_even_at_its_default(config):
    made(replace(config, learning_rate=1e-5, batch_size=4, lr_scheduler="linear"))
    words = "--learning_rate 2e-4 --batch_size 8 --lr_scheduler cosine --tuning_config.r 16"
    with pytest.raises(UserError) as caught:
        typed(config, *words.split())
    assert str(caught.value).splitlines()[:-1] == [
        "--batch_size is 8, but the run was started with 4.",
        "--learning_rate is 0.0002, but the run was started with 1e-05.",
        "--lr_scheduler is 'cosine', but the run was started with 'linear'.",
    ]
    resumed = typed(config, "--learning-rate", "1e-5", "--per_device_train_batch_size", "4")
    assert (resumed.learning_rate, resumed.lr_scheduler) == (1e-5, "linear")


def test_resume_refuses_what_a_file_gives_and_what_is_inside_tuning_config(config, tmp_path):
    made(replace(config, batch_size=4, tuning_config={"r": 8, "lora_alpha": 32}))
    (tmp_path / "recipe.yaml").write_text("batch_size: 8\ntuning_config: {r: 16}\n")
    expected = "--batch_size is 8.*with 4.\n--tuning_config.r is 16, .* with 8.\nLeave"
    with pytest.raises(UserError, match=expected):
        typed(config, "--config", str(tmp_path / "recipe.yaml"))
    resumed = typed(config, "--tuning_config.r", "8")
    assert (resumed.tuning_config.r, resumed.tuning_config.lora_alpha) == (8, 32)


def test_what_may_change_on_resume_changes_even_to_its_default(config):
    changed = {"max_steps": 7, "workers": 2, "save_steps": 3, "keep_checkpoints": 5, "epochs": 4}
    made(replace(config, **changed))
    resumed = typed(config, "--workers", "0", "--max_steps", "None", "--keep_checkpoints", "2")
    assert (resumed.workers, resumed.max_steps, resumed.keep_checkpoints) == (0, None, 2)
    assert (resumed.save_steps, resumed.epochs) == (3, 4)


def test_what_the_start_decided_stands_where_it_is_left_open_again(config):
    made(replace(config, enable_int8=True).resolved(precision="bf16"))
    resumed = typed(config, "--precision", "auto", "--enable_int8", "--quantization", "None")
    assert (resumed.precision, resumed.base_format) == ("bf16", "int8")
    with pytest.raises(UserError, match="--precision is 'fp32', .* with 'bf16'"):
        typed(config, "--precision", "fp32")


def test_a_run_goes_on_with_the_products_that_it_was_started_with(config):
    made(replace(config, products="onednn"))
    assert typed(config).products == typed(config, "--products", "auto").products == "onednn"
    with pytest.raises(UserError, match="--products is 'torch', .* with 'onednn'"):
        typed(config, "--products", "torch")
    path = Path(config.output_dir) / "a" / "config.yaml"
    path.write_text(path.read_text().replace("products: onednn\n", ""))
    # From before there was a choice.
    assert typed(config).products == "torch"


@pytest.mark.parametrize("recipe", [FinetuneConfig, FlanT5Config])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_to_go_on_can_be_pasted(recipe, processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    run = made(recipe(output_dir="my runs/it's", run_name="a b"))
    run.write_environment(Choices(), threads=1, device="cpu")
    (run.checkpoints / "step-000003").mkdir(parents=True)

    def go_on():
        said = how_to_end(run.path)
        words = shlex.split(said[said.index("tuninglab" if processes == 1 else "torchrun") :])
        return words, words.index("--resume")

    words, flags = go_on()
    verb = recipe.recipe
    torchrun = ["torchrun", "--nproc_per_node=2", "-m", "tuninglab", verb]
    assert words[:flags] == (torchrun if processes == 2 else ["tuninglab", verb])
    given = parse(verb, recipe, words[flags:])
    assert (given.resume, given.run_name, given.output_dir) == (True, "a b", "my runs/it's")
    # In a checkout, as the README has it; the script is that of one recipe.
    (tmp_path / "fine_tuning.py").touch()
    words, flags = go_on()
    script = processes == 2 and recipe is FinetuneConfig
    assert (words[flags - 1] == "fine_tuning.py") == script


def test_a_run_in_the_package_folder_is_pointed_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuninglab").mkdir()
    made(FinetuneConfig(output_dir="tuninglab/runs", run_name="a"))
    with pytest.raises(UserError, match=r"no runs/a here. Did you mean tuninglab/runs/a\?"):
        find_model("runs/a")
    with pytest.raises(UserError, match=r"--resume: runs/a is no run.*mean tuninglab/runs/a\?"):
        RunFolder.plan(FinetuneConfig(run_name="a", resume=True))
    with pytest.raises(UserError, match=r"runs/a: no such folder. Did you mean tuninglab/runs/a\?"):
        read_final(Path("runs/a"))
    assert find_model("runs/b") == NamedModel("runs/b")
    # And from the folder that the command was run in, for a run of the root.
    made(FinetuneConfig(run_name="b"))
    monkeypatch.chdir(tmp_path / "tuninglab")
    with pytest.raises(UserError, match=r"Did you mean \.\./runs/b\?"):
        find_model("runs/b")


def test_an_adapter_whose_replacing_was_cut_short_is_found(config):
    run = made(config)
    (run.path / ".adapter.old").mkdir()
    (run.path / ".adapter.writing").mkdir()
    (run.path / ".adapter.writing" / "adapter_config.json").write_text("{}")
    assert find_model(str(run.path)).adapter == run.adapter
    assert (run.adapter / "adapter_config.json").is_file()


def test_overwriting_brings_no_adapter_back(config):
    run = made(config)
    for name in (".adapter.old", ".adapter.writing"):
        (run.path / name).mkdir()
    made(replace(config, overwrite=True))
    with pytest.raises(UserError, match="the run has not ended"):
        find_model(str(run.path))


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
    with pytest.raises(UserError, match="recipe is 'flan-t5'; expected one of finetune"):
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
    (written,) = json.loads((run.path / "environment.json").read_text())
    assert {"torch", "transformers", "peft", "python"} <= set(written["versions"])
    assert written["threads"] == 2 and written["command"]
    assert written["choices"] == [{"choice": "precision", "value": "fp32", "reason": "because"}]


def test_every_start_adds_its_part_to_the_environment(config):
    run = made(config)
    # The first version kept one object, of the last start.
    run.write("environment.json", {"device": "cuda:0", "processes": 2})
    resumed = RunFolder(run.path, resumed=True)
    for device in ("cpu", "mps"):
        resumed.write_environment(Choices(), threads=2, device=device)
    assert [part["device"] for part in read_starts(run.path)] == ["cuda:0", "cpu", "mps"]
    # --overwrite begins anew.
    run.write_environment(Choices(), threads=2, device="cpu")
    assert [part["device"] for part in read_starts(run.path)] == ["cpu"]
    (run.path / "environment.json").write_text("[{")
    with pytest.raises(UserError, match="environment.json is not JSON.*delete"):
        resumed.write_environment(Choices(), threads=2, device="cpu")


def test_commit_is_that_of_the_package(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    # An environment inside somebody's repository: not ours to report.
    assert git_commit() is None
    git("add", "environment.py")
    git("commit", "-m", "x")
    assert git_commit() == git("rev-parse", "HEAD")
