"""Every kind of vision tower: its features, its pictures, its names, and what is refused."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from tests.tiny import (
    SIDE,
    TOWERS,
    flamingo,
    flamingo_config,
    save_tower,
    text_config,
    vision_config,
)
from tuninglab.errors import UserError
from tuninglab.models import flamingo_from_parts, load_flamingo
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.vision import load_vision_encoder

# As the released directories have them (preprocessor_config.json, sizes aside).
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
SQUARE = {"height": SIDE, "width": SIDE}
CROP = {"size": {"shortest_edge": 20}, "crop_size": SQUARE, "do_center_crop": True, "resample": 3}
NO_CROP = {"size": SQUARE, "do_center_crop": None, "crop_size": None, "do_convert_rgb": None}
RELEASED = {
    "siglip_vision_model": {
        "image_processor_type": "SiglipImageProcessor",
        **HALF,
        "size": SQUARE,
        "resample": 3,
    },
    "dinov2": {"image_processor_type": "BitImageProcessor", **IMAGENET, **CROP},
    "dinov3_vit": {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        **IMAGENET,
        **NO_CROP,
        "resample": 2,
        "device": None,
        "data_format": "channels_first",
    },
}
RELEASED["dinov2_with_registers"] = RELEASED["dinov2"]
CLIP = {"image_processor_type": "CLIPImageProcessor", "resample": 3}
CLIP |= {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# CLIP's own has whole numbers for its sizes, as in its early days.
RELEASED["clip_vision_model"] = {**CLIP, "size": 20, "crop_size": SIDE, "do_center_crop": True}


def picture(width=30, height=24):
    # Far from 0 and 255, which Pillow cuts at after each direction of a resize and torch does not.
    pixels = np.random.default_rng(0).integers(64, 192, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def lang(tmp_path, make_tokenizer):
    config = text_config(vocab_size=7, pad_token_id=None)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "lang")
    make_tokenizer().save_pretrained(tmp_path / "lang")
    return tmp_path / "lang"


def by_hand(tower, pixels):
    """Patch features from a tower's own layers: what stands in the formulas of its paper."""
    with torch.no_grad():
        states = tower(pixel_values=pixels, output_hidden_states=True)
    last = states.hidden_states[-1]
    kind = tower.config.model_type
    patches = (pixels.shape[-1] // tower.config.patch_size) ** 2
    if kind == "clip_vision_model":
        return last[:, -patches:]
    norm = {"siglip_vision_model": "post_layernorm", "dinov3_vit": "norm"}.get(kind, "layernorm")
    return getattr(tower, norm)(last)[:, -patches:]


@pytest.mark.parametrize("kind", TOWERS)
def test_features_are_those_of_the_tower_alone(kind, lang, tmp_path):
    tower = save_tower(tmp_path / "tower", kind)
    model, processor = flamingo_from_parts(lang, tmp_path / "tower", 2, perceiver_depth=1)
    pixels = torch.randn(2, 2, 1, 3, SIDE, SIDE)
    features = model.encode_patches(pixels)
    assert features.shape == (2, 2, 1, 4, 24)
    expected = by_hand(tower, pixels.flatten(0, 2)).detach()
    torch.testing.assert_close(features.flatten(0, 2), expected)
    # Names and values are those of the tower in transformers, in memory and on disk.
    for name, value in tower.state_dict().items():
        assert torch.equal(model.state_dict()[f"vision_encoder.{name}"], value)
    model.save_pretrained(tmp_path / "flamingo")
    processor.save_pretrained(tmp_path / "flamingo")
    names = {f"vision_encoder.{n}" for n in load_file(tmp_path / "tower" / "model.safetensors")}
    saved = load_file(tmp_path / "flamingo" / "model.safetensors")
    assert {name for name in saved if name.startswith("vision_encoder.")} == names
    assert AutoConfig.from_pretrained(tmp_path / "flamingo").vision_config.model_type == kind
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "flamingo").eval()
    call = {"text": ["<image> a cat", "a"], "images": [[picture()], []]}
    batch = AutoProcessor.from_pretrained(tmp_path / "flamingo")(**call)
    assert torch.equal(batch["pixel_values"], processor(**call)["pixel_values"])
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert not any(p.requires_grad for p in again.vision_encoder.parameters())
    loaded, _ = load_flamingo(tmp_path / "flamingo")
    ids = [m.generate(**batch, max_new_tokens=3, do_sample=False) for m in (model, loaded)]
    assert torch.equal(*ids)


