import json

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from tuninglab.errors import UserError
from tuninglab.models import (
    FlamingoForConditionalGeneration,
    flamingo,
    flamingo_from_parts,
    hub,
    load_flamingo,
)

VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8}
TEXT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL = {"cross_attn_every_n_layers": 2, "perceiver_depth": 1, "perceiver_latents": 4}


def save_lang(folder, tokenizer, config=None):
    config = config or LlamaConfig(vocab_size=7, intermediate_size=48, **TEXT)
    lang = AutoModelForCausalLM.from_config(config).eval()
    lang.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lang


@pytest.fixture
def parts(tmp_path, make_tokenizer):
    """Folders of a plain LM with tokenizer and of a CLIP tower, and the two models."""
    torch.manual_seed(0)
    lang = save_lang(tmp_path / "lang", make_tokenizer())
    vision = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    vision.save_pretrained(tmp_path / "vision")
    return tmp_path / "lang", tmp_path / "vision", lang, vision


@pytest.fixture
def saved(parts, tmp_path):
    model, processor = flamingo_from_parts(*parts[:2], **SMALL)
    model.save_pretrained(tmp_path / "flamingo")
    processor.save_pretrained(tmp_path / "flamingo")
    return tmp_path / "flamingo"


def test_parts_keep_their_weights_and_gain_three_tokens(parts):
    _, _, lang, vision = parts
    model, processor = flamingo_from_parts(*parts[:2], **SMALL)
    config = model.config
    assert (config.eoc_token_id, config.image_token_id) == (7, 8)
    assert processor.tokenizer.pad_token_id == model.generation_config.pad_token_id == 9
    assert config.text_config.vocab_size == 10
    assert model.get_input_embeddings().weight.shape == (10, 32)
    assert model.get_output_embeddings().weight.shape == (10, 32)
    state = model.state_dict()
    for name, value in vision.state_dict().items():
        assert torch.equal(state[f"vision_encoder.{name}"], value)
    for name, value in lang.state_dict().items():
        name = name.replace("layers.", "layers.#.", 1)
        head, _, tail = name.partition("#.")
        number, _, rest = tail.partition(".")
        wrapped = f"{head}{number}.decoder_layer.{rest}" if tail else name
        assert torch.equal(state[f"lang_encoder.{wrapped}"][: len(value)], value), name
    assert [block.attn_gate.item() for block in model.gated_blocks] == [0, 0]
    assert not model.training
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())
    for part in (model.lang_encoder, model.vision_encoder):
        assert part.config._attn_implementation == "sdpa"


