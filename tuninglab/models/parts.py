"""Parts of a Flamingo from disk or hub: a language model, its tokenizer, and how any is read."""

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers import dynamic_module_utils as remote_code
from transformers.utils import logging

from tuninglab.console import program
from tuninglab.errors import UserError, WorkError
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.folder_files import check_claims
from tuninglab.models.hub import resolve
from tuninglab.models.loaded_once import once
from tuninglab.models.quantised import read_piecewise
from tuninglab.models.torch_weights import read_inert
from tuninglab.models.trial import try_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLAMINGO_HINT = (
    "Fix config.json (cross_attn_every_n_layers, number of layers), or use a complete save"
)
MEMORY_HINT = (
    "That is more memory than there is: close other programs, take fewer bits (--precision or "
    "--dtype bf16, --enable_int8), or a smaller model"
)
# What truncated, empty and foreign files were seen to raise, from safetensors, tokenizers and
# configuration classes alike. They raise others too, as our own mistakes do.
DAMAGED = (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError)
FLAGS = {
    "model": "--model",
    "language model": "--lang_encoder",
    "vision tower": "--vision_encoder",
}
READERS = ("transformers", "peft", "safetensors", "tokenizers", "huggingface_hub", "json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_lang_encoder(
    path_or_id: str | Path,
    dtype: torch.dtype | str | None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """A language model, in the number format given or else in its own; see `read_lang_config`.

    Args:
        path_or_id: a directory or hub id.
        dtype: of the weights; None is the one that they were saved in.
        trust_remote_code: run the code that lies beside them.
        **options: from `quantised`, for weights that are quantised as they are read.

    Raises:
        UserError: there is none, or it is damaged.
    """
    where, local = resolve(path_or_id, "language model")
    options["trust_remote_code"] = trust_remote_code
    return load_weights(AutoModelForCausalLM, "language model", where, local, dtype, **options)


def read_lang_config(path_or_id: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a plain language model; its weights are not read.

    Raises:
        UserError: there is none, or it is of a whole Flamingo.
    """
    where, local = resolve(path_or_id, "language model")
    config = read_config(where, local, "language model", trust_remote_code)
    if isinstance(config, FlamingoConfig):
        raise UserError(f"{where} is a whole Flamingo; give it as the model, not as lang_encoder")
    return config


def load_tokenizer(path_or_id: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a directory or hub id.

    Raises:
        UserError: there is none, or it is damaged.
    """
    where, local = resolve(path_or_id, "tokenizer")
    with explained("tokenizer", where):
        tokenizer = AutoTokenizer.from_pretrained(
            where, local_files_only=local, trust_remote_code=trust_remote_code
        )
        try_tokenizer(tokenizer)
    return tokenizer


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A number format by its short name; None stays None.

    Raises:
        UserError: there is no format of this name.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype


def read_config(
    where: str, local: bool, what: str, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The configuration in a directory or of a hub id, as `resolve` gave them.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = Path(where)
    if local and not (folder / "config.json").is_file():
        tuned = [n for n in ("config.yaml", "adapter_config.json") if (folder / n).is_file()]
        if tuned:
            raise UserError(
                f"{what}: {where} holds {tuned[0]}: a run or its adapter is the result of tuning. "
                "Give its base (named in that file) as --model, or talk to it with "
                f"`{program()} chat {shlex.quote(where)}`"
            )
        raise UserError(
            f"{what}: {where} has no config.json; give a directory that save_pretrained wrote "
            f"({FLAGS.get(what, 'the name')})"
        )
    with explained(what, where):
        return AutoConfig.from_pretrained(
            where, local_files_only=local, trust_remote_code=trust_remote_code
        )


@contextmanager
def explained(what: str, where: str) -> Iterator[None]:
    """Turn what the loaders of transformers raise on missing or damaged files into a UserError.

    Mistakes of this package, met on the way, pass through with their traceback. And nothing asks on
    standard input whether to run code: who does not say `trust_remote_code` means no.

    Their own report of keys is silenced: `load_weights` says what matters of it, and for a whole
    CLIP it would list every weight of the text tower.
    """
    verbosity, patience = logging.get_verbosity(), remote_code.TIME_OUT_REMOTE_CODE
    logging.set_verbosity_error()
    remote_code.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    except BaseException as error:
        if not is_readers(error):
            raise
        if is_out_of_memory(error):
            raise UserError(f"{what} {where}: {first_lines(error)}\n{MEMORY_HINT}") from error
        help_text = (
            "The directory is incomplete or damaged: copy or download it again"
            if Path(where).is_dir()
            else "There is no such directory here, and the hub did not give it; check the name"
        )
        # The cause stays attached for --debug.
        raise UserError(
            f"{what} {where}: {_reason(error, what, Path(where))}\n{help_text}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        remote_code.TIME_OUT_REMOTE_CODE = patience


def is_readers(error: BaseException) -> bool:
    """Whether what was raised is about the files that were read, or the memory that they take."""
    # tokenizers panics: no Exception, and of a class that cannot be imported.
    if type(error).__name__ == "PanicException":
        return True
    if isinstance(error, UserError | WorkError) or not isinstance(error, Exception):
        return False
    return isinstance(error, DAMAGED) or is_out_of_memory(error) or not is_ours(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by whatever class or words it was told."""
    # On a CPU torch has no class for it: "DefaultCPUAllocator: can't allocate memory"; the system
    # says "Cannot allocate memory", also of a file that is mapped.
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return named or bool(re.search("can(not|'t) allocate memory", str(error), re.IGNORECASE))


def is_ours(error: BaseException) -> bool:
    """Whether this package raised it, itself or through torch, and no reader of files did."""
    frames = (str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__))
    rooms = [name.partition(".")[0] for name in frames]
    return [room for room in rooms if room == "tuninglab" or room in READERS][-1] == "tuninglab"


def _reason(error: BaseException, what: str, folder: Path) -> str:
    """What the loaders said, with the file that they mean but do not name."""
    tokenizes = what in ("tokenizer", "processor") and folder.is_dir()
    if tokenizes and not (folder / "tokenizer.json").exists():
        return "tokenizer.json is missing"
    text = first_lines(error)
    if isinstance(error, SafetensorError) and folder.is_dir():
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        return f"{', '.join(names)}: {text}"
    return text


def first_lines(error: BaseException) -> str:
    """What an error says, in a few lines; its class if it says nothing."""
    lines = (str(error) or type(error).__name__).strip().splitlines()
    lines = [line if len(line) <= 500 else f"{line[:500]}..." for line in lines]
    return "\n".join(lines[:8] + ["..."] * (len(lines) > 8))


def is_made(where: str, local: bool, dtype: torch.dtype | None, options: Mapping[str, Any]) -> bool:
    """Whether weights become others as they are read: rounded, or quantised."""
    if dtype is None or "quantization_config" in options:
        return "quantization_config" in options
    remote = options.get("trust_remote_code", False)
    saved = AutoConfig.from_pretrained(where, local_files_only=local, trust_remote_code=remote)
    return saved.dtype != dtype


def load_weights(
    loader: Any,
    what: str,
    where: str,
    local: bool,
    dtype: torch.dtype | str | None,
    surplus: bool = False,
    hint: str = FLAMINGO_HINT,
    **options: Any,
) -> Any:
    """A model, with every weight from its files; `surplus` allows them to hold others besides.

    `hint` says what to do where weights and configuration do not fit.

    Raises:
        UserError: weights are missing, surplus or of another shape; tied ones are not missing.
    """
    if local:
        check_claims(Path(where), what)
        # A bar for files on disk is gone before it can be read; downloads keep theirs.
        logging.disable_progress_bar()
    reading = read_piecewise() if "quantization_config" in options else nullcontext()
    loading = partial(
        loader.from_pretrained,
        where,
        dtype=dtype_of(dtype) or "auto",
        local_files_only=local,
        output_loading_info=True,
        # Shapes are listed below; transformers' own error names no weight.
        ignore_mismatched_sizes=True,
        **{"trust_remote_code": False, **options},
    )
    with explained(what, where), reading, read_inert():
        made = is_made(where, local, dtype_of(dtype), options)
        model, info = once(loading, lambda loaded: loaded[0]) if made else loading()
    problems = [f"{name} is {old}, not {new}" for name, old, new in info["mismatched_keys"]]
    for kind in ("missing", *([] if surplus else ["unexpected"])):
        keys = sorted(info[f"{kind}_keys"])
        if keys:
            problems.append(f"{len(keys)} {kind}: {', '.join(keys[:8])}")
    if problems:
        raise UserError(
            f"{where}: the weights do not fit config.json: {'; '.join(problems[:8])}. {hint}"
        )
    return model
