"""Stage 3: a small CLIP vision tower, taught by what lies in each patch.

With a contrastive loss alone the colours and places suffice to tell captions apart and shapes are
not learned; with patch labels that leave out the place, the last layer forgets it. So every patch
is asked for all four.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from tools.embedded_base.captions import Picture
from tools.embedded_base.earlier import take_tower
from tools.embedded_base.schedule import Progress, learning_rate, make_optimizer, optimize
from tools.embedded_base.strokes import sample_varied_digits
from tools.embedded_base.varied_drawings import sample_varied_drawings
from tuninglab.embedded.digits import DigitScene, sample_digits
from tuninglab.embedded.drawings import DrawingScene, drawings, sample_drawings
from tuninglab.embedded.scenes import COLORS, SHAPES, SIDE_PX, SIZES, sample_scene

PATCH_PX = 16
GRID = SIDE_PX // PATCH_PX
BATCH = 48
# All colours that a drawing may have are named too; UNASKED leaves a patch out of a class.
COLOR_NAMES = (*COLORS, "white", "gray", "brown", "pink")
DRAWING_KINDS = tuple(dict.fromkeys(d.kind for d in drawings()))
UNASKED = -100
# Classes per patch: colour, kind (shape, digit or drawing) and size, 0 for none; which cell of the
# 3 x 3 grid it is in; and what a drawing is a kind of.
CLASSES = {
    "color": 1 + len(COLOR_NAMES),
    "kind": 1 + len(SHAPES) + 10 + len(drawings()),
    "size": 1 + len(SIZES),
    "cell": 9,
    "group": 1 + len(DRAWING_KINDS),
}
WEIGHTS = {"color": 0.5, "kind": 2.0, "size": 0.5, "cell": 1.0, "group": 1.0}
DRAWING_SHARE = 0.6


def new_tower() -> CLIPVisionModel:
    """CLIP's vision architecture: 96 px, patches of 16 px, 128 wide, 6 layers."""
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=PATCH_PX,
        hidden_act="quick_gelu",
        projection_dim=128,
    )
    return CLIPVisionModel(config)


def new_image_processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing at 96 px."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}
    )


def sample_picture(rng: random.Random) -> Picture:
    """A training picture: drawings, scenes, or handwriting of the train writers, varied."""
    if rng.random() < DRAWING_SHARE:
        return sample_varied_drawings(rng)
    return sample_scene(rng) if rng.random() < 0.5 else sample_varied_digits(rng)


def pixels(pictures: list[Picture], processor: CLIPImageProcessorPil) -> torch.Tensor:
    """Rendered and normalised: (B, 3, 96, 96)."""
    raw = np.stack([np.asarray(p.draw(), np.float32) for p in pictures]) / 255
    normal = (raw - np.array(processor.image_mean, np.float32)) / np.array(
        processor.image_std, np.float32
    )
    return torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)


