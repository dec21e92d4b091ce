"""What the files of OpenFlamingo's releases say, at their true shapes (meta tensors)."""

import pytest
import torch

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Checkpoint
from tuninglab.models.formats.open_flamingo import describe
from tuninglab.models.formats.released import right_parts

# Shapes by hand, from the projects' module definitions.
WIDE, HEADS, LATENTS = 1024, 512, 64
PERCEIVER_LAYER = {
    "0.norm_media.weight": (WIDE,),
    "0.norm_media.bias": (WIDE,),
    "0.norm_latents.weight": (WIDE,),
    "0.norm_latents.bias": (WIDE,),
    "0.to_q.weight": (HEADS, WIDE),
    "0.to_kv.weight": (2 * HEADS, WIDE),
    "0.to_out.weight": (WIDE, HEADS),
    "1.0.weight": (WIDE,),
    "1.0.bias": (WIDE,),
    "1.1.weight": (4 * WIDE, WIDE),
    "1.3.weight": (WIDE, 4 * WIDE),
}


def block(width):
    return {
        "attn.norm.weight": (width,),
        "attn.norm.bias": (width,),
        "attn.to_q.weight": (HEADS, width),
        "attn.to_kv.weight": (2 * HEADS, WIDE),
        "attn.to_out.weight": (width, HEADS),
        "attn_gate": (1,),
        "ff.0.weight": (width,),
        "ff.0.bias": (width,),
        "ff.1.weight": (4 * width, width),
        "ff.3.weight": (width, 4 * width),
        "ff_gate": (1,),
    }


def release(path, width, layers, interval, tables, rows):
    shapes = {"perceiver.latents": (LATENTS, WIDE)}
    shapes |= {"perceiver.norm.weight": (WIDE,), "perceiver.norm.bias": (WIDE,)}
    for number in range(6):
        shapes |= {f"perceiver.layers.{number}.{n}": s for n, s in PERCEIVER_LAYER.items()}
    for number in range(interval - 1, layers, interval):
        at = f"lang_encoder.{path}.{number}.gated_cross_attn_layer."
        shapes |= {at + name: shape for name, shape in block(width).items()}
    shapes |= {f"lang_encoder.{table}.weight": (rows, width) for table in tables}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def layout_of(tensors, **extras):
    return describe(Checkpoint("checkpoint.pt", tensors, extras))


def unexplained(layout):
    return [key for key in layout.keys if key.fate in ("missing", "unexpected")]


V1 = ("model.layers", 4096, 32, 4, ["model.embed_tokens"], 32003)
MPT_7B = ("transformer.blocks", 4096, 32, 4, ["transformer.wte"], 50280)
RPJ_3B = ("gpt_neox.layers", 2560, 32, 2, ["gpt_neox.embed_in", "embed_out"], 50280)
MPT_1B = ("transformer.blocks", 2048, 24, 1, ["transformer.wte"], 50280)


# Counts of trained parameters: 9B by its config, 3B as a public training log prints it. The head of
# RedPajama is saved besides, because its name has `embed` in it.
@pytest.mark.parametrize(
    ("shape", "family", "name", "lang", "parameters"),
    [
        (V1, "llama", "OpenFlamingo-9B (v1", "huggyllama/llama-7b", 1_309_919_248),
        (MPT_7B, "mpt", "OpenFlamingo-9B-vitl-mpt7b", "anas-awadalla/mpt-7b", 1_384_781_840),
        (RPJ_3B, "gpt_neox", "rpj3b", "RedPajama-INCITE", 1_089_480_736 + 50280 * 2560),
        (MPT_1B, "mpt", "mpt1b", "transformers does not have", 1_046_992_944),
    ],
)
def test_released_models_are_known_by_their_shapes(shape, family, name, lang, parameters):
    tensors = release(*shape)
    layout = layout_of(tensors)
    _, width, layers, interval, _, rows = shape
    assert (layout.family, layout.width, layout.rows) == (family, width, rows)
    assert (layout.interval, layout.media_width) == (interval, 1024)
    assert layout.gated_layers == list(range(interval - 1, layers, interval))
    assert layout.perceiver == {
        "perceiver_depth": 6,
        "perceiver_latents": 64,
        "perceiver_heads": 8,
        "perceiver_dim_head": 64,
        "cross_attn_heads": 8,
        "cross_attn_dim_head": 64,
        "ff_mult": 4,
    }
    assert not unexplained(layout)
    used = {key.name for key in layout.with_fate("used")}
    assert sum(tensors[n].numel() for n in used) == parameters
    assert name in (layout.released or "") and lang in right_parts(layout)
    assert layout.media_mode == "previous"


