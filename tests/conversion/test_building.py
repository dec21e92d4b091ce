import json
import re

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, CLIPVisionModel, LlamaConfig, PreTrainedTokenizerFast

from tests.tiny import TOWERS, save_tower
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import load_adapter, save_adapter
from tuninglab.config import ConvertConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.conversion.building import flamingo_of
from tuninglab.conversion.writing import write_open_flamingo
from tuninglab.errors import UserError
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.formats import otter
from tuninglab.models.formats.open_clip import tower_keys
from tuninglab.models.formats.open_flamingo import describe
from tuninglab.models.formats.reading import read_checkpoint

BASE, ROWS = 60, 63  # the words, and with <|endofchunk|> 60, <image> 61, <PAD> 62
LAYERS = {
    "llama": "model.layers",
    "mpt": "transformer.blocks",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "gptj": "transformer.h",
}
BRIDGE = {"perceiver_heads": 8, "perceiver_dim_head": 4, "cross_attn_heads": 8}
BRIDGE |= {"cross_attn_dim_head": 4}


def save_tokenizer(folder, words=BASE, **special):
    table = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>"])}
    table |= {f"w{i}": i for i in range(3, words)}
    core = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names, **special).save_pretrained(folder)


@pytest.fixture
def make_source(make_flamingo):
    """A function (family, **configuration) -> a Flamingo of 63 rows with OpenFlamingo's heads."""

    def make(family, **options):
        model = make_flamingo(family, **BRIDGE, **options)
        model.lang_encoder.resize_token_embeddings(ROWS, mean_resizing=False)
        with torch.no_grad():
            # The rows of new tokens as training left them.
            model.get_input_embeddings().weight[BASE:].normal_()
        return model

    return make


def released(model):
    """The state dict as OpenFlamingo 2.0.1 releases it: bridge and names with `embed`."""
    state = {}
    for name, tensor in model.state_dict().items():
        own = name.removeprefix("lang_encoder.")
        trained = ".wte." in name or ("embed" in name and name != own)
        if name.startswith("perceiver.") or "gated_cross_attn_layer" in name or trained:
            state[name] = tensor
        elif own == "lm_head.weight" and "neox" in type(model.lang_encoder).__module__:
            state["lang_encoder.embed_out.weight"] = tensor
    return state


def with_aliases(model, family):
    """The state dict in full as the modules of 2.0.1 have it, with its second names."""
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("vision_encoder.")}
    layers = f"lang_encoder.{LAYERS[family]}."
    for name, tensor in list(state.items()):
        for own, alias in (
            (".gated_cross_attn_layer.", "gated_cross_attn_layers"),
            (".decoder_layer.", "old_decoder_blocks"),
        ):
            if name.startswith(layers) and own in name:
                number, rest = name.removeprefix(layers).split(own)
                state[f"lang_encoder.{alias}.{number}.{rest}"] = tensor
    return state


