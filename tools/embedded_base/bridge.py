"""Stage 4: Perceiver and gated cross-attention learn to caption.

The language model and the tower follow at lower learning rates.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from tools.embedded_base.captions import Picture, caption, statements
from tools.embedded_base.earlier import take_bridge
from tools.embedded_base.english import English
from tools.embedded_base.language import blocks, encode_pieces, weighted_loss
from tools.embedded_base.schedule import Progress, learning_rate, make_optimizer, optimize
from tools.embedded_base.tower import CLASSES, labels, patch_loss, pixels, sample_picture
from tools.embedded_base.varied_drawings import sample_varied_drawings
from tools.embedded_base.vocabulary import load_tokenizer
from tuninglab.embedded.digits import sample_digits
from tuninglab.embedded.drawings import drawings, sample_drawings
from tuninglab.embedded.scenes import sample_scene
from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoProcessor

PICTURES, ROWS_EACH = 24, 3
TEXT_EVERY, PAIR_EVERY = 5, 4
PATCH_WEIGHT = 0.15
GATE_AT_START = 0.5  # all parts are trained here, so nothing has to be protected by a closed gate

Row = list[tuple[str, float]]


def new_flamingo(
    out: Path, tokenizer: PreTrainedTokenizerFast, earlier: Path | None = None
) -> FlamingoForConditionalGeneration:
    """The two trained backbones, and a bridge that is fresh or an earlier base's.

    The bridge has 2 Perceiver layers, and gated blocks at layers 1, 3 and 5.
    """
    lang_encoder = AutoModelForCausalLM.from_pretrained(out / "lm")
    vision_encoder = CLIPVisionModel.from_pretrained(out / "tower")
    config = FlamingoConfig(
        text_config=lang_encoder.config,
        vision_config=vision_encoder.config,
        cross_attn_every_n_layers=2,
        perceiver_depth=2,
        perceiver_latents=32,
        perceiver_heads=4,
        perceiver_dim_head=32,
        cross_attn_heads=4,
        cross_attn_dim_head=32,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        eoc_token_id=tokenizer.convert_tokens_to_ids("<|endofchunk|>"),
    )
    model = FlamingoForConditionalGeneration(config, lang_encoder, vision_encoder)
    model.requires_grad_(True)
    for name, gate in model.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.constant_(gate, GATE_AT_START)
    if earlier:
        take_bridge(model, earlier)
    return model


def rows_about(picture: Picture, rng: random.Random, count: int) -> list[Row]:
    """What is said of a picture in `count` rows: its caption, or three statements."""
    said, rows = statements(picture, rng), []
    for k in range(count):
        if rng.random() < 0.25:
            row = [(caption(picture), 1.0)]
        else:
            chosen = [said[(3 * k + j) % len(said)] for j in range(3)]
            # What a statement starts with is the author's whim; what follows is in the picture.
            row = [piece for start, end in chosen for piece in ((start, 0.0), (end, 1.0))]
        rows.append([("<image>", 0.0), *row, ("<|endofchunk|>", 1.0)])
    return rows


def pad(
    rows: list[Row], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows to ids, attention mask and loss weights, each (B, T), padded on the right."""
    encoded = [encode_pieces([("<s>", 0.0), *row], tokenizer) for row in rows]
    longest = max(len(ids) for ids, _ in encoded)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    weights = torch.zeros(len(rows), longest)
    for k, (row_ids, row_weights) in enumerate(encoded):
        ids[k, : len(row_ids)] = torch.tensor(row_ids)
        weights[k, : len(row_ids)] = torch.tensor(row_weights)
    return ids, (ids != tokenizer.pad_token_id).long(), weights