@pytest.mark.parametrize(("width", "expected"), [(4096, 139_476_994), (2048, 36_708_354)])
def test_counts_of_the_parts(width, expected):
    tensors = release("model.layers", width, 4, 4, [], 0)
    layout = layout_of(tensors)
    count = {"perceiver": 0, "lang_encoder": 0}
    for key in layout.with_fate("used"):
        count[key.target.partition(".")[0]] += tensors[key.name].numel()
    assert count == {"perceiver": 63_019_008, "lang_encoder": expected}


def test_the_whole_v1_file():
    tensors = release(*V1)
    for name in [n for n in tensors if "gated_cross_attn_layer" in n]:
        number, rest = name.split("layers.")[1].split(".gated_cross_attn_layer.")
        tensors[f"lang_encoder.gated_cross_attn_layers.{number}.{rest}"] = tensors[name]
    buffers = [
        f"lang_encoder.model.layers.{number}.decoder_layer.self_attn.rotary_emb.inv_freq"
        for number in range(32)
    ]
    text = ["token_embedding.weight", "positional_embedding", "logit_scale", "attn_mask"]
    text += ["transformer.resblocks.0.attn.in_proj_weight", "text_projection", "ln_final.bias"]
    clip = [f"vision_encoder.{name}" for name in [*text, "visual.proj", "visual.ln_pre.weight"]]
    tensors |= {name: torch.empty(4, device="meta") for name in (*buffers, *clip)}
    layout = layout_of(tensors)
    assert not unexplained(layout)
    assert (layout.format, layout.media_mode) == ("open_flamingo v1", "next-v1")
    dropped = {key.name: key.reason for key in layout.with_fate("dropped")}
    # A tower of which one weight is left is not mixed into another.
    assert set(buffers + clip) <= dropped.keys() and all(dropped.values())
    assert len(layout.with_fate("used")) + len(dropped) == len(tensors) == len(layout.keys)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("vision_encoder.visual.proj", "next-v1"),
        ("vision_encoder.attn_mask", "next-v1"),
        ("lang_encoder.gated_cross_attn_layers.3.attn_gate", "next-v1"),
        ("lang_encoder.old_decoder_blocks.0.mlp.up_proj.weight", "previous"),
        ("lang_encoder.lm_head.weight", "previous"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_only_a_llama_with_what_v1_saved_is_v1(name, mode, family):
    tensors = release(*(V1 if family == "llama" else MPT_7B))
    tensors[name] = torch.empty(1, device="meta")
    layout = layout_of(tensors)
    assert layout.media_mode == (mode if family == "llama" else "previous")
    assert layout.media_reason


def test_buffers_of_every_family_are_dropped():
    for shape, names in (
        (MPT_7B, ["transformer.attn_bias", "transformer.blocks.0.decoder_layer.attn.attn_bias"]),
        (
            RPJ_3B,
            [
                "gpt_neox.layers.0.decoder_layer.attention.bias",
                "gpt_neox.layers.0.decoder_layer.attention.masked_bias",
                "gpt_neox.layers.0.decoder_layer.attention.rotary_emb.inv_freq",
                "old_decoder_blocks.0.attention.rotary_emb.inv_freq",
            ],
        ),
        (
            ("transformer.h", 64, 4, 2, ["transformer.wte"], 9),
            ["transformer.h.0.decoder_layer.attn.bias", "transformer.h.1.attn.embed_positions"],
        ),
    ):
        tensors = release(*shape) | {f"lang_encoder.{n}": torch.empty(2, 2) for n in names}
        layout = layout_of(tensors)
        dropped = [key.name for key in layout.with_fate("dropped")]
        assert dropped == [f"lang_encoder.{name}" for name in names]


def test_a_copy_is_used_alone_and_must_equal_the_other():
    def real():
        small = release("model.layers", 16, 4, 2, ["model.embed_tokens"], 9)
        return {name: torch.randn(tensor.shape) for name, tensor in small.items()}

    tensors = real()
    name = "lang_encoder.model.layers.3.gated_cross_attn_layer.attn.to_q.weight"
    alias = "lang_encoder.gated_cross_attn_layers.3.attn.to_q.weight"
    copied = layout_of(tensors | {alias: tensors[name].clone()})
    assert [(k.name, k.fate) for k in copied.keys if k.name == alias] == [(alias, "dropped")]
    with pytest.raises(UserError, match="they differ in the file"):
        layout_of(tensors | {alias: tensors[name] + 1})
    # Only copies are left: the token table tells the family.
    own = ".gated_cross_attn_layer."
    only = {
        n.replace("model.layers", "gated_cross_attn_layers").replace(own, ".") if own in n else n: t
        for n, t in tensors.items()
    }
    layout = layout_of(only)
    assert (layout.family, layout.gated_layers) == ("llama", [1, 3])
    assert name in [key.target for key in layout.with_fate("used")]
    # embed_out and lm_head are one head.
    neox = release("gpt_neox.layers", 16, 4, 2, ["gpt_neox.embed_in", "embed_out"], 9)
    target = "lang_encoder.lm_head.weight"
    assert target in [key.target for key in layout_of(neox).with_fate("used")]
    heads = {target: torch.ones(9, 16), "lang_encoder.embed_out.weight": torch.zeros(9, 16)}
    with pytest.raises(UserError, match="embed_out.weight and lang_encoder.lm_head.weight"):
        layout_of(neox | heads)


def test_what_is_missing_or_unknown_is_listed():
    tensors = release(*V1)
    gone = ["perceiver.layers.2.1.3.weight", "perceiver.norm.bias"]
    gone += ["lang_encoder.model.layers.7.gated_cross_attn_layer.ff_gate"]
    for name in gone:
        del tensors[name]
    strange = ["perceiver.frame_embs", "lang_encoder.model.layers.0.gated_cross_attn_layer.extra"]
    strange += ["text_encoder.weight", "lang_encoder.peft.weight", "lang_encoder.h.0.mlp.weight"]
    tensors |= {name: torch.empty(1, device="meta") for name in strange}
    layout = layout_of(tensors)
    assert sorted(key.name for key in layout.with_fate("missing")) == sorted(gone)
    assert [key.name for key in layout.with_fate("unexpected")] == strange
    assert all(key.reason for key in unexplained(layout))


def test_files_that_are_no_open_flamingo():
    tensors = release(*V1)
    perceiver = {name: t for name, t in tensors.items() if name.startswith("perceiver.")}
    blocks = {name: t for name, t in tensors.items() if name not in perceiver}
    lost = {name: t for name, t in tensors.items() if ".7." not in name}
    for wrong, message in (
        (perceiver, "no OpenFlamingo checkpoint"),
        (blocks, r"no perceiver\.\*"),
        (lost, "gated blocks before layers 3, 11"),
        ({n: t for n, t in tensors.items() if n != "perceiver.latents"}, "perceiver.latents"),
        (tensors | release(*MPT_7B), "found model.layers, transformer.blocks"),
    ):
        with pytest.raises(UserError, match=message):
            layout_of(wrong)


def test_what_our_writer_noted_is_believed():
    noted = {"tuninglab": {"perceiver_heads": 4, "cross_attn_heads": 2, "media_mode": "next-v1"}}
    layout = layout_of(release(*MPT_7B), _metadata=noted)
    assert layout.media_mode == "next-v1"
    assert (layout.perceiver["perceiver_heads"], layout.perceiver["perceiver_dim_head"]) == (4, 128)
    assert layout.perceiver["cross_attn_dim_head"] == 256


@pytest.mark.parametrize("noted", [3, {"perceiver_heads": 0}, {"media_mode": "x"}, {"a": []}])
def test_notes_that_make_no_sense_are_not_believed(noted):
    tensors = release(*MPT_7B)
    layout = layout_of(tensors, _metadata={"tuninglab": noted})
    assert (layout.perceiver, layout.media_mode) == (layout_of(tensors).perceiver, "previous")


@pytest.mark.parametrize(
    "name",
    [
        "perceiver.latents",
        "perceiver.layers.0.0.to_q.weight",
        "lang_encoder.transformer.wte.weight",
        "lang_encoder.transformer.blocks.3.gated_cross_attn_layer.attn.norm.weight",
        "lang_encoder.transformer.blocks.3.gated_cross_attn_layer.ff.1.weight",
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 4)])
def test_weights_of_another_shape(name, shape):
    tensors = release(*MPT_7B) | {name: torch.empty(shape)}
    with pytest.raises(UserError, match="expected . dimensions"):
        layout_of(tensors)
    checkpoint = Checkpoint("checkpoint.pt", tensors)
    with pytest.raises(UserError, match="^checkpoint.pt: "), checkpoint.named():
        describe(checkpoint)