def open_clip_names(tower, prefix):
    """A tower's weights by OpenCLIP's names; in_proj is q, k, v on top of each other."""
    mine = {f"vision_encoder.{name}": tensor for name, tensor in tower.state_dict().items()}
    outside = ["class_embedding", "positional_embedding", "conv1.weight"]
    outside += [f"{norm}.{kind}" for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")]
    inside = ["attn.in_proj_weight", "attn.in_proj_bias"]
    for module in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
        inside += [f"{module}.weight", f"{module}.bias"]
    count = tower.config.num_hidden_layers
    names = [*outside, *(f"transformer.resblocks.{i}.{n}" for i in range(count) for n in inside)]
    state = {}
    for key in tower_keys([prefix + name for name in names], prefix):
        state[key.name] = torch.cat(
            [t for t in (state.get(key.name), mine[key.target]) if t is not None]
        )
    return state


def convert(state, parts, tmp_path, **options):
    torch.save(state, tmp_path / "checkpoint.pt")
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pt")
    layout = describe(checkpoint)
    assert not layout.with_fate("unexpected") and not layout.with_fate("missing")
    choices = Choices()
    lang, tower = map(str, parts)
    sources = ConvertConfig(lang_encoder=lang, vision_encoder=tower, **options)
    model, processor = flamingo_of(checkpoint, layout, sources, choices)
    return model, processor, layout, {entry["choice"]: entry for entry in choices.made}


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("full", [False, True], ids=["release", "full"])
def test_every_family_computes_what_its_source_computes(
    family, full, make_source, make_batch, take_apart, tmp_path
):
    source = make_source(family)
    # The rows that the base had, padded for MPT, whose table shrinks to the checkpoint's.
    lang, clip = take_apart(source, tmp_path, 70 if family == "mpt" else BASE)
    save_tokenizer(lang)
    state = with_aliases(source, family) if full else released(source)
    model, processor, layout, said = convert(state, (lang, clip), tmp_path)
    assert (layout.family, layout.interval, layout.rows) == (family, 2, ROWS)
    assert (model.config.eoc_token_id, model.config.image_token_id) == (60, 61)
    assert processor.tokenizer.pad_token_id == model.config.text_config.pad_token_id == 62
    assert model.get_output_embeddings().weight.shape[0] == ROWS
    batch = make_batch([[1, 4], [3]])
    expected, logits = source(**batch).logits, model(**batch).logits
    known = ROWS if full or family not in ("llama", "gptj") else BASE
    assert torch.equal(logits[..., :known], expected[..., :known])
    head = model.get_output_embeddings().weight
    if known == BASE:
        assert torch.allclose(head[BASE:], head[:BASE].mean(0), atol=1e-6)
        assert "of no use" not in said["3 new rows of the output layer"]["reason"]


@pytest.mark.parametrize(
    ("family", "tower"),
    [(family, "clip_vision_model") for family in LAYERS]
    + [("llama", tower) for tower in TOWERS if "clip" not in tower],
)
def test_there_and_back_is_bit_equal(family, tower, make_flamingo, take_apart, tmp_path):
    # Heads that OpenFlamingo does not have, and a table that is padded beyond the tokenizer.
    source = make_flamingo(family, media_mode="next-v1", tower=tower)
    lang, clip = take_apart(source, tmp_path)
    save_tokenizer(lang)
    source.save_pretrained(tmp_path / "source")
    tensors = read_checkpoint(tmp_path / "source").tensors
    report = write_open_flamingo(source.config, tensors, tmp_path / "written.pt")
    state = torch.load(tmp_path / "written.pt", weights_only=True)
    assert report["keys"] == sorted(state)
    model, _, layout, _ = convert(state, (lang, clip), tmp_path)
    ours, theirs = model.state_dict(), source.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    numbers = {name: getattr(source.config, name) for name in layout.perceiver}
    assert (layout.perceiver, layout.media_mode) == (numbers, "next-v1")
    told = [note for note in report["notes"] if tower in note]
    assert bool(told) == ("clip" not in tower) and all("towers of open_clip" in n for n in told)


def test_v1_with_a_whole_clip(make_source, make_batch, take_apart, tmp_path):
    source = make_source("llama", media_mode="next-v1")
    other = CLIPVisionModel(source.config.vision_config)
    state = released(source) | open_clip_names(source.vision_encoder, "vision_encoder.visual.")
    for name in list(state):
        if "gated_cross_attn_layer" in name:
            alias = name.replace("model.layers", "gated_cross_attn_layers")
            state[alias.replace(".gated_cross_attn_layer.", ".")] = state[name]
    state["vision_encoder.logit_scale"] = torch.ones(())
    state["vision_encoder.attn_mask"] = torch.zeros(4, 4)
    state["vision_encoder.transformer.resblocks.0.ln_1.weight"] = torch.ones(4)
    state["vision_encoder.visual.proj"] = torch.ones(24, 4)
    layer = "lang_encoder.model.layers.0.decoder_layer.self_attn.rotary_emb.inv_freq"
    state[layer] = torch.ones(4)
    lang, clip = take_apart(source, tmp_path)
    save_tokenizer(lang)
    other.save_pretrained(clip)
    model, _, layout, said = convert(state, (lang, clip), tmp_path)
    assert (layout.format, layout.media_mode) == ("open_flamingo v1", "next-v1")
    # The tower in the file wins, as load_state_dict made it win.
    batch = make_batch([[1, 4], [3]])
    assert torch.equal(model(**batch).logits, source(**batch).logits)
    assert said["vision tower"]["value"] == "that in the checkpoint"


def test_a_converted_llama_learns_its_new_rows_and_saves_them(make_source, take_apart, tmp_path):
    source = make_source("llama")
    lang, clip = take_apart(source, tmp_path, BASE)
    save_tokenizer(lang)
    model, processor, _, said = convert(released(source), (lang, clip), tmp_path)
    assert "--tuning_config.train_new_tokens" in said["3 new rows of the output layer"]["reason"]
    model.save_pretrained(tmp_path / "base")
    tuned = tune(model, TuningConfig(lora_target_modules=["q_proj"], train_new_tokens=True))
    ids = torch.tensor([[1, 5, 60, 7]])
    # Logits of the two tokens, and of one that stays as it was.
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "lm_head" in name:
                parameter.add_(1.0)
        expected = tuned(ids).logits
    save_adapter(tuned, tmp_path / "adapter")
    base = type(model).from_pretrained(tmp_path / "base").eval()
    before = base(ids).logits
    again = load_adapter(base, tmp_path / "adapter").eval()(ids).logits
    torch.testing.assert_close(again, expected)
    assert (again - before)[..., 60:62].abs().min() > 1e-4
    torch.testing.assert_close(again[..., :60], before[..., :60])


def test_sixteen_bits_are_said_and_refused_where_they_overflow(make_source, take_apart, tmp_path):
    source = make_source("llama")
    lang, clip = take_apart(source, tmp_path)
    save_tokenizer(lang)
    state = released(source)
    model, _, _, said = convert(state, (lang, clip), tmp_path, dtype="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert "rounded" in said["number format"]["reason"]
    assert "--dtype fp32" in said["number format"]["reason"]
    _, _, _, said = convert(state, (lang, clip), tmp_path)
    assert said["number format"]["reason"] == "no value of the checkpoint was rounded"
    state["perceiver.latents"] = torch.full_like(state["perceiver.latents"], 1e6)
    with pytest.raises(UserError, match=r"perceiver.latents has values up to 1e\+06.*bf16"):
        convert(state, (lang, clip), tmp_path, dtype="fp16")


@pytest.mark.parametrize(
    ("words", "special", "rows", "pad"),
    [
        (60, {}, 63, "<PAD>"),
        (60, {"pad_token": "</s>"}, 63, "<PAD>"),
        (61, {}, 63, "</s>"),
        (61, {"pad_token": "<unk>"}, 63, "<unk>"),
    ],
)
def test_the_rows_decide_about_the_pad_token(
    words, special, rows, pad, make_source, take_apart, tmp_path
):
    source = make_source("llama")
    lang, clip = take_apart(source, tmp_path, words)
    save_tokenizer(lang, words, **special)
    model, processor, _, said = convert(released(source), (lang, clip), tmp_path)
    assert processor.tokenizer.pad_token == said["pad token"]["value"] == pad
    assert model.get_input_embeddings().num_embeddings == rows
    assert model.config.eoc_token_id == words


def test_a_base_that_has_the_tokens_keeps_them(make_source, take_apart, tmp_path):
    source = make_source("llama")
    lang, clip = take_apart(source, tmp_path)
    save_tokenizer(tmp_path / "plain")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "plain")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|endofchunk|>", "<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    tokenizer.save_pretrained(tmp_path / "words")
    model, processor, _, _ = convert(
        released(source), (lang, clip), tmp_path, tokenizer=str(tmp_path / "words")
    )
    assert len(processor.tokenizer) == ROWS and model.config.image_token_id == 61


def test_wrong_parts_name_the_mismatch_and_the_right_ones(make_source, take_apart, tmp_path):
    source = make_source("llama")
    lang, clip = take_apart(source, tmp_path)
    save_tokenizer(lang)
    state = released(source)
    opt, narrow, short = (tmp_path / name for name in ("opt", "narrow", "short"))
    take_apart(make_source("opt"), opt)
    small = {"vocab_size": 63, "intermediate_size": 16, "num_attention_heads": 4}
    for folder, width, layers in ((narrow, 16, 4), (short, 32, 6)):
        config = LlamaConfig(hidden_size=width, num_hidden_layers=layers, **small)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        # Found wrong by its configuration: the weights are not even read.
        (folder / "model.safetensors").write_bytes(b"")
    save_tokenizer(tmp_path / "few", 40)
    right = "The right language model is a llama 32 wide with 4 to 5 layers and a token table of 63"
    for parts, options, message in (
        ((opt / "lang", clip), {}, "it is a opt, not a llama"),
        ((narrow, clip), {}, "it is 16 wide, not 32"),
        ((short, clip), {}, "it has 6 layers, not 4 to 5"),
        ((lang, clip), {"tokenizer": str(tmp_path / "few")}, "42 with those .* has 63 rows"),
    ):
        if options:
            take_apart(source, tmp_path, 40)
        with pytest.raises(UserError, match=f"(?s){message}.*{right}"):
            convert(state, parts, tmp_path, **options)
    save_tower(tmp_path / "thin", "clip_vision_model", hidden_size=16)
    save_tower(tmp_path / "dino", "dinov2")
    take_apart(source, tmp_path)
    with pytest.raises(UserError, match="thin is 16 wide, but the Perceiver of .* takes 24"):
        convert(state, (lang, tmp_path / "thin"), tmp_path)
    with pytest.raises(UserError, match="dino is of kind dinov2, .* trained on a clip_vision_mod"):
        convert(state, (lang, tmp_path / "dino"), tmp_path)


def test_tied_tables_that_differ_are_refused(make_source, take_apart, tmp_path):
    source = make_source("mpt")
    lang, clip = take_apart(source, tmp_path)
    save_tokenizer(lang)
    state = released(source) | {"lang_encoder.lm_head.weight": torch.ones(ROWS, 32)}
    with pytest.raises(UserError, match="differ in the file, but the language model ties"):
        convert(state, (lang, clip), tmp_path)


def test_configuration_is_whole(make_source, take_apart, tmp_path):
    source = make_source("gpt_neox")
    lang, clip = take_apart(source, tmp_path)
    save_tokenizer(lang)
    model, _, _, _ = convert(released(source), (lang, clip), tmp_path)
    ours, theirs = model.config, source.config
    assert isinstance(ours, FlamingoConfig)
    for name in ("cross_attn_every_n_layers", "media_mode", *describe_fields(ours)):
        assert getattr(ours, name) == getattr(theirs, name), name


def describe_fields(config):
    return [n for n in vars(config) if n.startswith(("perceiver_", "cross_attn_", "ff_"))]


def test_an_otter_is_whole_in_its_directory(make_source, make_batch, tmp_path):
    source = make_source("llama")
    folder = tmp_path / "otter"
    folder.mkdir()
    state = {}
    for name, tensor in source.state_dict().items():
        if name.startswith("vision_encoder."):
            name = name.replace("vision_encoder.", "vision_encoder.vision_model.")
        elif name.startswith("perceiver.layers."):
            name = re.sub(r"layers\.(\d+)\.0\.", r"layers.\1.", name)
            name = re.sub(r"layers\.(\d+)\.1\.(\d)", r"layers.\1.feed_forward.\2", name)
        elif ".gated_cross_attn_layer.ff." in name:
            name = name.replace(".ff.", ".feed_forward.")
        state[name] = tensor
    torch.save(state, folder / "pytorch_model.bin")
    text, vision = source.config.text_config.to_dict(), source.config.vision_config.to_dict()
    config = {"model_type": "otter", "text_config": text, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps({**config, "cross_attn_every_n_layers": 2}))
    checkpoint = read_checkpoint(folder)
    layout = otter.describe(checkpoint)
    with pytest.raises(UserError, match="holds no tokenizer: give --tokenizer"):
        flamingo_of(checkpoint, layout, ConvertConfig(), Choices())
    # 59 words, then <|endofchunk|>, <image>, <answer>, <PAD>.
    save_tokenizer(folder, BASE - 1)
    model, processor = flamingo_of(checkpoint, layout, ConvertConfig(), Choices())
    assert processor.tokenizer.convert_tokens_to_ids("<answer>") == 61
    assert (model.config.eoc_token_id, model.config.image_token_id) == (59, 60)
    model.config.image_token_id = source.config.image_token_id
    batch = make_batch([[1, 4], [3]])
    assert torch.equal(model(**batch).logits, source(**batch).logits)
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(**batch).logits, source(**batch).logits)
    # Parts of the weights gone: said, and not filled with chance.
    del state["lang_encoder.model.norm.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    checkpoint = read_checkpoint(folder)
    with pytest.raises(UserError, match="is incomplete: 1 weights are not there"):
        flamingo_of(checkpoint, otter.describe(checkpoint), ConvertConfig(), Choices())


def test_a_tower_of_open_clip_and_a_safetensors_file(make_source, make_batch, take_apart, tmp_path):
    source = make_source("llama")
    lang, _ = take_apart(source, tmp_path)
    save_tokenizer(lang)
    # OpenCLIP's own file does not tell the heads; a directory with its configuration does.
    tower = tmp_path / "tower"
    tower.mkdir()
    width = source.config.vision_config.hidden_size
    heads = source.config.vision_config.num_attention_heads
    settings = {"vision_cfg": {"head_width": width // heads}, "quick_gelu": True}
    (tower / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    save_file(
        {n: t.contiguous() for n, t in open_clip_names(source.vision_encoder, "visual.").items()},
        tower / "open_clip_model.safetensors",
    )
    save_file(released(source), tmp_path / "release.safetensors")
    checkpoint = read_checkpoint(tmp_path / "release.safetensors")
    sources = ConvertConfig(lang_encoder=str(lang), vision_encoder=str(tower))
    model, _ = flamingo_of(checkpoint, describe(checkpoint), sources, Choices())
    batch = make_batch([[1, 4], [3]])
    assert torch.equal(model(**batch).logits, source(**batch).logits)


def test_a_full_file_wins_over_the_language_model_and_leaves_its_files_alone(
    make_source, make_batch, take_apart, tmp_path
):
    source = make_source("llama")
    lang, clip = take_apart(source, tmp_path, BASE)
    save_tokenizer(lang)
    other = AutoModelForCausalLM.from_pretrained(lang)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.save_pretrained(lang)
    # Weights are mapped from these files into memory, and overwritten there.
    before = (lang / "model.safetensors").read_bytes()
    model, _, _, _ = convert(with_aliases(source, "llama"), (lang, clip), tmp_path)
    batch = make_batch([[1, 4], [3]])
    assert torch.equal(model(**batch).logits, source(**batch).logits)
    assert (lang / "model.safetensors").read_bytes() == before
