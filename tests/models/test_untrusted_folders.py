"""Model folders of others: whatever they say, the folder loads or is refused by the file's name."""

import json
import math
import os
import shutil
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.json_values import FORTY, JSON_VALUES
from tests.tiny import save_tower, t5
from tuninglab.cli import main
from tuninglab.errors import UserError
from tuninglab.models import hub
from tuninglab.models.bounds import problem
from tuninglab.models.build import load_flamingo
from tuninglab.models.parts import load_lang_encoder
from tuninglab.models.text_to_text import load_text_to_text
from tuninglab.models.vision import load_vision_encoder
from tuninglab.serving.conversation import Conversation

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def folder(tiny_bases, tmp_path):
    """A model folder of one's own."""
    return shutil.copytree(tiny_bases["plain"], tmp_path / "model")


def change(file, path: str, value) -> None:
    """Set what stands at a dotted path in a JSON file."""
    content = json.loads(file.read_text()) if file.exists() else {}
    *above, last = path.split(".")
    inner = content
    for name in above:
        inner = inner.setdefault(name, {})
    inner[last] = value
    file.write_text(json.dumps(content))


def refused(folder, load=load_flamingo) -> str:
    started = time.process_time()
    with pytest.raises(UserError) as error:
        load(folder)
    assert time.process_time() - started < 10
    assert str(folder) in str(error.value)
    return str(error.value)


CONFIG = [
    ("quantization_config", {"quant_method": "unheard"}, "unheard"),
    ("quantization_config", {"bits": 4}, "quant_method None"),
    ("dtype", ["float32"], "float32"),
    ("dtype", "float9", "float9"),
    ("text_config.num_hidden_layers", 10**6, "1000000"),
    ("vision_config.num_hidden_layers", 10**6, "1000000"),
    ("perceiver_depth", 10**6, "1000000"),
    ("text_config.num_attention_heads", 0, "num_attention_heads is 0"),
    ("text_config.num_key_value_heads", 0, "is 0"),
    ("vision_config.num_attention_heads", 0, "is 0"),
    ("vision_config.patch_size", 0, "patch_size is 0"),
    ("vision_config.image_size", 10**6, "image_size"),
    ("text_config.rope_parameters.rope_theta", math.nan, "rope_theta is nan"),
    ("text_config.rope_parameters.rope_theta", 0.0, "rope_theta"),
    ("text_config.rms_norm_eps", math.nan, "rms_norm_eps is nan"),
    ("text_config.rms_norm_eps", -1.0, "rms_norm_eps"),
    ("text_config.unheard", math.inf, "unheard is inf"),
    ("text_config.pad_token_id", 10**9, "pad_token_id"),
    ("text_config.vocab_size", 2**23, "describes a model of at least"),
    ("text_config.hidden_size", 2**20, "describes a model of at least"),
    ("text_config.attention_dropout", 7.0, "attention_dropout"),
    ("text_config", [], ""),
    ("text_config", {"model_type": "x" * 5000}, ""),
]


@pytest.mark.parametrize(("path", "value", "said"), CONFIG)
def test_a_configuration_out_of_range_is_refused_before_anything_is_built(
    folder, path, value, said
):
    change(folder / "config.json", path, value)
    assert said in refused(folder)


