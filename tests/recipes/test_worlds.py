"""Several processes on CPUs: what they tune is what one tunes, however weights are spread."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed import barrier
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import ByT5Tokenizer

from tests.tiny import Colours, t5
from tests.worlds import all_well, begin, end, forked, free_port, in_world
from tuninglab import cli
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.tuning import TuningConfig
from tuninglab.data.reading import splits as splits_module
from tuninglab.recipes.flamingo import finetune
from tuninglab.recipes.flan_t5 import flan_t5
from tuninglab.training import loop, parallel

pytestmark = pytest.mark.slow

ROWS = 12
LORA = TuningConfig(train_answer_tokens="false")
# Of a tied table, whose rows train; and what is no LoRA.
MORE = TuningConfig(train_new_tokens=True, train_perceiver=True)


@pytest.fixture(scope="module")
def settings(tiny_bases, tiny_data, tmp_path_factory):
    """A short run on rows of which the last has no picture; its last step is short and uneven."""
    return FinetuneConfig(
        model=str(tiny_bases["plain"]),
        data=str(tiny_data),
        val_data=str(tiny_data),
        output_dir=str(tmp_path_factory.mktemp("worlds")),
        precision="fp32",
        max_steps=4,
        learning_rate=1e-3,
        lr_scheduler="constant",
        tuning_config=LORA,
    )


@pytest.fixture(scope="module")
def kinds(settings, tiny_bases):
    """Settings of runs of ten rows a step, by name."""
    rows = replace(settings, model=str(tiny_bases["tied"]), tuning_config=MORE)
    int8 = replace(settings, enable_int8=True, activation_checkpointing=True)
    # Of an untied head, as on own data with the embedded base.
    untied = replace(settings, tuning_config=TuningConfig(train_answer_tokens="true"))
    return {"lora": settings, "rows": rows, "untied rows": untied, "int8": int8}


@pytest.fixture(scope="module")
def text(settings, tmp_path_factory):
    """Settings of a tiny T5 in int8 whose blocks compute their activations again."""
    folder = tmp_path_factory.mktemp("t5")
    t5(vocab_size=259).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    records = [{"source": f"say {n}", "target": "yes " * (n % 3 + 1)} for n in range(ROWS)]
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, records)))
    return FlanT5Config(
        model=str(folder),
        data=str(data),
        val_data=str(data),
        output_dir=settings.output_dir,
        precision="fp32",
        max_steps=2,
        learning_rate=1e-3,
        activation_checkpointing=True,
    )


def of(settings, name, processes, rows=10, **changed):
    return replace(settings, run_name=name, batch_size=rows // processes, **changed)


def resumed(settings, name, **changed):
    return FinetuneConfig(run_name=name, output_dir=settings.output_dir, resume=True, **changed)


def scored(config):
    return finetune(replace(config, data=None, val_data=None), Colours(config.data))


def several(*runs):
    """Work of a process: runs, one after another, within one group of processes."""

    def work():
        # A run leaves the group at its end, which the next one needs.
        with mock.patch.object(Accelerator, "end_training"):
            for run in runs:
                run()

    return work


@pytest.fixture(scope="module")
def two(settings, kinds, text):
    """The folder of all that two processes have made."""
    fsdp2 = {name: of(kind, f"{name}-fsdp2", 2, parallel="fsdp2") for name, kind in kinds.items()}
    long = of(settings, "long", 2, ROWS, gradient_accumulation_steps=2, save_steps=1)
    long = replace(long, batch_size=3, parallel="fsdp2", keep_checkpoints=9)
    folder = Path(settings.output_dir)

    def go_on(name, **changed):
        def work():
            if os.environ["RANK"] == "0":
                copy(folder, name)
            Accelerator(cpu=True).wait_for_everyone()
            finetune(resumed(settings, name, **changed))

        return work

    def launched():
        # As `accelerate launch` tells it; transformers would leave weights out for the last of it.
        asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        asked |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
        with mock.patch.dict(os.environ, asked):
            scored(of(settings, "scored", 2))

    def in_step():
        with mock.patch.object(parallel, "fits_gathered", return_value=False):
            scored(of(settings, "in-step", 2, parallel="fsdp2"))
            # Its encoder is called outside of the model's forward pass.
            flan_t5(of(text, "text", 2, parallel="fsdp2"))

    work = several(
        lambda: finetune(of(settings, "lora-ddp", 2)),
        *(lambda config=config: finetune(config) for config in fsdp2.values()),
        launched,
        in_step,
        lambda: finetune(long),
        go_on("long-same"),
        go_on("long-ddp", parallel="ddp"),
        lambda: damaged(of(settings, "skip", 2, parallel="fsdp2", on_bad_picture="skip")),
    )
    said = all_well(in_world(2, work, folder))
    assert said[1].count("What trains") == 0
    return folder


def copy(folder, name):
    """What the long run was after its first step."""
    shutil.copytree(folder / "long", folder / name)
    for step in (2, 3, 4):
        shutil.rmtree(folder / name / "checkpoints" / f"step-{step:06d}")


def damaged(config):
    """A run, one of whose pictures is cut off once it was checked."""
    folder = Path(config.output_dir) / "damaged"
    real = splits_module.open_part

    def check_and_cut(*words):
        samples = real(*words)
        # Each process looks at the whole one.
        barrier()
        (folder / "0.png").write_bytes(b"no picture")
        return samples

    if os.environ.get("RANK", "0") == "0":
        shutil.copytree(Path(config.data).parent, folder)
    Accelerator(cpu=True).wait_for_everyone()
    data = str(folder / Path(config.data).name)
    with mock.patch.object(splits_module, "open_part", check_and_cut):
        finetune(replace(config, data=data, val_data=None))


def adapter(folder, name):
    return load_file(folder / name / "adapter" / "adapter_model.safetensors")


def furthest(folder, one, other):
    """The largest difference between the adapters of two runs."""
    left, right = adapter(folder, one), adapter(folder, other)
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def report(folder, name):
    return json.loads((folder / name / "report.json").read_text())


@pytest.mark.parametrize("kind", ["lora", "rows", "untied rows", "int8"])
def test_shards_tune_what_one_process_tunes(two, kinds, kind):
    expected = finetune(of(kinds[kind], f"{kind}-one", 1))
    got = report(two, f"{kind}-fsdp2")
    assert furthest(two, f"{kind}-one", f"{kind}-fsdp2") < 1e-5
    for name in ("first_loss", "last_loss"):
        assert got["train"][name] == pytest.approx(expected["train"][name], abs=1e-5)
    for name in ("samples", "tokens", "trainable_parameters"):
        assert got["train"][name] == expected["train"][name]
    for when in ("before", "after"):
        losses = [r["evaluation"][when]["val_loss"] for r in (expected, got)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_shards_are_ddp_to_the_bit_and_leave_the_same_files(two):
    assert furthest(two, "lora-ddp", "lora-fsdp2") == 0
    configs = [
        json.loads((two / name / "adapter" / "adapter_config.json").read_text())
        for name in ("lora-ddp", "lora-fsdp2")
    ]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", ["scored", "in-step"])
def test_scores_of_shards_are_those_of_one_process(two, settings, name):
    """Whether each process gathers the weights and answers a share, or all answer in step."""
    assert "parallel: fsdp2" in (two / name / "config.yaml").read_text()
    expected = scored(of(settings, f"{name}-one", 1))["evaluation"]
    assert report(two, name)["evaluation"] == expected
    assert len(expected["after"]["answers"]) == ROWS


def test_a_t5_in_shards_is_that_of_one_process(two, text):
    expected = flan_t5(of(text, "text-one", 1))["evaluation"]
    assert furthest(two, "text-one", "text") < 1e-5
    got = report(two, "text")["evaluation"]
    assert got["after"].pop("val_loss") == pytest.approx(expected["after"].pop("val_loss"))
    assert got["after"] == expected["after"]


def test_a_run_goes_on_to_the_bit_with_shards_and_without(two):
    for name in ("long-same", "long-ddp"):
        assert furthest(two, "long", name) == 0
        assert report(two, name)["train"]["last_loss"] == report(two, "long")["train"]["last_loss"]


def test_it_goes_on_with_fewer_and_more_processes_and_the_same_rows(two, settings, capfd):
    copy(two, "long-one")
    finetune(resumed(settings, "long-one"))
    said = capfd.readouterr().err
    assert "gradient accumulation: 4 a step (12 rows a step as on 2 processes)" in said
    assert "The run had 2 processes, now there is 1" in said
    assert furthest(two, "long", "long-one") < 1e-5
    copy(two, "long-four")
    plain = of(settings, "four", 4, ROWS, parallel="fsdp2")
    work = several(
        lambda: finetune(resumed(settings, "long-four")),
        lambda: finetune(plain),
    )
    all_well(in_world(4, work, two))
    assert furthest(two, "long", "long-four") < 1e-5
    assert furthest(two, "long", "four") < 1e-5
    # Three cannot share four micro-batches.
    ended = in_world(3, lambda: command(resumed(settings, "long-four", max_steps=5)), two)
    assert {process.code for process in ended} == {2}
    assert "1 or 2 or 4 can (it had 4)" in ended[0].said


def command(config):
    raise SystemExit(cli.run_command(lambda: finetune(config)))


def test_a_bad_picture_of_one_process_is_left_out(two):
    train = report(two, "skip")["train"]
    # Two epochs without that record.
    assert (train["left_out"], train["samples"]) == (2, 2 * (ROWS - 1))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_where_one_process_ends_all_do(settings, tmp_path, kind):
    """By a mistake in its data, which it tells; or killed, after a checkpoint."""
    bad = replace(settings, output_dir=str(tmp_path), parallel=kind, batch_size=1)

    def mistaken():
        raise SystemExit(cli.run_command(lambda: damaged(replace(bad, run_name="bad"))))

    ended = in_world(2, mistaken, tmp_path)
    told = [process for process in ended if "0.png" in process.said]
    assert told and all(process.code == 2 for process in told)
    others = [process for process in ended if process not in told]
    assert all("Another process of this run has ended" in process.said for process in others)

    def killed():
        step = loop.optimizer_step

        def until_third(state, *given):
            if state.progress.step == 2 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return step(state, *given)

        with mock.patch.object(loop, "optimizer_step", until_third):
            command(replace(bad, run_name="killed", save_steps=1))

    first, second = in_world(2, killed, tmp_path)
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert "Another process of this run has ended" in first.said
    assert sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()) == [
        "step-000001",
        "step-000002",
    ]


def test_two_nodes_of_torchrun_write_once(two, settings, tmp_path):
    """Agents of two nodes that meet on this machine, each with one process."""
    port = free_port()
    config = of(settings, "nodes", 2, parallel="fsdp2")

    def node(number):
        def run():
            begin(tmp_path / f"node-{number}.txt", {})
            launch = LaunchConfig(
                min_nodes=2,
                max_nodes=2,
                nproc_per_node=1,
                run_id="two",
                rdzv_backend="c10d",
                rdzv_endpoint=f"localhost:{port}",
                start_method="fork",
                max_restarts=0,
            )
            end(lambda: elastic_launch(launch, _of_node)(config))

        return run

    all_well(forked([node(0), node(1)], [tmp_path / f"node-{n}.txt" for n in (0, 1)]))
    assert furthest(two, "nodes", "lora-fsdp2") == 0
    lines = (two / "nodes" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert (
        steps == sorted(steps)
        and len(json.loads((two / "nodes" / "environment.json").read_text())) == 1
    )


def _of_node(config):
    finetune(config)
