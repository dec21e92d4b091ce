"""A Flamingo with its processor: from a model directory, or from a plain LM and a tower."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.errors import UserError

# Importing it also tells transformers of our int8 weights, which it would read as floats.
from tuninglab.int8.quantiser import mark_quantised
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.hub import resolve
from tuninglab.models.parts import (
    explained,
    load_lang_encoder,
    load_tokenizer,
    load_weights,
    read_config,
    read_lang_config,
)
from tuninglab.models.processing import FlamingoProcessor
from tuninglab.models.quantised import quantised
from tuninglab.models.trial import try_tokenizer
from tuninglab.models.vision import check_pictures, load_vision_encoder
from tuninglab.run_folder.named_model import shipped

PAD_TOKEN = "<PAD>"


def load_flamingo(
    path_or_id: str | Path, dtype: torch.dtype | str | None = None, quantization: Any = None
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A saved Flamingo, in evaluation mode, with its processor.

    Args:
        path_or_id: a directory that `save_pretrained` wrote for both, `embedded` (the model that
            ships with tuninglab), or a hub id. The network is used only if no such directory
            exists and the name can be a hub id.
        dtype: of the weights; None keeps the one they were saved in.
        quantization: configuration of transformers for weights to quantise as they are read.

    Raises:
        UserError: there is no Flamingo there, or its files are damaged or do not fit together.
    """
    where, local = resolve(shipped(path_or_id), "model")
    config = read_config(where, local, "model")
    if not isinstance(config, FlamingoConfig):
        raise UserError(
            f"{where} holds a {config.model_type!r} model, not a Flamingo. To make a Flamingo of a "
            "plain language model, give it as lang_encoder with a vision tower as vision_encoder"
        )
    options = quantised(quantization, config, where)
    model = load_weights(FlamingoForConditionalGeneration, "model", where, local, dtype, **options)
    # The tokenizer decides which id a mark gets, the configuration which id the model looks for.
    with explained("processor", where):
        processor = FlamingoProcessor.from_pretrained(
            where, local_files_only=local, trust_remote_code=False
        )
        try_tokenizer(processor.tokenizer)
    check_pictures(processor.image_processor, config.vision_config, where)
    _check_tokens(processor.tokenizer, config, model.generation_config.pad_token_id, where)
    if processor.image_token_id != config.image_token_id:
        raise UserError(
            f"{where}: the tokenizer has {IMAGE_TOKEN} at {processor.image_token_id}, config.json "
            f"says {config.image_token_id}. Model and tokenizer are not of the same save"
        )
    return model.eval(), processor


def _check_tokens(tokenizer: Any, config: FlamingoConfig, pad: int | None, where: str) -> None:
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"{where}: tokenizer_config.json names no pad_token; a Flamingo's tokenizer has one, "
            f"{PAD_TOKEN} where the language model has none. Save model and processor again"
        )
    rows = config.text_config.get_text_config(decoder=True).vocab_size
    if (pad or 0) >= rows:
        raise UserError(
            f"{where}: generation_config.json has pad_token_id {pad:,}, but the table {rows:,} rows"
        )
    last = max(tokenizer.get_vocab().values())
    if last >= rows:
        raise UserError(
            f"{where}: the tokenizer has a token with id {last:,}, the table {rows:,} rows. "
            "Model and tokenizer are not of the same save"
        )


