import re

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from tuninglab.errors import UserError
from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration
from tuninglab.models.formats.layout import Checkpoint
from tuninglab.models.formats.otter import describe, parts

INNER, MEDIA, WIDTH, ROWS, LATENTS = 64, 24, 32, 43, 5
VISION = {"hidden_size": MEDIA, "intermediate_size": 32, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "hidden_act": "quick_gelu"}
TEXT = {
    "llama": {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "vocab_size": 40, "tie_word_embeddings": False},
    "mpt": {"d_model": WIDTH, "n_layers": 4, "n_heads": 4, "max_seq_len": 64, "vocab_size": ROWS}
    | {"attn_config": {"attn_impl": "torch", "alibi": True}, "tie_word_embeddings": True}
    | {"norm_type": "low_precision_layernorm", "no_bias": True, "init_device": "cpu"},
}
LAYERS = {"llama": "model.layers", "mpt": "transformer.blocks"}


def feed_forward(width):
    up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
    return nn.ModuleList([nn.LayerNorm(width), up, nn.GELU(), down])


def attend(query, key, value, mask=None):
    """Eight heads, softmax of scaled products."""
    parts = (x.unflatten(-1, (8, -1)).transpose(-2, -3) for x in (query, key, value))
    query, key, value = parts
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e30)
    return (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2)


class OtterPerceiverLayer(nn.Module):
    """Attention and feed-forward in one module, as in Otter."""

    def __init__(self):
        super().__init__()
        self.norm_media, self.norm_latents = nn.LayerNorm(MEDIA), nn.LayerNorm(MEDIA)
        self.to_q = nn.Linear(MEDIA, INNER, bias=False)
        self.to_kv = nn.Linear(MEDIA, 2 * INNER, bias=False)
        self.to_out = nn.Linear(INNER, MEDIA, bias=False)
        self.feed_forward = feed_forward(MEDIA)

    def forward(self, media, latents):
        normed = self.norm_latents(latents)
        key, value = self.to_kv(torch.cat([self.norm_media(media), normed], -2)).chunk(2, -1)
        latents = self.to_out(attend(self.to_q(normed), key, value)) + latents
        x = latents
        for layer in self.feed_forward:
            x = layer(x)
        return x + latents


