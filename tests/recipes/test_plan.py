"""`tuninglab plan`: its contract, and that the flags it names do what it says of them."""

import json
from dataclasses import replace

import pytest
import torch

from tuninglab import cli
from tuninglab.config import PlanConfig, PlanTextConfig
from tuninglab.config.flags import parse
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.inspection.machine_speed import Speed
from tuninglab.models.build import load_flamingo
from tuninglab.recipes import plan as plan_module
from tuninglab.recipes import planned_changes, planned_machine, planned_run
from tuninglab.recipes.defaults import decide
from tuninglab.recipes.plan import plan, plan_text

SPEED = Speed({"fp32": 1e9, "bf16": 2e9}, {"fp32": 1e9, "bf16": 5e8}, 1e10, 1e-6, 0.05)
MIB = 2**20


@pytest.fixture(autouse=True, scope="module")
def machine():
    """A machine of known speed, and a process that does not grow from test to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planned_run, "process_held", lambda model, resident: 2**24)
        patch.setattr(planned_machine, "speed_of", lambda device: SPEED)
        yield


@pytest.fixture(scope="module")
def words(tiny_bases, tiny_data):
    """Flags of a run on the tiny base and data."""
    return [
        *("--model", str(tiny_bases["plain"]), "--data", str(tiny_data), "--val_split", "0.25"),
        *("--precision", "fp32", "--batch_size", "4", "--epochs", "3"),
        *("--train_answer_tokens", "false"),
    ]


def planned(words, *more):
    words = [word.replace("--train_answer", "--tuning_config.train_answer") for word in words]
    return plan(parse("plan", PlanConfig, [*words, *more]))


@pytest.fixture(scope="module")
def fitting(words):
    return planned(words)


@pytest.fixture(scope="module")
def tight(words, fitting):
    """As much memory as makes most changes fit, but not the run."""
    figures, _, _ = fitting
    small, _, _ = planned(words, "--batch_size", "1", "--gradient_accumulation_steps", "4")
    between = (figures["needed_mib"] + small["needed_mib"]) / 2
    return planned(words, "--memory_gib", str(between / 1024))


def test_int8_is_suggested_in_words_that_can_stand_beside_those_given(words, fitting):
    bare = words[: words.index("--precision")]
    given = [
        *bare,
        "--batch_size",
        "4",
        "--quantization",
        "none",
        "--memory_savers",
        "norm",
        "loss",
    ]
    setting = planned_changes.Setting(parse("plan", PlanConfig, given), None, None)
    change = planned_changes._int8(setting, None)
    again = parse("plan", PlanConfig, [*given, *change.flags.split()])
    assert again.base_format == change.setting.config.base_format == "int8"
    assert again.savers == change.setting.config.savers == ["norm", "loss"]


def test_started_processes_hold_their_memory_already(monkeypatch):
    monkeypatch.setattr(planned_machine, "free_memory_bytes", lambda device: 24 * MIB)
    monkeypatch.setattr(planned_machine, "held_memory_bytes", lambda device: 10 * MIB)
    cpu = torch.device("cpu")
    assert planned_machine.machine_here(cpu, 4).available == 34 * MIB // 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert planned_machine.machine_here(cpu, 4).available == 16 * MIB


def test_a_gpu_that_is_not_here_is_not_said_to_be_slow(capsys):
    machine = planned_machine.Machine("cuda", "a GPU", 1, 2**34, None)
    config = PlanConfig(precision="bf16")
    assert plan_module._precision(config, machine, Choices()) == "bf16"
    assert "asked for" in capsys.readouterr().err


def test_the_figures_are_those_of_the_contract(fitting):
    figures, text, error = fitting
    assert error is None
    assert figures["fits"] is True
    assert figures["suggestions"] == []
    parts = {name: mib for name, mib in figures["peak_memory_mib"].items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(figures["peak_memory_mib"]["total"], abs=1)
    assert figures["needed_mib"] <= figures["available_mib"]
    assert max(figures["phases"].values()) == figures["needed_mib"]
    assert figures["peak_memory_mib"]["total"] <= figures["needed_mib"]
    assert {"load", "train", "validate", "score", "save"} == figures["phases"].keys()
    # 9 of 12 records train, 4 at a time, 3 times.
    assert figures["steps"] == 9
    assert 0 < figures["step_s"] * 9 <= figures["train_s"] * 1.01 < figures["wall_s"] * 1.02
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert "fits" in text


def test_what_does_not_fit_is_an_error_with_the_first_remedy(tight):
    figures, text, error = tight
    assert figures["fits"] is False
    assert isinstance(error, UserError)
    assert error.exit_code == 2
    assert figures["suggestions"][0]["flags"] in str(error)
    assert "makes it fit" in text
    seconds = [one["step_s"] for one in figures["suggestions"]]
    assert seconds == sorted(seconds)


def test_the_flags_of_a_suggestion_make_the_run_fit(words, tight):
    figures, _, _ = tight
    limit = ("--memory_gib", str(figures["available_mib"] / 1024))
    assert figures["suggestions"]
    for one in figures["suggestions"]:
        flags = one["flags"].split()
        # The last of two equal flags counts, as for a user who adds them.
        again, _, error = planned([w for w in words], *limit, *flags)
        assert error is None, flags
        assert again["peak_memory_mib"]["total"] == pytest.approx(one["peak_memory_mib"], abs=0.2)
        assert again["needed_mib"] <= figures["available_mib"]


def test_smaller_batches_learn_the_same(tight):
    figures, _, _ = tight
    flags = next(s["flags"] for s in figures["suggestions"] if "--batch_size" in s["flags"])
    words = flags.split()
    size, accumulation = (
        int(words[words.index(name) + 1])
        for name in ("--batch_size", "--gradient_accumulation_steps")
    )
    assert size * accumulation == 4


def test_where_nothing_helps_the_least_is_said(words, monkeypatch):
    # Each change is planned, which takes its time.
    monkeypatch.setattr(planned_changes, "WAYS", (planned_changes._features,))
    monkeypatch.setattr(planned_changes, "MOST_PAIRS", 1)
    figures, _, error = planned(words, "--memory_gib", "0.00001")
    (least,) = figures["suggestions"]
    assert least["fits"] is False
    assert least["needed_mib"] < figures["needed_mib"]
    assert "take a larger machine" in str(error)


def test_a_gpu_that_is_not_here_has_no_time(words):
    with pytest.raises(UserError, match="--memory_gib"):
        planned(words, "--device", "cuda")
    figures, _, _ = planned(words, "--device", "cuda", "--memory_gib", "8")
    assert figures["step_s"] is figures["wall_s"] is None
    assert "not here" in figures["no_time"]
    assert figures["available_mib"] == 8192


def test_processes_share_rows_and_memory(words, fitting):
    figures, _, _ = planned(words, "--processes", "2")
    assert figures["steps"] == 6
    assert figures["device"]["processes"] == 2
    # Of two a ring sends as much as each holds of gradients, 2 x 1/2 times.
    trained = figures["peak_memory_mib"]["LoRA"]
    assert figures["sent_mib"] == pytest.approx(trained, abs=0.05)
    assert fitting[0]["sent_mib"] is None
    assert figures["available_mib"] < 0.7 * fitting[0]["available_mib"]


def test_a_base_that_is_rounded_as_it_is_read_is_whole_in_a_process(words):
    def loading(precision, parallel):
        more = ("--processes", "2", "--parallel", parallel, "--precision", precision)
        return planned(words, *more)[0]["phases"]["load"]

    # The base was saved in fp32: that is mapped by all, and each touches its share.
    assert loading("fp32", "fsdp2") < loading("fp32", "ddp")
    assert loading("bf16", "fsdp2") == loading("bf16", "ddp")


def test_the_largest_batch_is_planned(words):
    figures, _, _ = planned(words, "--batch_size", "auto", "--max_steps", "2")
    assert figures["largest_batches"][0]["rows"] == 9
    chosen = [one for one in figures["choices"] if one["choice"] == "batch size"]
    assert chosen[0]["value"] == "9"


@pytest.mark.parametrize("more", [(), ("--tuning_config.train_perceiver", "true")])
def test_a_base_counts_as_a_run_counts_it(more, words, tiny_bases, monkeypatch):
    counted = []

    def noted(config, parameters, *rest):
        counted.append(parameters)
        return decide(config, parameters, *rest)

    monkeypatch.setattr("tuninglab.recipes.plan.decide", noted)
    planned(words, *more)
    model, _ = load_flamingo(tiny_bases["plain"])
    assert counted == [model.num_parameters()]


def test_a_flan_t5_is_planned(tmp_path):
    config = parse("plan flan-t5", PlanTextConfig, ["--embedded_pairs", "64"])
    figures, _, error = plan_text(config)
    assert error is None
    assert figures["steps"] == 2
    assert figures["largest_batches"][0]["rows"] == 32


@pytest.mark.parametrize(
    ("file", "words", "verb"),
    [
        ("recipe: flan-t5\nembedded_pairs: 64\n", ["plan"], PlanTextConfig),
        ("recipe: flan-t5\nembedded_pairs: 64\n", ["plan", "flan-t5"], PlanTextConfig),
        ("recipe: finetune\nembedded_pictures: 64\n", ["plan"], PlanConfig),
        ("embedded_pictures: 64\n", ["plan"], PlanConfig),
    ],
)
def test_a_file_of_settings_says_which_recipe(file, words, verb, tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(file)
    found = []
    monkeypatch.setattr(cli.Verb, "run", lambda self, config: found.append(config))
    assert cli.main([*words, "--config", str(path)]) == 0
    assert cli.main([*words, f"--config={path}"]) == 0
    assert [type(config) for config in found] == [verb, verb]


def test_a_missing_file_of_settings_is_told(capsys):
    assert cli.main(["plan", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_settings_of_the_call_are_no_settings_of_the_run(words):
    config = parse("plan", PlanConfig, ["--memory_gib", "3", "--processes", "2"])
    assert (config.memory_gib, config.processes) == (3, 2)
    with pytest.raises(UserError, match="processes"):
        replace(config, processes=0).validate()
