import json
import re
import sys

import pytest
import torch
from transformers import AutoConfig

from tuninglab import cli
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import save_adapter
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import T5_TARGET_MODULES, TextTuningConfig
from tuninglab.config.yaml_file import config_yaml
from tuninglab.inspection.presets import PRESETS
from tuninglab.models.text_to_text import TextToText


@pytest.fixture
def shown(capsys):
    """A function (words of the command line) -> what it prints on standard output."""

    def show(*words):
        assert cli.main(["tree", *map(str, words)]) == 0
        show.said, printed = (capsys.readouterr())[::-1]
        return printed

    return show


@pytest.fixture
def refused(capsys):
    """A function (words of the command line) -> the message of exit code 2."""

    def refuse(*words):
        assert cli.main(["tree", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert not said.out
        return said.err

    return refuse


def test_with_lora_the_whole_flamingo_is_wrapped_as_in_tuning(shown):
    tree = shown("openflamingo-9b", "--lora", "--stats")
    lines = tree.splitlines()
    assert lines[2].startswith("    └── model (FlamingoForConditionalGeneration)  ")
    (perceiver,) = [line for line in lines if "perceiver (" in line]
    assert re.search(r"63\.0 M  \(63,019,008\) +frozen +120\.2 MiB  float16$", perceiver)
    (block,) = [line for line in lines if "gated_cross_attn_layer" in line]
    assert "1.12 B  (8 x 140,312,578)   0.596 % trainable" in block
    (to_q,) = [line for line in lines if "to_q (Linear) weight:[512, 4096]" in line]
    assert to_q.endswith("float16 + float32  LoRA to_q")
    merged = [line for line in lines if "(96 x 16,908,288)" in line]
    assert not merged or merged[0].endswith("LoRA q_proj, k_proj, v_proj, o_proj")
    assert lines[-1].startswith("total: 8,243,916,816 parameters (8.24 B), 23,461,904 trainable")
    assert "LoRA of rank 16: q_proj, k_proj" in shown.said
    # Statistics stand beside the tree, which stays what it was.
    bare = shown("openflamingo-9b", "--lora").splitlines()
    assert all(line.startswith(plain) for line, plain in zip(lines, bare, strict=False))
    assert len(lines) == len(bare) + 1


def test_a_text_model_gets_lora_where_recipes_put_it(shown, refused):
    shown("flan-t5-small", "--lora")
    assert "LoRA of rank 16: q, k, v, o, wi_0, wi_1, wo" in shown.said
    assert "recipe for T5" in shown.said
    llama = shown("llama-7b", "--lora", "--part", "model.layers.0.self_attn", "--stats")
    assert llama.count("LoRA q_proj, k_proj, v_proj, o_proj") == 1
    assert "to_q" not in shown.said
    chosen = ("llama-7b", "--lora", "--lora_target_modules", "up_proj")
    assert shown(*chosen, "--stats").count("LoRA up_proj") == 1
    message = refused("llama-7b", "--lora", "--lora_target_modules", "q_prj", "up_proj")
    assert "'q_prj' hits no layer; did you mean q_proj" in message
    assert "'up_proj'" not in message and "Linear layers end in: q_proj, k_proj" in message
    assert "--lora beside it" in refused("llama-7b", "--lora_target_modules", "up_proj")


def test_a_t5_gets_the_layers_and_counts_of_its_recipe(shown):
    tree = json.loads(shown("flan-t5-small", "--json", "--lora"))
    config = AutoConfig.for_model(**PRESETS["flan-t5-small"])
    with torch.device("meta"):
        tuned = tune(TextToText(config), TextTuningConfig(), scope="")
    lora = {
        n.split(".lora_")[0].split(".")[-1] for n, p in tuned.named_parameters() if ".lora_" in n
    }
    assert set(patterns_of(tree)) == lora == set(T5_TARGET_MODULES)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    # google/flan-t5-small as published, whose head is its own, and LoRA.
    assert (tree["count"], tree["trainable"]) == (76_961_152 + trained, trained)
    assert "total: 76,961,152 parameters (77.0 M)" in shown("flan-t5-small", "--stats")


def patterns_of(branch):
    return branch["lora"] + [p for child in branch["children"] for p in patterns_of(child)]


def test_a_flamingo_of_other_names_can_be_told_them(shown, refused):
    mpt = "openflamingo-9b-vitl-mpt7b"
    for part in ([], ["--part", "lang_encoder"]):
        message = refused(mpt, "--lora", *part)
        assert "end in: Wqkv, out_proj" in message and "Change lora_target_modules" in message
    assert "LoRA Wqkv" in shown(
        *(mpt, "--lora", "--stats", "--part", "lang_encoder.transformer.blocks.0"),
        *("--lora_target_modules", "Wqkv", "to_q"),
    )


def test_parts(shown, refused):
    perceiver = shown("embedded", "--part", "perceiver")
    assert "to_kv (Linear)" in perceiver
    assert "lang_encoder" not in perceiver and "LlamaForCausalLM" not in perceiver
    # The rules show nothing of the root's own: said beside.
    assert "itself holds latents:[32, 128]" in shown.said
    assert shown("embedded", "--part", "lang_encoder.lm_head") == "root\n"
    assert "weight:[4099, 128]" in shown.said
    message = refused("embedded", "--part", "perciever")
    assert "'perceiver'" in message and "vision_encoder, perceiver, lang_encoder" in message


def test_json_is_one_object(shown):
    tree = json.loads(shown("flan-t5-small", "--json"))
    assert (tree["model"], tree["part"], tree["count"]) == ("flan-t5-small", None, 76_961_152)
    names = [child["names"] for child in tree["children"]]
    assert names == [["shared", "lm_head"], ["encoder"], ["decoder"]]
    assert tree["children"][1]["children"][0]["shared_with"] == "shared"
    lora = json.loads(shown("embedded", "--json", "--lora", "--part", "lang_encoder"))
    assert lora["class"] == "PeftModel" and lora["children"][0]["class"] == "LoraModel"


def test_colours_only_on_a_terminal_that_wants_them(shown, monkeypatch):
    bare = shown("embedded")
    assert "\x1b" not in bare
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as terminal:
        terminal.setattr(type(sys.stdout), "isatty", lambda self: True)
        painted = shown("embedded")
        assert "\x1b[32m (LlamaForCausalLM)\x1b[0m" in painted
        assert re.sub(r"\x1b\[\d+m", "", painted) == bare
        terminal.setenv("NO_COLOR", "1")
        assert shown("embedded") == bare
        terminal.delenv("NO_COLOR")
        terminal.setenv("TERM", "dumb")
        assert shown("embedded") == bare


def test_nothing_wraps_however_narrow_the_terminal(shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    lines = shown("embedded", "--stats").splitlines()
    assert all("── " in line for line in lines[1:-1])


def test_unknown_models_are_told_their_neighbours(refused, tmp_path):
    assert "Did you mean openflamingo-9b" in refused("OpenFlamingo-9B")
    assert "Presets: " in refused("zzz")
    (tmp_path / "exp_1").mkdir()
    assert f"Did you mean {tmp_path}/exp_1" in refused(tmp_path / "exp_2")


def test_a_run_shows_the_lora_it_has(shown, refused, tmp_path, tiny_bases, tiny_flamingo):
    config = FinetuneConfig(model=str(tiny_bases["plain"]))
    config.tuning_config.lora_target_modules = ["q_proj", "ff.1"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config_yaml(config))
    assert "saved nothing to go on from" in refused(run)
    tuned = tune(tiny_flamingo(), config.tuning_config, config.model)
    save_adapter(tuned, run / "adapter")
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    for name in (run, run / "adapter"):
        tree = shown(name, "--lora", "--stats")
        assert "LoRA q_proj" in tree and "LoRA ff.1" in tree and "LoRA v_proj" not in tree
        # Two matrices of each of 2 + 1 layers, and two gates.
        assert f"{trained:,} trainable" in tree and "in 8 tensors" in tree
        assert "has LoRA already" in shown.said
    # As tuning shows it, before it starts.
    words = ("--lora", "--lora_target_modules", "q_proj", "ff.1")
    assert shown(run) == shown(tiny_bases["plain"], *words)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    assert "does not fit this base model, or is broken" in refused(run)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refused(run)
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig(model=str(tmp_path / "gone"))))
    assert f"The base of run {run}: " in refused(run)