@pytest.mark.parametrize(
    "content",
    [DEEP, "", "[]", "\x00", '{"a": "\ud800"', "{" + " " * (17 * 2**20) + "}", "\ufeff{}", "nul"],
    ids=["deep", "empty", "list", "NUL", "cut off", "17 MiB", "BOM", "no JSON"],
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_a_file_that_is_no_json_is_refused_by_its_name(folder, name, content):
    (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    text = refused(folder)
    assert name in text or "tokenizer" in name
    assert len(text) < 2000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_is_refused_at_once(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in refused(folder)
    assert main(["tree", str(folder)]) == 2


def test_code_beside_a_model_is_neither_run_nor_asked_about(folder, tmp_path, monkeypatch, capsys):
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    saved = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    for name, key, kind in (
        ("config.json", "AutoConfig", {"model_type": "unheard"}),
        ("tokenizer_config.json", "AutoTokenizer", {"tokenizer_class": "Unheard"}),
        ("processor_config.json", "AutoProcessor", {"processor_class": "Unheard"}),
        ("processor_config.json", "AutoImageProcessor", {}),
        ("preprocessor_config.json", "AutoImageProcessor", {"image_processor_type": "Unheard"}),
    ):
        code = ["evil.Evil", "evil.Evil"] if key == "AutoTokenizer" else "evil.Evil"
        change(folder / name, "auto_map", {key: code})
        for path, value in kind.items():
            change(folder / name, path, value)
        if name == "processor_config.json" and not kind:
            change(folder / name, "image_processor.auto_map", {key: code})
            change(folder / name, "image_processor.image_processor_type", "Unheard")
        try:
            load_flamingo(folder)
        except UserError as error:
            assert str(folder) in str(error)
        assert not canary.exists() and "evil" not in "".join(sys.modules)
        for path in folder.glob("*.json"):
            path.unlink()
        for file, content in saved.items():
            (folder / file).write_bytes(content)
    assert "Traceback" not in capsys.readouterr().err


REPLACE = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 5000}
TOKENIZER = [
    ("normalizer", {"type": "Unheard"}, ""),
    ("normalizer", REPLACE, "times longer"),
    (
        "normalizer",
        {"type": "Sequence", "normalizers": [REPLACE | {"content": "ee"}] * 30},
        "times",
    ),
    ("normalizer", REPLACE | {"pattern": {"Regex": "x*"}, "content": "y" * 64}, "times longer"),
    ("normalizer", {"type": "Prepend", "prepend": "x" * 10**6}, "times longer"),
    ("model.vocab", {"a": -1}, "-1"),
    ("model.vocab", {"a": {}}, ""),
    ("model.merges", [["zz", "y"]], "zz"),
    ("model.merges", 7, ""),
    ("added_tokens", [], ""),
    ("pre_tokenizer", {"type": "Split"}, ""),
    (
        "pre_tokenizer",
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+b"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ],
        },
        "for ever",
    ),
]


@pytest.mark.parametrize(("path", "value", "said"), TOKENIZER)
def test_a_tokenizer_that_breaks_or_grows_texts_is_refused(folder, path, value, said):
    change(folder / "tokenizer.json", path, value)
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model_max_length", ["x"], "model_max_length"),
        ("model_max_length", "x", "model_max_length"),
        ("model_max_length", math.nan, "model_max_length"),
        ("pad_token", None, "pad_token"),
        ("tokenizer_class", "Unheard", ""),
        ("tokenizer_class", 7, ""),
    ],
)
def test_a_tokenizer_configuration_out_of_range_is_refused(folder, path, value, said):
    change(folder / "tokenizer_config.json", path, value)
    try:
        load_flamingo(folder)
    except UserError as error:
        assert said in str(error) and str(folder) in str(error)
    else:
        assert not said


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize("pattern", ["(?:a|a|aa)+b", "(a|a)*b", "a*a*a*b"])
def test_a_regular_expression_that_takes_for_ever_is_refused_wherever_it_is(folder, part, pattern):
    rule = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}
    if part == "pre_tokenizer":
        rule = {"type": "Split", "pattern": rule["pattern"], "behavior": "Isolated"}
        rule["invert"] = False
    change(folder / "tokenizer.json", part, rule)
    assert "for ever" in refused(folder)


def test_a_regular_expression_that_explodes_later_is_told_with_the_tokenizer(folder):
    """On letters that it does not name: the library gives up, and that is a message."""
    rule = {"type": "Split", "pattern": {"Regex": r"(\p{Thai}+)+\p{Lao}"}, "behavior": "Isolated"}
    change(folder / "tokenizer.json", "pre_tokenizer", rule | {"invert": False})
    model, processor = load_flamingo(folder)
    with pytest.raises(UserError, match=f"{folder} breaks on .*retry-limit"):
        Conversation(model, processor, 2).ask("\u0e01" * 400 + " \u0e81")


PICTURES = [
    ("size", {"shortest_edge": 30_000}, "30000"),
    ("size", {"shortest_edge": 0}, ""),
    ("size", {"longest_edge": 16}, ""),
    ("size", "x", ""),
    ("crop_size", {"height": 10**6, "width": 10**6}, "1000000"),
    ("crop_size", {"height": 0, "width": 0}, "height is 0"),
    ("crop_size", {"height": 16, "width": 8}, "square"),
    ("image_mean", [0.5, 0.5], "mean"),
    ("image_std", [0.5, 0.5], "std"),
    ("image_std", [0.5, [1], 0.5], ""),
    ("image_std", [0, 0, 0], "image_std"),
    ("resample", 99, "resample"),
    ("resample", " ", None),
    ("rescale_factor", math.nan, "rescale_factor is nan"),
    ("rescale_factor", math.inf, "rescale_factor is inf"),
    ("rescale_factor", {}, ""),
    ("do_center_crop", False, ""),
    ("do_resize", False, None),
]


