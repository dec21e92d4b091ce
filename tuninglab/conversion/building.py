"""A Flamingo from a released checkpoint and the parts that it was trained with."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.initialization import no_init_weights

from tuninglab.config import ConvertConfig
from tuninglab.console import Choices
from tuninglab.conversion.fitting import (
    bridge_options,
    check_lang_config,
    check_skeleton,
    holds_tower,
    refuse_misfits,
    refuse_unfilled,
)
from tuninglab.errors import UserError
from tuninglab.models.build import (
    add_flamingo_tokens,
    assemble,
    flamingo_config_of,
    resize_tables,
)
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.formats import otter
from tuninglab.models.formats.filling import fill
from tuninglab.models.formats.layout import Checkpoint, Layout
from tuninglab.models.formats.released import right_parts
from tuninglab.models.parts import (
    TOKENIZER_FILES,
    dtype_of,
    explained,
    load_lang_encoder,
    load_tokenizer,
    read_lang_config,
)
from tuninglab.models.processing import FlamingoProcessor
from tuninglab.models.vision import load_image_processor, load_vision_encoder

OTTER_TOKENS = ("<answer>",)  # Otter 2024-03, modeling_otter.py: after the two of OpenFlamingo


def flamingo_of(
    checkpoint: Checkpoint, layout: Layout, sources: ConvertConfig, choices: Choices
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The model of a checkpoint, in evaluation mode, with its processor.

    What can be known from configurations is checked before weights are loaded; in memory are the
    model and pages of files.

    Args:
        checkpoint: as read; every key of it is explained.
        layout: what it says of its model.
        sources: where the parts are that the checkpoint does not hold, and what is wanted of them.
        choices: where to say what was decided.

    Raises:
        UserError: a part is missing, damaged, or not the one that the checkpoint was trained with.
    """
    if sources.lang_encoder and sources.vision_encoder:
        return _with_parts(checkpoint, layout, sources, choices)
    if layout.format == "otter":
        return _whole(checkpoint, layout, sources, choices)
    gone = [f"--{n}" for n in ("lang_encoder", "vision_encoder") if not getattr(sources, n)]
    raise UserError(
        f"{' and '.join(gone)} missing: {checkpoint.path} does not hold the whole model. "
        f"{right_parts(layout)}"
    )