class OtterBlock(nn.Module):
    """A gated block as in Otter, for text that all sees the one image."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Module()
        self.attn.norm = nn.LayerNorm(WIDTH)
        self.attn.to_q = nn.Linear(WIDTH, INNER, bias=False)
        self.attn.to_kv = nn.Linear(MEDIA, 2 * INNER, bias=False)
        self.attn.to_out = nn.Linear(INNER, WIDTH, bias=False)
        self.attn_gate, self.ff_gate = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.feed_forward = feed_forward(WIDTH)

    def forward(self, x, media):
        key, value = self.attn.to_kv(media).chunk(2, -1)
        update = self.attn.to_out(attend(self.attn.to_q(self.attn.norm(x)), key, value))
        x = update * self.attn_gate.tanh() + x
        before = x
        for layer in self.feed_forward:
            x = layer(x)
        return x * self.ff_gate.tanh() + before


@pytest.fixture(params=["llama", "mpt"])
def otter(request):
    """A tiny Otter: its checkpoint, and its Perceiver layers, final norm and gated blocks."""
    family = request.param
    torch.manual_seed(0)
    text = AutoConfig.for_model(family, **TEXT[family] | {"vocab_size": ROWS})
    lang = AutoModelForCausalLM.from_config(text)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    perceiver = nn.ModuleDict(
        {"layers": nn.ModuleList([OtterPerceiverLayer(), OtterPerceiverLayer()])}
    )
    perceiver["norm"] = nn.LayerNorm(MEDIA)
    blocks = {1: OtterBlock(), 3: OtterBlock()}
    tensors = {f"vision_encoder.vision_model.{n}": t for n, t in tower.state_dict().items()}
    tensors["vision_encoder.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    tensors["perceiver.latents"] = torch.randn(LATENTS, MEDIA)
    tensors |= {f"perceiver.{name}": value for name, value in perceiver.state_dict().items()}
    stem = f"lang_encoder.{LAYERS[family]}."
    for name, value in lang.state_dict().items():
        name = re.sub(
            rf"^{re.escape(stem)}(\d+)\.", rf"{stem}\1.decoder_layer.", f"lang_encoder.{name}"
        )
        tensors[name] = value
    if family == "mpt":
        del tensors["lang_encoder.lm_head.weight"]  # tied, and without a name in MosaicML's class
    else:
        for number in range(4):
            name = f"{stem}{number}.decoder_layer.self_attn.rotary_emb.inv_freq"
            tensors[name] = torch.ones(4)
    for number, block in blocks.items():
        for name, value in block.state_dict().items():
            tensors[f"{stem}{number}.gated_cross_attn_layer.{name}"] = value
    config = {"model_type": "otter", "cross_attn_every_n_layers": 2, "vision_config": VISION}
    config["text_config"] = {**TEXT[family], "model_type": family, "_name_or_path": "somewhere"}
    config["text_config"] |= {
        "max_length": 20,
        "use_cache": False,
        "transformers_version": "4.30.1",
    }
    return Checkpoint("dir", tensors, {"config": config}), perceiver, blocks


def test_every_key_finds_its_place(otter):
    checkpoint, _, _ = otter
    layout = describe(checkpoint)
    text, vision = parts(checkpoint, layout)
    assert text["vocab_size"] == ROWS
    assert not {"max_length", "use_cache", "_name_or_path", "transformers_version"} & set(text)
    skeleton = FlamingoForConditionalGeneration(
        FlamingoConfig(
            text_config=AutoConfig.for_model(**text),
            vision_config=AutoConfig.for_model(**vision),
            cross_attn_every_n_layers=layout.interval,
            image_token_id=ROWS - 2,
            eoc_token_id=ROWS - 3,
            **layout.perceiver,
        )
    )
    state = skeleton.state_dict()
    used = {key.target: checkpoint.tensors[key.name] for key in layout.with_fate("used")}
    tied = {"lang_encoder.lm_head.weight"} if layout.family == "mpt" else set()
    assert set(used) == set(state) - tied
    assert all(state[name].shape == value.shape for name, value in used.items())
    assert len(layout.keys) == len(checkpoint.tensors)
    assert layout.with_fate("unexpected") == []
    dropped = {key.name.rpartition(".")[2] for key in layout.with_fate("dropped")}
    assert dropped == {"position_ids", *(["inv_freq"] if layout.family == "llama" else [])}
    assert (layout.width, layout.media_width, layout.rows) == (WIDTH, MEDIA, ROWS)
    assert (layout.gated_layers, layout.interval, layout.released) == ([1, 3], 2, None)
    assert layout.media_mode == "previous"
    assert "<|endofchunk|>, <image>, <answer>, then <PAD>" in layout.facts[0]
    assert "somewhere" in layout.facts[-1]


@torch.no_grad()
def test_perceiver_and_gated_blocks_compute_what_otters_do(otter):
    checkpoint, perceiver, blocks = otter
    layout = describe(checkpoint)
    text, vision = parts(checkpoint, layout)
    config = FlamingoConfig(
        text_config=AutoConfig.for_model(**text),
        vision_config=AutoConfig.for_model(**vision),
        cross_attn_every_n_layers=2,
        image_token_id=ROWS - 2,
        eoc_token_id=ROWS - 3,
        **layout.perceiver,
    )
    model = FlamingoForConditionalGeneration(config).eval()
    used = {key.target: checkpoint.tensors[key.name] for key in layout.with_fate("used")}
    model.load_state_dict(used, strict=False)
    media = torch.randn(2, 1, 1, 4, MEDIA)
    latents = checkpoint.tensors["perceiver.latents"].expand(2, -1, -1)
    for layer in perceiver["layers"]:
        latents = layer(media[:, 0, 0], latents)
    latents = perceiver["norm"](latents)
    ours = model.perceiver(media)
    torch.testing.assert_close(ours[:, 0], latents, atol=1e-5, rtol=1e-5)
    # Text of which all stands after the one image.
    seen = {}
    hooks = [
        block.register_forward_hook(lambda _, args, out, n=n: seen.update({n: (args[0], out)}))
        for n, block in enumerate(model.gated_blocks)
    ]
    ids = torch.full((2, 6), 3)
    ids[:, 0] = ROWS - 2
    model(input_ids=ids, image_features=ours)
    assert len(hooks) == len(seen) == 2
    for number, theirs in enumerate(blocks.values()):
        before, after = seen[number]
        torch.testing.assert_close(after, theirs(before, latents), atol=1e-5, rtol=1e-5)


def test_the_released_sizes_are_known():
    shapes = {
        "lang_encoder.model.embed_tokens.weight": (32004, 4096),
        "perceiver.latents": (64, 1024),
        "perceiver.layers.5.norm_media.weight": (1024,),
        "perceiver.layers.0.norm_media.weight": (1024,),
        "perceiver.layers.0.to_q.weight": (512, 1024),
        "perceiver.layers.0.feed_forward.1.weight": (4096, 1024),
    }
    for layer in range(3, 32, 4):
        block = f"lang_encoder.model.layers.{layer}.gated_cross_attn_layer"
        shapes |= {f"{block}.attn_gate": (1,), f"{block}.attn.to_q.weight": (512, 4096)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    layout = describe(Checkpoint("otter", tensors))
    assert "LLaMA-7B" in layout.released
    defaults = FlamingoConfig()
    assert layout.perceiver == {name: getattr(defaults, name) for name in layout.perceiver}
    assert len(layout.perceiver) == 7


def test_what_cannot_be_computed_is_refused(otter):
    checkpoint, _, _ = otter

    def with_(extra=None, config=None, without=""):
        tensors = {n: t for n, t in checkpoint.tensors.items() if not without or without not in n}
        tensors |= extra or {}
        return Checkpoint("there", tensors, {"config": config} if config else {})

    with pytest.raises(UserError, match="video Otter.*frame_embs"):
        describe(with_({"perceiver.frame_embs": torch.ones(2, MEDIA)}))
    with pytest.raises(UserError, match="merge_and_unload"):
        describe(with_({"lang_encoder.base_model.model.x": torch.ones(1)}))
    with pytest.raises(UserError, match="MosaicGPT.*not in transformers"):
        describe(with_(config={"text_config": {"architectures": ["MosaicGPT"]}}))
    with pytest.raises(UserError, match="no whole Otter"):
        describe(with_(without="perceiver.latents"))
    with pytest.raises(UserError, match="no gated block"):
        describe(with_(without="gated_cross_attn"))
    with pytest.raises(UserError, match="before layers 1, 5; .*Blocks are missing"):
        stem = next(n for n in checkpoint.tensors if ".1.gated_cross_attn_layer.attn_gate" in n)
        more = {stem.replace(".1.", ".5."): torch.ones(1)}
        describe(with_(more, without=".3.gated_cross_attn"))
    with pytest.raises(UserError, match="no perceiver.layers"):
        describe(with_(without="perceiver.layers"))
    with pytest.raises(UserError, match="config.json is missing.*--lang_encoder"):
        parts(with_(), describe(checkpoint))
    with pytest.raises(UserError, match="no text_config"):
        parts(with_(config={"model_type": "otter"}), describe(checkpoint))
    strange = ["lm_head.weight", "perceiver.extra", "vision_encoder.x", "lang_encoder.y"]
    layout = describe(with_({name: torch.ones(1) for name in strange}))
    assert [key.name for key in layout.with_fate("unexpected")] == strange


def test_aliases_and_the_mode_of_early_conversions(otter):
    checkpoint, _, _ = otter
    checkpoint.tensors["lang_encoder.old_decoder_blocks.0.x"] = torch.ones(1)
    checkpoint.extras["config"] |= {"model_type": "flamingo", "only_attend_previous": False}
    layout = describe(checkpoint)
    assert layout.media_mode == "next-v1" and "only_attend_previous" in layout.media_reason
    assert layout.with_fate("dropped")[-1].name == "lang_encoder.old_decoder_blocks.0.x"