def test_fresh_flamingo_answers_as_its_language_model(parts):
    model, _ = flamingo_from_parts(*parts[:2], **SMALL)
    ids = torch.tensor([[1, 3, 4, 6, 5]])
    pixels = torch.randn(1, 1, 3, 16, 16)
    expected = parts[2](ids).logits
    # Not bit-equal: the head has three rows more, and another product of matrices adds up anew.
    torch.testing.assert_close(model(ids).logits[..., :7], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(model(ids, pixel_values=pixels).logits, model(ids).logits)


def test_saved_and_loaded_again(saved, parts):
    model, processor = load_flamingo(saved)
    batch = processor(
        text=["<image> a cat", "a dog"], images=[[Image.new("RGB", (20, 18), "red")], []]
    )
    again, _ = load_flamingo(str(saved))
    assert torch.equal(model(**batch).logits, again(**batch).logits)
    text = processor.batch_decode(model.generate(**batch, max_new_tokens=2))
    assert text[0].startswith("<image> a cat")
    half, _ = load_flamingo(saved, dtype="bf16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_dtype_of_parts(parts):
    model, _ = flamingo_from_parts(*parts[:2], dtype=torch.bfloat16, **SMALL)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lang_encoder.model.rotary_emb.inv_freq.dtype == torch.float32
    with pytest.raises(UserError, match="dtype is 'int3'"):
        flamingo_from_parts(*parts[:2], dtype="int3")


def test_padded_table_and_own_pad_token_stay(parts, tmp_path, make_tokenizer):
    config = OPTConfig(vocab_size=32, ffn_dim=48, word_embed_proj_dim=32, **TEXT)
    save_lang(tmp_path / "opt", make_tokenizer(pad_token="</s>"), config)
    model, processor = flamingo_from_parts(tmp_path / "opt", parts[1], **SMALL)
    assert model.get_input_embeddings().weight.shape == (32, 32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert processor.tokenizer.pad_token_id == 2 and len(processor.tokenizer) == 9


def test_whole_clip_gives_its_tower(parts, tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(text_config={**text, "num_attention_heads": 2}, vision_config=VISION)
    clip = CLIPModel(config).eval()
    clip.save_pretrained(tmp_path / "clip")
    model, processor = flamingo_from_parts(parts[0], tmp_path / "clip", **SMALL)
    pixels = torch.randn(1, 1, 1, 3, 16, 16)
    expected = clip.vision_model(pixels[0, 0]).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.encode_patches(pixels)[0, 0], expected)
    assert processor.image_processor.crop_size["height"] == 16


def test_wrong_parts_say_what_is_wrong(parts, saved, tmp_path):
    lang, vision = parts[:2]
    for arguments, message in (
        ((tmp_path / "nowhere", vision), "language model: there is no directory"),
        ((lang, "./nowhere"), "vision tower: there is no directory"),
        ((lang / "config.json", vision), "is a file; give the directory"),
        (
            (lang, lang),
            "holds a 'llama' model; the vision towers .*clip_vision_model, siglip.*dinov3_vit",
        ),
        ((saved, vision), "is a whole Flamingo"),
        ((vision, vision), "language model"),
    ):
        with pytest.raises(UserError, match=message):
            flamingo_from_parts(*arguments)
    with pytest.raises(UserError, match="cross_attn_every_n_layers is 5, but .* has 4 layers"):
        flamingo_from_parts(lang, vision, cross_attn_every_n_layers=5)
    with pytest.raises(UserError, match="no field perceiver_latent;"):
        flamingo_from_parts(lang, vision, perceiver_latent=4)
    with pytest.raises(UserError, match="media_mode is 'nxt'"):
        flamingo_from_parts(lang, vision, media_mode="nxt", cross_attn_every_n_layers=1)


def test_wrong_models_say_what_is_wrong(saved, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # None of these is asked of the hub; lang is a folder that exists.
    for name in (tmp_path / "nowhere", "nowhere", "./nowhere", "a/b/c", "lang/nowhere", ""):
        with pytest.raises(UserError):
            load_flamingo(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no config.json"):
        load_flamingo(tmp_path / "empty")
    with pytest.raises(UserError, match="holds a 'llama' model, not a Flamingo"):
        load_flamingo(parts[0])


def test_hub_id_that_is_not_there(monkeypatch):
    # As if the hub had answered, but not with this model.
    monkeypatch.setattr(hub, "_out_of_reach", lambda: "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no such directory here, and the hub did not give it"):
        load_flamingo("nobody/nothing")


@pytest.mark.parametrize("kept", [0, 5, 100, 20_000])
def test_truncated_weights(kept, saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"(?s)model\.safetensors: .*incomplete or damaged"):
        load_flamingo(saved)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_missing_file(name, saved):
    present = saved / name
    if not present.exists():  # transformers 5 may keep the image settings in another file
        present = saved / "processor_config.json"
    present.unlink()
    with pytest.raises(UserError, match="incomplete or damaged") as caught:
        load_flamingo(saved)
    assert name != "tokenizer.json" or "tokenizer.json is missing" in str(caught.value)


@pytest.mark.parametrize("name", ["run/config.yaml", "run/adapter/adapter_config.json"])
def test_a_run_or_adapter_as_model_leads_to_its_base(name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="(?s)base.*--model.*`.*tuninglab chat .*/run(/adapter)?`"):
        load_flamingo((tmp_path / name).parent)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"model_type": "flamingo"'])
def test_broken_config(text, saved):
    (saved / "config.json").write_text(text)
    with pytest.raises(UserError):
        load_flamingo(saved)


def raising(error):
    def from_pretrained(*args, **options):
        raise error

    return from_pretrained


# As torch 2.13 says it for `torch.empty(10**15)` on a CPU.
CPU_ALLOCATOR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
OUT_OF_MEMORY = (torch.OutOfMemoryError("CUDA out of memory."), CPU_ALLOCATOR, MemoryError())


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_is_told_as_that(saved, monkeypatch, error):
    monkeypatch.setattr(FlamingoForConditionalGeneration, "from_pretrained", raising(error))
    with pytest.raises(UserError, match="more memory than there is.*--enable_int8") as caught:
        load_flamingo(saved)
    assert "damaged" not in str(caught.value)


def test_the_allocator_still_says_it_so():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(10**15)


KINDS = [AttributeError, TypeError, KeyError, IndexError, RuntimeError]


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_mistakes_keep_their_traceback(saved, monkeypatch, kind):
    # Called by our model, which transformers builds in the midst of its reading.
    mistake = raising(kind("a mistake"))
    monkeypatch.setattr(flamingo, "GatedCrossAttentionBlock", mistake)
    with pytest.raises(kind, match="a mistake"):
        load_flamingo(saved)


@pytest.mark.parametrize("kind", [*KINDS, OSError, ValueError, ImportError])
def test_what_the_readers_of_files_raise_is_a_damaged_file(saved, monkeypatch, kind):
    monkeypatch.setattr(PreTrainedConfig, "from_dict", raising(kind("no such field")))
    with pytest.raises(UserError, match="(?s)no such field.*incomplete or damaged"):
        load_flamingo(saved)


def test_weights_that_do_not_fit_are_listed(saved):
    state = load_file(saved / "model.safetensors")
    state["perceiver.surplus"] = torch.ones(1)
    del state["lang_encoder.model.layers.1.gated_cross_attn_layer.attn_gate"]
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_flamingo(saved)
    assert "1 missing: lang_encoder.model.layers.1.gated_cross_attn_layer.attn_gate" in str(
        caught.value
    )
    assert "1 unexpected: perceiver.surplus" in str(caught.value)


def test_weights_of_another_shape(saved):
    config = json.loads((saved / "config.json").read_text())
    config["perceiver_latents"] = 6
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"perceiver.latents is .*4, 24.*, not .*6, 24"):
        load_flamingo(saved)