def _with_parts(
    checkpoint: Checkpoint, layout: Layout, sources: ConvertConfig, choices: Choices
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    lang_encoder, vision_encoder = str(sources.lang_encoder), str(sources.vision_encoder)
    trust = sources.trust_remote_code
    text_config = read_lang_config(lang_encoder, trust)
    check_lang_config(text_config, layout, lang_encoder)
    if text_config.model_type != layout.family:
        reason = f"--lang_encoder; by its names the file fits a {layout.family} as well"
        choices.add("kind of language model", text_config.model_type, reason)
    tokenizer = load_tokenizer(sources.tokenizer or lang_encoder, trust)
    own_rows = text_config.get_text_config(decoder=True).vocab_size
    rows = _add_tokens(tokenizer, own_rows, layout, sources, choices)
    vision, image_processor = load_vision_encoder(vision_encoder, None)
    if vision.config.hidden_size != layout.media_width:
        raise UserError(
            f"--vision_encoder {vision_encoder} is {vision.config.hidden_size} wide, but the "
            f"Perceiver of {checkpoint.path} takes {layout.media_width}. {right_parts(layout)}"
        )
    if vision.config.model_type != layout.tower:
        raise UserError(
            f"--vision_encoder {vision_encoder} is of kind {vision.config.model_type}, but the "
            f"Perceiver of {checkpoint.path} was trained on a {layout.tower}. {right_parts(layout)}"
        )
    processor = FlamingoProcessor(image_processor, tokenizer)
    options = bridge_options(layout)
    check_skeleton(checkpoint, layout, text_config, vision.config, processor, rows, trust)
    lang = load_lang_encoder(lang_encoder, sources.dtype, trust)
    added = resize_tables(lang, rows)
    if added:
        _say_new_rows(lang, layout, rows, added, choices)
    model, _ = assemble(lang, vision, processor, **options)
    return _filled(model, checkpoint, layout, choices), processor


def _add_tokens(
    tokenizer: Any, own_rows: int, layout: Layout, sources: ConvertConfig, choices: Choices
) -> int:
    """Add the tokens as the rows of the checkpoint demand; returns the rows of the tables."""
    more = OTTER_TOKENS if layout.format == "otter" else ()
    try:
        reason = add_flamingo_tokens(tokenizer, layout.rows, own_rows, more)
    except UserError as error:
        given = sources.tokenizer or sources.lang_encoder
        raise UserError(
            f"{given}: {error}. It is not the tokenizer of this checkpoint. {right_parts(layout)}"
        ) from error
    choices.add("pad token", str(tokenizer.pad_token), reason)
    rows = layout.rows or max(own_rows, len(tokenizer))
    if rows != own_rows:
        whose = "those of the checkpoint" if layout.rows else "all tokens"
        choices.add("rows of the token table", str(rows), f"{whose}; {own_rows} before")
    return rows


def _say_new_rows(lang: Any, layout: Layout, rows: int, added: int, choices: Choices) -> None:
    head = lang.get_output_embeddings()
    tied = head is None or head.weight is lang.get_input_embeddings().weight
    mean = f"mean of the other {rows - added} rows"
    where = f"{added} new rows of the"
    if layout.rows is None:
        choices.add(f"{where} token table", mean, "the checkpoint does not hold the table")
    if tied or "lang_encoder.lm_head.weight" in layout.targets:
        return
    # PEFT trains single rows of layers without a bias only.
    remedy = (
        "--tuning_config.train_new_tokens"
        if getattr(head, "bias", None) is None
        else "--tuning_config.modules_to_save lm_head"
    )
    choices.add(
        f"{where} output layer",
        mean,
        f"the checkpoint does not hold them; {remedy} trains them and saves them in the adapter",
    )


def _filled(
    model: FlamingoForConditionalGeneration,
    checkpoint: Checkpoint,
    layout: Layout,
    choices: Choices,
) -> FlamingoForConditionalGeneration:
    if holds_tower(layout.targets):
        choices.add("vision tower", "that in the checkpoint", "it holds one, whole")
    with checkpoint.named():
        changes = fill(model, checkpoint.tensors, layout.keys)
    dtype = str(model.config.dtype).removeprefix("torch.")
    reason = "no value of the checkpoint was rounded"
    if changes:
        reason = (
            f"{len(changes)} tensors of the checkpoint were rounded, by at most "
            f"{max(changes):.1e}; --dtype fp32 keeps them"
        )
    choices.add("number format", dtype, reason)
    return model.eval()


def _whole(
    checkpoint: Checkpoint, layout: Layout, sources: ConvertConfig, choices: Choices
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A model whose directory holds all of it, tokenizer aside."""
    folder = Path(checkpoint.path).expanduser()
    with checkpoint.named():
        text, vision = otter.parts(checkpoint, layout)
    tokenizer = _own_tokenizer(folder, sources, layout)
    rows = _add_tokens(tokenizer, text["vocab_size"], layout, sources, choices)
    with explained("configuration", str(folder)):
        text_config = AutoConfig.for_model(**{**text, "vocab_size": rows})
        vision_config = AutoConfig.for_model(**vision)
        images = load_image_processor(str(folder), True, vision_config)
        processor = FlamingoProcessor(images, tokenizer)
        text_config.pad_token_id = tokenizer.pad_token_id
        config = flamingo_config_of(text_config, vision_config, processor, **bridge_options(layout))
        with torch.device("meta"):
            skeleton = FlamingoForConditionalGeneration(config)
    refuse_misfits(skeleton.state_dict(), checkpoint, layout)
    first = next(key.name for key in layout.with_fate("used"))
    dtype = dtype_of(sources.dtype) or checkpoint.tensors[first].dtype
    # Every weight comes from the file: random numbers for 7 billion would be drawn for nothing.
    with no_init_weights():
        model = FlamingoForConditionalGeneration._from_config(config, dtype=dtype)
    model.tie_weights()
    refuse_unfilled(model, layout, checkpoint)
    model.config.dtype = dtype
    return _filled(model, checkpoint, layout, choices), processor


def _own_tokenizer(folder: Path, sources: ConvertConfig, layout: Layout) -> Any:
    given = sources.tokenizer or sources.lang_encoder
    if given is None and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} holds no tokenizer: give --tokenizer. {right_parts(layout)}")
    return load_tokenizer(given or folder, sources.trust_remote_code)