def released_pixels(kind, image):
    """Pixels as the released image processors make them, by torch alone."""
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float()
    crop = kind not in ("siglip_vision_model", "dinov3_vit")
    short = 20 if crop else SIDE
    shape = (20, 20 * image.width // image.height) if crop else (SIDE, SIDE)
    assert min(shape) == short
    mode = "bilinear" if kind == "dinov3_vit" else "bicubic"
    pixels = F.interpolate(pixels, shape, mode=mode, antialias=True).clamp(0, 255)
    top, left = (shape[0] - SIDE) // 2, (shape[1] - SIDE) // 2
    pixels = pixels[0, :, top : top + SIDE, left : left + SIDE] / 255
    mean, std = (
        torch.tensor(RELEASED[kind][n])[:, None, None] for n in ("image_mean", "image_std")
    )
    return (pixels - mean) / std


@pytest.mark.parametrize("kind", RELEASED)
def test_pictures_are_those_of_the_released_image_processor(kind, lang, tmp_path):
    save_tower(tmp_path / "tower", kind)
    text = json.dumps(
        {"do_resize": True, "do_rescale": True, "do_normalize": True, **RELEASED[kind]}
    )
    # Newer saves have it inside the file of the whole processor.
    nested, name = json.dumps({"image_processor": json.loads(text)}), "preprocessor_config.json"
    text, name = (nested, "processor_config.json") if kind == "dinov2" else (text, name)
    (tmp_path / "tower" / name).write_text(text)
    _, processor = flamingo_from_parts(lang, tmp_path / "tower", 2, perceiver_depth=1)
    assert processor.image_size == SIDE
    found = processor(text="<image>", images=picture())["pixel_values"][0, 0, 0]
    # Likewise it rounds to whole numbers.
    gap = 1.5 / 255 / (0.5 if "siglip" in kind else 0.224)
    torch.testing.assert_close(found, released_pixels(kind, picture()), atol=gap, rtol=0)
    processor.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()


@pytest.mark.parametrize("kind", TOWERS)
def test_without_an_image_processor_pictures_have_the_towers_size(kind, tmp_path):
    save_tower(tmp_path, kind)
    _, images = load_vision_encoder(tmp_path, None)
    pixels = images(picture(), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SIDE, SIDE)
    means = {"clip_vision_model": 0.481, "siglip_vision_model": 0.5}
    assert images.image_mean[0] == pytest.approx(means.get(kind, 0.485), abs=1e-3)


def test_dino_takes_pictures_of_another_size_than_its_positions(tmp_path):
    # As the released DINOv2, whose positions are those of 518 pixels and whose pictures have 224.
    for kind in ("dinov2", "dinov2_with_registers", "dinov3_vit"):
        model = flamingo(flamingo_config(tower=kind, vision={"image_size": 40}), 0.5)
        assert model.encode_patches(torch.randn(1, 1, 3, SIDE, SIDE)).shape == (1, 1, 1, 4, 24)


def test_a_whole_siglip_gives_its_tower(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    vision = vision_config("siglip_vision_model").to_dict()
    whole = AutoModel.from_config(
        AutoConfig.for_model("siglip", text_config=small, vision_config=vision)
    ).eval()
    whole.save_pretrained(tmp_path)
    tower, images = load_vision_encoder(tmp_path, torch.float32)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    expected = whole.vision_model(pixels).last_hidden_state
    assert torch.equal(tower.eval()(pixels).last_hidden_state, expected)
    assert tower.config.model_type == "siglip_vision_model" and images.size.height == SIDE
    assert tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "kind", ["siglip2", "siglip2_vision_model", "vit", "dinov3_convnext", "llava", "llama"]
)
def test_other_kinds_are_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=f"holds a '{kind}' model; .*dinov3_vit.*NaFlex"):
        load_vision_encoder(tmp_path, None)
    with pytest.raises(ValueError, match=f"vision_config is of model type '{kind}'; .*dinov3_vit"):
        FlamingoConfig(vision_config={"model_type": kind})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": {"height": 20, "width": 20}}, "20 x 20 pixels, but the tower takes 16 x 16"),
        ({"size": {"height": 16, "width": 20}}, "square ones of one size"),
        ({"size": {"shortest_edge": 16}}, "square ones of one size"),
        ({"size": SQUARE, "do_resize": False}, "square ones of one size"),
    ],
)
def test_pictures_that_the_tower_cannot_take_are_refused(settings, said, tmp_path):
    save_tower(tmp_path, "siglip_vision_model")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=said):
        load_vision_encoder(tmp_path, None)