def labels(picture: Picture) -> np.ndarray:
    """Classes of every patch, (P, 5), in the order of CLASSES."""
    if isinstance(picture, DrawingScene):
        return drawing_labels(picture)
    cells = np.zeros((9, 5), np.int64)
    cells[:, 3] = range(9)
    if isinstance(picture, DigitScene):
        for cell, ink in zip(picture.cells, picture.inks, strict=True):
            cells[cell, :2] = 1 + COLOR_NAMES.index(ink.color), 1 + len(SHAPES) + ink.digit
    else:
        for t in picture.things:
            kind, size = 1 + SHAPES.index(t.shape), 1 + list(SIZES).index(t.size)
            cells[t.cell, :3] = 1 + COLOR_NAMES.index(t.color), kind, size
    return cells.reshape(3, 3, 5).repeat(GRID // 3, 0).repeat(GRID // 3, 1).reshape(-1, 5)


def drawing_labels(picture: DrawingScene) -> np.ndarray:
    """The same of drawings: a patch belongs to the one whose square covers over 40 % of it."""
    patches = np.zeros((GRID, GRID, 5), np.int64)
    starts = np.arange(GRID) * PATCH_PX
    patches[..., 3] = 3 * (np.arange(GRID) // 2)[:, None] + np.arange(GRID) // 2
    for thing in picture.things:
        down, across = (
            np.clip(
                np.minimum(starts + PATCH_PX, at + thing.side) - np.maximum(starts, at), 0, None
            )
            for at in (thing.y, thing.x)
        )
        covered = np.outer(down, across) > 0.4 * PATCH_PX**2
        drawing = thing.drawing
        color = 1 + COLOR_NAMES.index(drawing.color) if drawing.color else UNASKED
        kind, group = 16 + drawing.number, 1 + DRAWING_KINDS.index(drawing.kind)
        patches[covered, :3] = color, kind, UNASKED
        patches[covered, 4] = group
    return patches.reshape(-1, 5)


def patch_loss(
    heads: torch.nn.Linear, tokens: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss over all patches, those with something on them six-fold, and accuracy on the latter.

    Args:
        heads: one linear layer for all classes.
        tokens: patch tokens of the last layer, (B, P, D).
        target: (B, P, 5).
    """
    scores = heads(tokens).split(list(CLASSES.values()), -1)
    filled = target[..., 1] > 0
    total, accuracy = torch.zeros(()), {}
    for k, (name, score) in enumerate(zip(CLASSES, scores, strict=True)):
        wanted = target[..., k]
        loss = F.cross_entropy(
            score.flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=UNASKED
        ).view(filled.shape)
        asked = filled & (wanted != UNASKED)
        total = total + WEIGHTS[name] * (
            loss[asked].sum() / asked.sum().clamp(min=1) + 0.2 * loss.mean()
        )
        accuracy[name] = (score.argmax(-1) == wanted)[asked].float().mean().item()
    return total, accuracy


@torch.no_grad()
def patch_accuracy(
    tower: CLIPVisionModel, heads: torch.nn.Linear, processor: CLIPImageProcessorPil
) -> dict[str, float]:
    """Accuracy of the kind of object on unseen pictures: held-out pairs and validation writers."""
    rng, reached = random.Random(77), {}
    unseen = tuple(d for d in drawings() if d.held_out)
    sources = {
        "held_out_pairs": lambda: sample_scene(rng, held_out=True),
        "val_writers": lambda: sample_digits(rng, "val"),
        "drawings": lambda: sample_varied_drawings(rng),
        "held_out_drawings": lambda: sample_drawings(rng, unseen),
    }
    for name, draw in sources.items():
        pictures = [draw() for _ in range(200)]
        tokens = tower(pixels(pictures, processor)).last_hidden_state[:, 1:]
        target = torch.from_numpy(np.stack([labels(p) for p in pictures]))
        for label, value in patch_loss(heads, tokens, target)[1].items():
            if value == value:  # no patch may be asked for it
                reached[f"{name}_{label}"] = round(value, 4)
    return reached


def train_tower(out: Path, steps: int, earlier: Path | None) -> dict[str, float]:
    """Train from nothing or an earlier base, save to `out/tower`; returns what it reached."""
    torch.manual_seed(0)
    tower, processor = new_tower(), new_image_processor()
    if earlier:
        take_tower(tower, earlier)
    heads = torch.nn.Linear(tower.config.hidden_size, sum(CLASSES.values()))
    optimizer = make_optimizer([(tower, 1.0), (heads, 1.0)])
    progress, rng = Progress("tower", steps), random.Random(2)
    for step in range(steps):
        pictures = [sample_picture(rng) for _ in range(BATCH)]
        target = torch.from_numpy(np.stack([labels(p) for p in pictures]))
        tokens = tower(pixels(pictures, processor)).last_hidden_state[:, 1:]
        loss, accuracy = patch_loss(heads, tokens, target)
        optimize(optimizer, loss, learning_rate(step, steps, 1e-3))
        progress(step, loss=loss.item(), **accuracy)
        if step % 1000 == 999:
            print(patch_accuracy(tower, heads, processor), flush=True)
    tower.eval().save_pretrained(out / "tower")
    processor.save_pretrained(out / "tower")
    return patch_accuracy(tower, heads, processor)
