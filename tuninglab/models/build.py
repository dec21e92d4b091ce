"""A Flamingo with its processor: from a model directory, or from a plain LM and a CLIP tower."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from tuninglab.errors import UserError
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.processing import EOC_TOKEN, IMAGE_TOKEN, FlamingoProcessor

PAD_TOKEN = "<PAD>"
DTYPE_NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A hub id is owner/name: a single word is a mistyped directory far more often than "gpt2", and
# asking the hub without a network takes transformers 26 s of retries.
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def load_flamingo(
    path_or_id: str | Path, dtype: torch.dtype | str | None = None
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A saved Flamingo, in evaluation mode, with its processor.

    Args:
        path_or_id: a directory that `save_pretrained` wrote for both, or a hub id. The network is
            used only if no such directory exists and the name can be a hub id.
        dtype: of the weights; None keeps the one they were saved in.

    Raises:
        UserError: there is no Flamingo there, or its files are damaged or do not fit together.
    """
    where, local = _resolve(path_or_id, "model")
    config = _read_config(where, local, "model")
    if not isinstance(config, FlamingoConfig):
        raise UserError(
            f"{where} holds a {config.model_type!r} model, not a Flamingo. To make a Flamingo of a "
            "plain language model, give it as lang_encoder with a CLIP tower as vision_encoder"
        )
    model = _load_weights(FlamingoForConditionalGeneration, "model", where, local, dtype)
    # The tokenizer decides which id a mark gets, the configuration which id the model looks for.
    with _explained("processor", where):
        processor = FlamingoProcessor.from_pretrained(where, local_files_only=local)
    if processor.image_token_id != config.image_token_id:
        raise UserError(
            f"{where}: the tokenizer has {IMAGE_TOKEN} at {processor.image_token_id}, config.json "
            f"says {config.image_token_id}. Model and tokenizer are not of the same save"
        )
    return model.eval(), processor