def flamingo_from_parts(
    lang_encoder: str | Path,
    vision_encoder: str | Path,
    cross_attn_every_n_layers: int = 4,
    dtype: torch.dtype | str | None = None,
    quantization: Any = None,
    **config: Any,
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new Flamingo around a plain language model and a vision tower, and its processor.

    Perceiver and gated blocks are fresh and the gates 0: it answers as the language model alone
    until they are trained. Tokens are added as in OpenFlamingo 2.0.1 (factory.py).

    Args:
        lang_encoder: directory or hub id of a decoder LM and its tokenizer.
        vision_encoder: directory or hub id of a vision tower, or of a whole CLIP or SigLIP (kinds:
            `models/towers.py`); or an OpenCLIP directory or file.
        cross_attn_every_n_layers: layer i (from 0) gets a gated block if (i + 1) is a multiple.
        dtype: of all weights; None is the one that the language model was saved in.
        quantization: configuration of transformers for weights of the language model to quantise
            as they are read; it must leave out the output layer, which may have to grow.
        **config: further fields of `FlamingoConfig`.

    Raises:
        UserError: a part is missing, damaged or of the wrong kind, or a value is out of range.
    """
    unknown = sorted(set(config) - {field.name for field in fields(FlamingoConfig)})
    if unknown:
        raise UserError(f"FlamingoConfig has no field {', '.join(unknown)}; see its documentation")
    options = quantised(quantization, read_lang_config(lang_encoder), str(lang_encoder))
    lang = load_lang_encoder(lang_encoder, dtype, **options)
    tokenizer = load_tokenizer(lang_encoder)
    vision, image_processor = load_vision_encoder(vision_encoder, lang.dtype)
    add_flamingo_tokens(tokenizer)
    # Tables padded beyond the tokenizer (OPT, MPT) keep their size: only grow.
    if lang.get_input_embeddings().num_embeddings < len(tokenizer):
        lang.resize_token_embeddings(len(tokenizer))
    try:
        processor = FlamingoProcessor(image_processor, tokenizer)
        config["cross_attn_every_n_layers"] = cross_attn_every_n_layers
        return assemble(lang, vision, processor, **config)
    except (ValueError, StrictDataclassError) as error:
        raise UserError(f"{lang_encoder} with {vision_encoder}: {error}") from error


def assemble(
    lang: Any, vision: PreTrainedModel, processor: FlamingoProcessor, **config: Any
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A Flamingo around ready parts whose tables fit the tokenizer, in the format of `lang`.

    Args:
        lang: the language model; it is wrapped in place.
        vision: the vision tower.
        processor: with the tokens added.
        **config: further fields of `FlamingoConfig`.

    Raises:
        ValueError: a field is out of range (StrictDataclassError: of another type), or the decoder
            layers of the language model were not found.
    """
    lang.config.get_text_config(decoder=True).pad_token_id = processor.tokenizer.pad_token_id
    flamingo_config = flamingo_config_of(lang.config, vision.config, processor, **config)
    model = FlamingoForConditionalGeneration(flamingo_config, lang, vision)
    # Not model.to(dtype): that would round the float32 rotary tables of the language model too.
    for part in (model.vision_encoder, model.perceiver, *model.gated_blocks):
        part.to(lang.dtype)
    model.config.dtype = lang.dtype
    quantiser = getattr(lang, "hf_quantizer", None)
    if quantiser is not None:
        # Said once, of the whole: loaders look for it there.
        del lang.config.quantization_config
        mark_quantised(model, quantiser)
    return model.eval(), processor


def flamingo_config_of(
    text_config: Any, vision_config: Any, processor: FlamingoProcessor, **config: Any
) -> FlamingoConfig:
    """The configuration of a Flamingo of these parts; **config are further fields of it."""
    return FlamingoConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=processor.image_token_id,
        eoc_token_id=processor.eoc_token_id,
        **config,
    )


def add_flamingo_tokens(
    tokenizer: Any,
    rows: int | None = None,
    table_rows: int | None = None,
    more: Sequence[str] = (),
) -> str:
    """Add `<|endofchunk|>`, `<image>`, and `<PAD>` where there is no pad token, in that order.

    Args:
        tokenizer: changed in place.
        rows: rows of the token table in a checkpoint, which then decide whether a `<PAD>` was
            added; None where none was saved.
        table_rows: rows of the language model's own table, kept where a table is padded.
        more: tokens that come after the two (Otter's `<answer>`).

    Returns:
        What was done about the pad token, with the reason.

    Raises:
        UserError: the tokenizer cannot be the one of a table with so many rows.
    """
    before = len(tokenizer)
    # Kept beside special tokens of its own (chat models), which would otherwise be replaced.
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [EOC_TOKEN, IMAGE_TOKEN, *more]},
        replace_extra_special_tokens=False,
    )
    count = len(tokenizer)
    padded = rows is not None and rows == table_rows and rows >= count
    if rows is not None and rows not in (count, count + 1) and not padded:
        raise UserError(
            f"the tokenizer has {before} tokens, {count} with those of a Flamingo and "
            f"{count + 1} with {PAD_TOKEN}, but the checkpoint's token table has {rows} rows"
        )
    pad = tokenizer.pad_token
    if rows == count + 1 and (pad is None or not padded) or pad is None and rows != count:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        beside = "" if pad is None else f", although the tokenizer has {pad}: the table has its row"
        return f"added{beside}"
    if pad is None:
        # The table has no row for another token.
        tokenizer.pad_token = tokenizer.eos_token or EOC_TOKEN
        return f"named so: the table has no row for {PAD_TOKEN}"
    return "the tokenizer's own"


@torch.no_grad()
def resize_tables(lang: Any, rows: int) -> int:
    """Give a language model token tables of `rows` rows; new ones are the mean of the others.

    No random numbers: the same files always make the same model.

    Returns:
        How many rows were added; 0 if the tables stay or shrink.
    """
    before = lang.get_input_embeddings().num_embeddings
    if before == rows:
        return 0
    lang.resize_token_embeddings(rows, mean_resizing=False)
    if rows < before:
        return 0
    for table in (lang.get_input_embeddings(), lang.get_output_embeddings()):
        for values in () if table is None else (table.weight, getattr(table, "bias", None)):
            if values is not None:
                # Summed in float32 without a float32 copy of the table.
                values[before:] = values[:before].mean(0, dtype=torch.float32).to(values.dtype)
    return rows - before
