import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tuninglab.errors import UserError
from tuninglab.models.formats.open_clip import clip_keys, load_tower, tower_config, tower_keys

WIDTH, LAYERS, PATCH, SIDE = 128, 2, 4, 12
TEXT = ("token_embedding.weight", "positional_embedding", "text_projection", "logit_scale")
TEXT += ("transformer.resblocks.0.attn.in_proj_weight", "ln_final.weight", "attn_mask")


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 3 * WIDTH))
        self.mlp.add_module("act", activation)
        self.mlp.add_module("c_proj", nn.Linear(3 * WIDTH, WIDTH))

    def forward(self, x):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """A visual tower as open_clip computes it, up to but without ln_post."""

    def __init__(self, activation):
        super().__init__()
        tokens = (SIDE // PATCH) ** 2 + 1
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(tokens, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(activation) for _ in range(LAYERS))
        self.proj = nn.Parameter(torch.randn(WIDTH, 8))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return x[:, 1:]


def tower(activation=None):
    torch.manual_seed(0)
    made = Tower(activation or QuickGELU())
    for parameter in made.parameters():
        # Norms and biases away from 1 and 0, so that a swapped pair shows.
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made


def settings(**model):
    vision = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "patch_size": PATCH}
    return {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, **model}}


@torch.no_grad()
def assert_same_tokens(reference, model):
    pixels = torch.randn(2, 3, SIDE, SIDE)
    tokens = model(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(tokens, reference(pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("activation", "model", "act"),
    [(QuickGELU(), {"quick_gelu": True}, "quick_gelu"), (nn.GELU(), {}, "gelu")],
)
def test_a_directory_gives_the_same_tokens(tmp_path, activation, model, act):
    reference = tower(activation)
    state = {f"visual.{name}": value for name, value in reference.state_dict().items()}
    state |= {name: torch.ones(2) for name in TEXT}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    content = settings(**model) | {"preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    loaded, processor = load_tower(tmp_path)
    assert_same_tokens(reference, loaded)
    assert (loaded.config.hidden_act, loaded.config.num_attention_heads) == (act, 2)
    assert not loaded.training
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_std) == [1, 2, 3]
    assert processor.crop_size == {"height": SIDE, "width": SIDE}
    assert torch.equal(
        loaded.post_layernorm.weight, reference.ln_post.weight
    )  # loaded, though no Flamingo uses it


def test_a_file_of_a_tower_alone_is_taken_for_openais(tmp_path, capsys):
    reference = tower()
    save_file(reference.state_dict(), tmp_path / "tower.safetensors")
    loaded, processor = load_tower(tmp_path / "tower.safetensors")
    assert_same_tokens(reference, loaded)
    notes = capsys.readouterr().err
    assert "quick_gelu (OpenAI's weights" in notes and "heads of the vision tower: 2" in notes
    assert processor.size == {"shortest_edge": SIDE}


def test_every_key_has_its_fate():
    state = tower().state_dict()
    prefix = "vision_encoder.visual."
    names = [prefix + name for name in state] + ["vision_encoder." + name for name in TEXT]
    names.append(prefix + "transformer.resblocks.0.ls_1.gamma")
    names.append("perceiver.latents")
    keys = clip_keys(names, "vision_encoder.")
    fused = [key for key in keys if key.name.endswith("blocks.1.attn.in_proj_bias")]
    assert [(key.part, key.target) for key in fused] == [
        (part, f"vision_encoder.encoder.layers.1.self_attn.{letter}_proj.bias")
        for part, letter in enumerate("qkv")
    ]
    assert {key.name for key in keys} == set(names) - {"perceiver.latents"}
    assert sum(key.fate == "used" for key in keys) == len(state) - 1 + 4 * LAYERS
    dropped = {key.name for key in keys if key.fate == "dropped"}
    assert dropped == {prefix + "proj", *("vision_encoder." + name for name in TEXT)}
    assert [key.name for key in keys if key.fate == "unexpected"] == names[-2:-1]
    assert all(key.reason for key in keys if key.fate != "used")
    # The tower alone, as OpenFlamingo v2 holds it, and nothing but text buffers.
    alone = clip_keys([f"vision_encoder.{name}" for name in state], "vision_encoder.")
    assert sum(key.fate == "used" for key in alone) == len(state) - 1 + 4 * LAYERS
    assert clip_keys(["vision_encoder.attn_mask"], "vision_encoder.")[0].fate == "dropped"


@pytest.mark.parametrize(
    ("width", "heads"), [(768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16)]
)
def test_heads_of_open_clips_own_towers(width, heads):
    shapes = {
        "conv1.weight": (width, 3, 14, 14),
        "positional_embedding": (257, width),
        "transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width),
        "transformer.resblocks.23.mlp.c_fc.weight": (4 * width, width),
    }
    config = tower_config(shapes)
    assert config.num_attention_heads == heads
    assert (config.num_hidden_layers, config.image_size, config.intermediate_size) == (
        *(24, 224),
        4 * width,
    )
    given = {"model_cfg": {"vision_cfg": {"head_width": 32, "norm_kwargs": {"eps": 1e-6}}}}
    config = tower_config(shapes, given)
    assert (config.num_attention_heads, config.layer_norm_eps) == (width // 32, 1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("visual.trunk.blocks.0.norm1.weight", "timm"),
        ("visual.attnpool.k_proj.weight", "ModifiedResNet"),
        ("visual.attn_pool.query", "CoCa"),
    ],
)
def test_other_towers_are_refused(name, kind, tmp_path):
    with pytest.raises(UserError, match=f"{kind}.*ViT-L-14"):
        clip_keys([name], "")
    save_file({name: torch.ones(1)}, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=f"{kind}.*ViT-L-14"):
        load_tower(tmp_path / "clip.safetensors")


def test_incomplete_towers_are_refused(tmp_path):
    state = tower().state_dict()
    with pytest.raises(UserError, match="conv1.weight is missing"):
        tower_config({name: value.shape for name, value in state.items() if "conv" not in name})
    with pytest.raises(UserError, match="square"):
        tower_config(
            {name: v.shape for name, v in state.items()} | {"positional_embedding": (8, 128)}
        )
    del state["ln_pre.bias"], state["transformer.resblocks.1.attn.in_proj_bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="(?s)pre_layrnorm.bias is missing.*q_proj.bias"):
        load_tower(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="open_clip_model.safetensors"):
        load_tower(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        load_tower(tmp_path / "cut.safetensors")


def test_openais_own_archives_lead_to_the_same_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-L-14.pt", "w") as archive:
        archive.writestr("ViT-L-14/code/__torch__.py", "")
    with pytest.raises(UserError, match="TorchScript.*openai/clip-vit-large-patch14"):
        load_tower(tmp_path / "ViT-L-14.pt")


def test_tower_keys_alone():
    keys = tower_keys(["proj", "other", "class_embedding.weight", "ln_pre.scale"])
    assert [key.fate for key in keys] == ["dropped", *["unexpected"] * 3]