def flamingo_from_parts(
    lang_encoder: str | Path,
    vision_encoder: str | Path,
    cross_attn_every_n_layers: int = 4,
    dtype: torch.dtype | str | None = None,
    **config: Any,
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new Flamingo around a plain language model and a CLIP vision tower, and its processor.

    Perceiver and gated blocks are fresh and the gates 0: it answers as the language model alone
    until they are trained. Tokens are added as in OpenFlamingo 2.0.1 (factory.py).

    Args:
        lang_encoder: directory or hub id of a decoder LM and its tokenizer.
        vision_encoder: directory or hub id of a CLIP vision tower, or of a whole CLIP.
        cross_attn_every_n_layers: layer i (from 0) gets a gated block if (i + 1) is a multiple.
        dtype: of all weights; None is the one that the language model was saved in.
        **config: further fields of `FlamingoConfig`.

    Raises:
        UserError: a part is missing, damaged or of the wrong kind, or a value is out of range.
    """
    unknown = sorted(set(config) - {field.name for field in fields(FlamingoConfig)})
    if unknown:
        raise UserError(f"FlamingoConfig has no field {', '.join(unknown)}; see its documentation")
    lang, tokenizer = _load_lang_encoder(lang_encoder, dtype)
    vision, image_processor = _load_vision_encoder(vision_encoder, lang.dtype)
    add_flamingo_tokens(tokenizer)
    # Tables padded beyond the tokenizer (OPT, MPT) keep their size: only grow.
    if lang.get_input_embeddings().num_embeddings < len(tokenizer):
        lang.resize_token_embeddings(len(tokenizer))
    lang.config.get_text_config(decoder=True).pad_token_id = tokenizer.pad_token_id
    processor = FlamingoProcessor(image_processor, tokenizer)
    try:
        flamingo_config = FlamingoConfig(
            text_config=lang.config,
            vision_config=vision.config,
            cross_attn_every_n_layers=cross_attn_every_n_layers,
            image_token_id=processor.image_token_id,
            eoc_token_id=processor.eoc_token_id,
            **config,
        )
        model = FlamingoForConditionalGeneration(flamingo_config, lang, vision)
    except (ValueError, StrictDataclassError) as error:
        raise UserError(f"{lang_encoder} with {vision_encoder}: {error}") from error
    # Not model.to(dtype): that would round the float32 rotary tables of the language model too.
    for part in (model.perceiver, *model.gated_blocks):
        part.to(lang.dtype)
    model.config.dtype = lang.dtype
    return model.eval(), processor


def add_flamingo_tokens(tokenizer: Any) -> None:
    """Add `<|endofchunk|>`, `<image>`, and `<PAD>` where there is no pad token, in that order."""
    # Kept beside special tokens of its own (chat models), which would otherwise be replaced.
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [EOC_TOKEN, IMAGE_TOKEN]}, replace_extra_special_tokens=False
    )
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def _load_lang_encoder(path_or_id: str | Path, dtype: torch.dtype | str | None) -> tuple[Any, Any]:
    where, local = _resolve(path_or_id, "language model")
    config = _read_config(where, local, "language model")
    if isinstance(config, FlamingoConfig):
        raise UserError(f"{where} is a whole Flamingo; give it as the model, not as lang_encoder")
    lang = _load_weights(AutoModelForCausalLM, "language model", where, local, dtype)
    with _explained("tokenizer", where):
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local)
    return lang, tokenizer


def _load_vision_encoder(
    path_or_id: str | Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, CLIPImageProcessorPil]:
    where, local = _resolve(path_or_id, "vision tower")
    config = _read_config(where, local, "vision tower")
    if config.model_type not in ("clip", "clip_vision_model"):
        raise UserError(
            f"{where} holds a {config.model_type!r} model; expected a CLIP vision tower "
            "(model_type 'clip' or 'clip_vision_model')"
        )
    # A whole CLIP holds a text tower besides, which has no place here.
    whole = config.model_type == "clip"
    vision = _load_weights(CLIPVisionModel, "vision tower", where, local, dtype, surplus=whole)
    size = vision.config.image_size
    if local and not (Path(where) / "preprocessor_config.json").exists():
        # CLIP's own preprocessing at the tower's size.
        return vision, CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
    with _explained("image processor", where):
        return vision, CLIPImageProcessorPil.from_pretrained(where, local_files_only=local)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPE_NAMES:
            raise UserError(f"dtype is {dtype!r}; give one of {', '.join(DTYPE_NAMES)}")
        return DTYPE_NAMES[dtype]
    return dtype


def _resolve(path_or_id: str | Path, what: str) -> tuple[str, bool]:
    """Where a part is, and whether that is a local directory (else it is a hub id)."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return str(path), True
    if path.exists():
        raise UserError(f"{what}: {path} is a file; give the directory that holds config.json")
    # Under a folder that exists here, a missing name is a path too.
    looks_local = isinstance(path_or_id, Path) or path.parent.name and path.parent.is_dir()
    if looks_local or not HUB_ID.fullmatch(str(path_or_id)):
        raise UserError(
            f"{what}: there is no directory {path}; check the path (a hub id is owner/name)"
        )
    return str(path_or_id), False


def _read_config(where: str, local: bool, what: str) -> PreTrainedConfig:
    folder = Path(where)
    if local and not (folder / "config.json").is_file():
        tuned = [n for n in ("config.yaml", "adapter_config.json") if (folder / n).is_file()]
        if tuned:
            run = folder if tuned[0] == "config.yaml" else folder.resolve().parent
            raise UserError(
                f"{what}: {where} holds {tuned[0]}: a run or its adapter is the result of tuning. "
                "Give its base (named in the run's config.yaml) as --model, or talk to it with "
                f"`tuninglab chat {run}`"
            )
        raise UserError(
            f"{what}: {where} has no config.json; give a directory that save_pretrained wrote"
        )
    with _explained(what, where):
        return AutoConfig.from_pretrained(where, local_files_only=local)


@contextmanager
def _explained(what: str, where: str) -> Iterator[None]:
    """Turn what the loaders of transformers raise on missing or damaged files into a UserError.

    Their own report of keys is silenced: `_load_weights` says what matters of it, and for a whole
    CLIP it would list every weight of the text tower.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    # What truncated, empty and foreign files were seen to raise, from safetensors, tokenizers and
    # configuration classes alike; the cause stays attached for --debug.
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        help_text = (
            "The directory is incomplete or damaged: copy or download it again"
            if Path(where).is_dir()
            else "There is no such directory here, and the hub did not give it; check the name"
        )
        raise UserError(
            f"{what} {where}: {_reason(error, what, Path(where))}\n{help_text}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _reason(error: Exception, what: str, folder: Path) -> str:
    """What the loaders said, with the file that they mean but do not name."""
    tokenizes = what in ("tokenizer", "processor") and folder.is_dir()
    if tokenizes and not (folder / "tokenizer.json").exists():
        return "tokenizer.json is missing"
    lines = (str(error) or type(error).__name__).strip().splitlines()
    text = "\n".join(lines[:8] + ["..."] * (len(lines) > 8))
    if isinstance(error, SafetensorError) and folder.is_dir():
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        return f"{', '.join(names)}: {text}"
    return text


def _load_weights(
    loader: Any,
    what: str,
    where: str,
    local: bool,
    dtype: torch.dtype | str | None,
    surplus: bool = False,
) -> Any:
    """A model, with every weight from its files; `surplus` allows them to hold others besides.

    Raises:
        UserError: weights are missing, surplus or of another shape; tied ones are not missing.
    """
    if local:
        # A bar for files on disk is gone before it can be read; downloads keep theirs.
        logging.disable_progress_bar()
    with _explained(what, where):
        model, info = loader.from_pretrained(
            where,
            dtype=_dtype(dtype) or "auto",
            local_files_only=local,
            output_loading_info=True,
            # Shapes are listed below; transformers' own error names no weight.
            ignore_mismatched_sizes=True,
        )
    problems = [f"{name} is {old}, not {new}" for name, old, new in info["mismatched_keys"]]
    for kind in ("missing", *([] if surplus else ["unexpected"])):
        keys = sorted(info[f"{kind}_keys"])
        if keys:
            problems.append(f"{len(keys)} {kind}: {', '.join(keys[:8])}")
    if problems:
        raise UserError(
            f"{where}: the weights do not fit config.json: {'; '.join(problems[:8])}. Fix "
            "config.json (cross_attn_every_n_layers, number of layers), or use a complete save"
        )
    return model