@pytest.mark.parametrize(("key", "value", "said"), PICTURES)
def test_pictures_out_of_range_are_refused(folder, key, value, said):
    change(folder / "processor_config.json", f"image_processor.{key}", value)
    if said is not None:
        assert said in refused(folder)
        return
    # A crop still makes all pictures alike.
    model, processor = load_flamingo(folder)
    assert processor.image_size == model.config.vision_config.image_size


def test_the_image_processor_beside_a_tower_is_tried_too(tmp_path):
    save_tower(tmp_path, "clip_vision_model")
    load_vision_encoder(tmp_path, None)
    size = {"height": 16, "width": 16}
    for key, value in (("image_mean", [1]), ("image_std", [0, 1, 1]), ("crop_size", 0)):
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"size": {"shortest_edge": 16}, "crop_size": size} | {key: value})
        )
        refused(tmp_path, lambda path: load_vision_encoder(path, None))


GENERATION = [
    ("num_beams", 10**6, "num_beams"),
    ("eos_token_id", "stop", "eos_token_id"),
    ("eos_token_id", ["stop"], "eos_token_id"),
    ("bad_words_ids", [[10**6]], "bad_words_ids"),
    ("suppress_tokens", [10**6], "suppress_tokens"),
    ("pad_token_id", 10**6, "pad_token_id"),
    ("temperature", math.nan, "temperature"),
    ("max_new_tokens", 10**12, "max_new_tokens"),
]


@pytest.mark.parametrize(("key", "value", "said"), GENERATION)
def test_generation_settings_out_of_range_are_refused(folder, key, value, said):
    change(folder / "generation_config.json", key, value)
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sequence_bias", [[[10**6], 1.0]]),
        ("stop_strings", 7),
        ("exponential_decay_length_penalty", 1),
    ],
)
def test_generation_settings_that_break_are_told_with_the_folder(folder, key, value):
    change(folder / "generation_config.json", key, value)
    with pytest.raises(UserError, match=str(folder)):
        Conversation(*load_flamingo(folder), 2).ask("colour?")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("decoder_start_token_id", [0], "decoder_start_token_id"),
        ("num_layers", 10**6, "num_layers"),
        ("num_heads", 0, "num_heads"),
        ("relative_attention_num_buckets", 0, "relative_attention_num_buckets"),
        ("dropout_rate", 2.0, "dropout_rate"),
        ("d_model", 2**19, "describes a model"),
        ("layer_norm_epsilon", math.nan, "layer_norm_epsilon"),
    ],
)
def test_a_text_to_text_model_out_of_range_is_refused(tmp_path, path, value, said):
    t5().save_pretrained(tmp_path)
    change(tmp_path / "config.json", path, value)
    assert said in refused(tmp_path, load_text_to_text)


