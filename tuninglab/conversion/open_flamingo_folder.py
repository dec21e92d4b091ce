"""A whole Flamingo for open_flamingo: its checkpoint.pt, and the two parts that are not in it."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tuninglab.config import ConvertConfig
from tuninglab.console import Choices
from tuninglab.conversion.building import flamingo_of
from tuninglab.conversion.convert import SHARD
from tuninglab.conversion.writing import write_open_flamingo
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.formats.open_flamingo import describe
from tuninglab.models.formats.reading import read_checkpoint
from tuninglab.models.named_parts import GATED_BLOCK
from tuninglab.models.processing import FlamingoProcessor

CHECKPOINT, LANG, TOWER = "checkpoint.pt", "lang_encoder", "vision_encoder"
TEMPLATE = "chat_template.jinja"


def write_parts(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, folder: Path
) -> list[str]:
    """Write a Flamingo as OpenFlamingo divides one.

    Args:
        model: without adapter.
        processor: its processor.
        folder: there come to be checkpoint.pt (Perceiver, gated blocks, token tables),
            lang_encoder/ (the language model, which `AutoModelForCausalLM` loads, with the
            tokenizer), vision_encoder/ (the tower), and the template of the prompt.

    Returns:
        What a reader must know.
    """
    report = write_open_flamingo(model.config, model.state_dict(), folder / CHECKPOINT)
    language_model(model).save_pretrained(folder / LANG, max_shard_size=SHARD)
    processor.tokenizer.save_pretrained(folder / LANG)
    model.vision_encoder.save_pretrained(folder / TOWER, max_shard_size=SHARD)
    processor.image_processor.save_pretrained(folder / TOWER)
    (folder / TEMPLATE).write_text(str(processor.chat_template), encoding="utf-8")
    # The first note is of a checkpoint that is alone.
    return report["notes"][1:]


def read_parts(folder: Path) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The Flamingo that `write_parts` wrote, by the way of `tuninglab convert`."""
    checkpoint = read_checkpoint(str(folder / CHECKPOINT))
    with checkpoint.named():
        layout = describe(checkpoint)
    lang, tower = str(folder / LANG), str(folder / TOWER)
    sources = ConvertConfig(lang_encoder=lang, vision_encoder=tower)
    model, processor = flamingo_of(checkpoint, layout, sources, Choices())
    processor.use_prompt((folder / TEMPLATE).read_text(encoding="utf-8"))
    return model, processor


def language_model(model: FlamingoForConditionalGeneration) -> Any:
    """The language model of a Flamingo alone, as its own class; it shares the weights."""
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(copy.deepcopy(model.config.text_config))
    state = model.lang_encoder.state_dict()
    plain = {
        name.replace(".decoder_layer.", "."): tensor
        for name, tensor in state.items()
        if f".{GATED_BLOCK}." not in name
    }
    alone.load_state_dict(plain, assign=True)
    alone.tie_weights()
    alone.generation_config = copy.deepcopy(model.generation_config)
    return alone