def caption_loss(
    model: FlamingoForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    processor: CLIPImageProcessorPil,
    heads: torch.nn.Linear,
    rng: random.Random,
    pair: bool,
) -> torch.Tensor:
    """Loss on fresh pictures; with `pair`, a row speaks of two pictures, one after the other.

    The tower is asked for its patches as before: captions alone teach it too slowly.
    """
    pictures = [sample_picture(rng) for _ in range(PICTURES)]
    patches = model.encode_patches(pixels(pictures, processor)[:, None, None])  # (B, 1, 1, P, D)
    target = torch.from_numpy(np.stack([labels(p) for p in pictures]))
    in_patches, _ = patch_loss(heads, patches[:, 0, 0], target)
    features = model.perceiver(patches)
    rows = [rows_about(p, rng, ROWS_EACH) for p in pictures]
    if pair:
        features = features.flatten(0, 1).unflatten(0, (PICTURES // 2, 2))
        rows = [
            [a + b for a, b in zip(*two, strict=True)]
            for two in zip(rows[::2], rows[1::2], strict=True)
        ]
    ids, mask, weights = pad([row for picture_rows in rows for row in picture_rows], tokenizer)
    features = features.repeat_interleave(ROWS_EACH, 0)
    said = weighted_loss(model, ids, weights, attention_mask=mask, image_features=features)
    return said + PATCH_WEIGHT * in_patches


@torch.no_grad()
def statement_accuracy(
    model: FlamingoForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    processor: CLIPImageProcessorPil,
    count: int = 120,
) -> dict[str, float]:
    """Share of statements and captions continued exactly, by what is shown.

    Held-out pairs, validation writers, drawings, and drawings of things never shown.
    """
    unseen = tuple(d for d in drawings() if d.held_out)
    sources: dict[str, Callable[[random.Random], Picture]] = {
        "held_out_pairs": lambda rng: sample_scene(rng, held_out=True),
        "val_writers": lambda rng: sample_digits(rng, "val"),
        "drawings": sample_varied_drawings,
        "held_out_drawings": lambda rng: sample_drawings(rng, unseen),
    }
    reached, rng = {}, random.Random(55)
    for source, draw in sources.items():
        pictures = [draw(rng) for _ in range(count)]
        features = model.encode_images(pixels(pictures, processor)[:, None])
        rows = [[("<image>", 0.0), (caption(p), 1.0)] for p in pictures]
        reached[f"{source}_caption"] = exact(model, tokenizer, rows, features)
        by_start: dict[str, list[tuple[Row, int]]] = {}
        for k, picture in enumerate(pictures):
            for start, end in statements(picture, rng):
                kind = kind_of_statement(start)
                by_start.setdefault(kind, []).append(
                    ([("<image>", 0.0), (start, 0.0), (end, 1.0)], k)
                )
        right = total = 0.0
        for kind, asked in sorted(by_start.items()):
            share = exact(model, tokenizer, [r for r, _ in asked], features[[k for _, k in asked]])
            right, total = right + share * len(asked), total + len(asked)
            if len(asked) > 40:
                reached[f"{source}: {kind}"] = round(share, 3)
        reached[f"{source}_statements"] = right / total
    return {name: round(value, 4) for name, value in reached.items()}


def kind_of_statement(start: str) -> str:
    """What a statement is about: its first and last words, without the names between them."""
    words = start.split()
    return " ".join(words[:2] if words[0] in ("As", "At") else words[:1] + words[-2:])


def exact(
    model: FlamingoForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[Row],
    features: torch.Tensor,
) -> float:
    """Share of rows whose weighted tokens are all the most likely ones; features (B, 1, L, D)."""
    right = 0
    for k in range(0, len(rows), 128):
        ids, mask, weights = pad(rows[k : k + 128], tokenizer)
        logits = model(
            input_ids=ids, attention_mask=mask, image_features=features[k : k + 128]
        ).logits
        hit = (logits[:, :-1].argmax(-1) == ids[:, 1:]) | (weights[:, 1:] == 0)
        right += int(hit.all(1).sum())
    return right / len(rows)


def save_base(
    model: FlamingoForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    processor: CLIPImageProcessorPil,
    folder: Path,
) -> None:
    """Write the model directory in half precision, tokenizer included.

    Every weight is well inside the range of half precision.
    """
    state = {k: v.half() for k, v in model.state_dict().items()}
    for part in (model.config.text_config, model.config.vision_config):
        part._name_or_path = ""  # where the stages lay on this machine means nothing elsewhere
    model.save_pretrained(folder, state_dict=state)
    FlamingoProcessor(processor, tokenizer).save_pretrained(folder)


def train_bridge(out: Path, english: English, steps: int, earlier: Path | None) -> dict[str, float]:
    """Train the whole Flamingo on captions and text, save it to `out/base`, return its scores.

    Stopped and started again it goes on from its last thousand steps (`out/bridge.pt`).
    """
    torch.manual_seed(0)
    tokenizer = load_tokenizer(out)
    processor = CLIPImageProcessorPil.from_pretrained(out / "tower")
    model = new_flamingo(out, tokenizer, earlier)
    heads = torch.nn.Linear(model.vision_encoder.config.hidden_size, sum(CLASSES.values()))
    optimizer = make_optimizer([*rates(model), (heads, 1.0)])
    first, state = 0, out / "bridge.pt"
    if state.exists():
        kept = torch.load(state, weights_only=True)
        first = kept["step"]
        model.load_state_dict(kept["model"])
        heads.load_state_dict(kept["heads"])
        optimizer.load_state_dict(kept["optimizer"])
    model.train()
    progress, rng = Progress("bridge", steps), random.Random(3 + first)
    texts = blocks(tokenizer, english, random.Random(4 + first))
    for step in range(first, steps):
        if step % TEXT_EVERY == TEXT_EVERY - 1:
            ids, weights = next(texts)
            loss = weighted_loss(model, ids, weights)
        else:
            pair = step % PAIR_EVERY == 0
            loss = caption_loss(model, tokenizer, processor, heads, rng, pair)
        optimize(optimizer, loss, learning_rate(step, steps, 1e-3))
        progress(step, loss=loss.item())
        if step % 1000 == 999:
            model.eval()
            print(step + 1, statement_accuracy(model, tokenizer, processor), flush=True)
            save_base(model, tokenizer, processor, out / "base")
            kept = {"model": model.state_dict(), "heads": heads.state_dict()}
            kept |= {"optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(kept, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
            model.train()
    model.eval()
    save_base(model, tokenizer, processor, out / "base")
    gates = {
        n: round(g.tanh().item(), 3) for n, g in model.named_parameters() if n.endswith("_gate")
    }
    return {**statement_accuracy(model, tokenizer, processor), **gates}


def rates(model: FlamingoForConditionalGeneration) -> list[tuple[torch.nn.Module, float]]:
    """All parts, with the learning rate of each as a share of the bridge's."""
    gated = [m for name, m in model.named_modules() if name.endswith("gated_cross_attn_layer")]
    decoders = [m for n, m in model.lang_encoder.named_modules() if n.endswith("decoder_layer")]
    return [
        (model.perceiver, 1.0),
        (torch.nn.ModuleList(gated), 1.0),
        (torch.nn.ModuleList(decoders), 0.5),
        (model.lang_encoder.get_input_embeddings(), 0.5),
        (model.lang_encoder.get_output_embeddings(), 0.5),
        (model.lang_encoder.model.norm, 0.5),
        (model.vision_encoder, 0.7),
    ]