def test_names_in_files_do_not_ask_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asked the network"))
    adapter, run = tmp_path / "adapter", tmp_path / "run"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/name"})
    )
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text("model: owner/name\n")
    settings_file = tmp_path / "settings.yaml"
    settings_file.write_text("model: owner/name\n")
    place = ["--output_dir", str(tmp_path / "runs")]
    for words, file in (
        (["chat", str(adapter), "--ask", "x"], str(adapter)),
        (["tree", str(adapter)], str(adapter)),
        (["chat", str(run), "--ask", "x"], str(run)),
        (
            ["finetune", "--config", str(settings_file), *place],
            f"--config {settings_file} names it",
        ),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "owner/name" in said and "hf download owner/name" in said and "--model" in said
        assert file in said
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_folder_that_a_settings_file_names_is_told_with_the_file(folder, tmp_path, capsys):
    change(folder / "config.json", "text_config.num_attention_heads", 0)
    settings_file = tmp_path / "settings.yaml"
    settings_file.write_text(f"model: {folder}\ndata: none.json\n")
    words = ["finetune", "--config", str(settings_file), "--output_dir", str(tmp_path / "runs")]
    assert main([*words, "--data", "other.json"]) == 2
    assert "settings.yaml" not in capsys.readouterr().err
    assert main(words) == 2
    assert "none.json" in (said := capsys.readouterr().err) and "settings.yaml names it" in said
    settings_file.write_text(f"model: {folder}\n")
    assert main(words) == 2
    assert "heads is 0" in (said := capsys.readouterr().err) and "settings.yaml names it" in said
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def on_the_hub(folder, monkeypatch):
    """A model of the hub that the user names, with the folder that its download leaves."""
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(hub, "_out_of_reach", lambda: "")
    monkeypatch.setattr(hub, "snapshot_download", download)
    hub._settings_of.cache_clear()
    yield asked
    hub._settings_of.cache_clear()


@pytest.mark.parametrize(
    ("file", "path", "value", "said"),
    [
        ("config.json", "text_config.num_hidden_layers", 10**6, "num_hidden_layers is 1000000"),
        ("generation_config.json", "num_beams", 10**6, "num_beams"),
        ("tokenizer_config.json", "model_max_length", "x", "model_max_length"),
        ("model.safetensors.index.json", "weight_map.a", "../x.safetensors", "not beside it"),
    ],
)
@pytest.mark.parametrize("load", [load_flamingo, load_text_to_text, load_lang_encoder])
def test_a_model_of_the_hub_is_looked_at_before_a_library_reads_it(
    folder, on_the_hub, monkeypatch, file, path, value, said, load
):
    for reader in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(reader, "from_pretrained", lambda *_, **__: pytest.fail("was read"))
    change(folder / file, path, value)
    options = (None,) if load is load_lang_encoder else ()
    with pytest.raises(UserError, match=f"{folder}/{file}.*{said}"):
        load("owner/name", *options)
    ((name, asked),) = on_the_hub
    assert name == "owner/name" and not any("safetensors" in str(one) for one in asked.values())


def test_a_whole_model_of_the_hub_passes_and_is_looked_at_once(on_the_hub):
    assert hub.resolve("owner/name", "model") == ("owner/name", False)
    assert hub.resolve("owner/name", "model") == ("owner/name", False)
    assert len(on_the_hub) == 1


@pytest.mark.parametrize("name", ["../other/a.safetensors", "/etc/passwd", "sub/a.safetensors", 7])
def test_an_index_reads_nothing_outside_of_its_folder(folder, tmp_path, name):
    (folder / "model.safetensors").rename(tmp_path / "a.safetensors")
    change(folder / "model.safetensors.index.json", "weight_map.x", name)
    assert "which is not beside it" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "has no weight_map" in refused(folder)


@FORTY
@given(st.data())
def test_any_value_anywhere_loads_or_is_refused_by_the_folder(tiny_bases, tmp_path, data):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny_bases["plain"], folder)
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.glob("*.json"))))
    content = inner = json.loads((folder / name).read_text())
    while True:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or not inner[key] or data.draw(st.integers(0, 3)) == 0:
            break
        inner = inner[key]
    inner[key] = data.draw(JSON_VALUES)
    (folder / name).write_text(json.dumps(content))
    try:
        model, processor = load_flamingo(folder)
        Conversation(model, processor, 2).ask("colour?")
    except UserError as error:
        assert str(folder) in str(error)


def test_usual_values_are_no_problem():
    usual = {
        "vocab_size": 128256,
        "max_position_embeddings": 10_485_760,
        "pad_token_id": -1,
        "eos_token_id": [128001, 128009],
        "time_step_limit": [0.0, math.inf],
        "torch_dtype": "bfloat16",
        "image_size": [224, 224],
        "rope_scaling": None,
        "model_max_length": 1e30,
        "text_config": {"vocab_size": 32000, "bos_token_id": 49406, "pad_token_id": 1},
    }
    assert problem(usual) == ""


class Evil:
    def __reduce__(self):
        return (os.system, ("touch canary",))


def test_weights_that_are_a_program_are_refused_by_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"lang_encoder.x": Evil()}, folder / "pytorch_model.bin")
    refused(folder)
    assert not (tmp_path / "canary").exists()


def test_a_description_larger_than_the_weights_costs_no_memory(folder):
    change(folder / "config.json", "vision_config.hidden_size", 2**19)
    change(folder / "config.json", "vision_config.intermediate_size", 2**19)
    assert "not of the same save" in refused(folder)
