"""Adapters on disk, in PEFT's layout, with what was tuned besides LoRA in the same file."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft import set_peft_model_state_dict as set_state_dict
from peft.utils.other import TrainableTokensWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tuninglab.adapters import switching
from tuninglab.adapters.base_mark import check_base
from tuninglab.adapters.int8_lora import know_int8
from tuninglab.adapters.kept_settings import tuned_media_mode
from tuninglab.adapters.lora import quietly
from tuninglab.adapters.shipped_base import MARK, SETTINGS_NAME, check_shipped_base, shipped_mark
from tuninglab.adapters.stored_config import check_fits, read_adapter_config
from tuninglab.console import say
from tuninglab.disk import whole_folder
from tuninglab.errors import UserError
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.parts import MEMORY_HINT, first_lines, is_out_of_memory, is_readers
from tuninglab.models.weights import own_class, whole
from tuninglab.run_folder.named_model import ADAPTER_CONFIG

WEIGHTS_NAME = "adapter_model.safetensors"
# As PEFT wrote them until 2023.
PICKLED_NAME = "adapter_model.bin"


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """All tuned tensors by the key PEFT loads them from.

    PEFT's own keys, and `base_model.model.<path>` for parameters of the base that were trained
    themselves (gates, Perceiver): `PeftModel.from_pretrained` loads those too (peft 0.21).
    """
    # "auto" would look for the base model on the hub to compare vocabularies.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, parameter in model.named_parameters():
        # What PEFT itself trains carries the adapter's name.
        if parameter.requires_grad and "default" not in name.split("."):
            state[name] = parameter
    tensors = whole(state)
    for name, start in _lora_start(model).items():
        # W is now W - c B0 A0, which only this model knows; of W the change is c (B A - B0 A0): a
        # plain LoRA of twice the rank. What is no matrix of LoRA (DoRA's lengths) stays.
        if re.search(r"\.lora_(embedding_)?A", name):
            tensors[name] = torch.cat([tensors[name], start])  # (2R, K)
        elif re.search(r"\.lora_(embedding_)?B", name):
            tensors[name] = torch.cat([tensors[name], -start], dim=1)  # (N, 2R)
    return tensors


def _lora_start(model: PeftModel) -> dict[str, torch.Tensor]:
    # Of PiSSA and OLoRA: what LoRA started with and the base lacks since.
    return getattr(model, "lora_start", {})


def _doubled(lora: Any) -> Any:
    """The configuration of a plain LoRA of twice the rank, scaled as this one."""
    twice = copy.copy(lora)
    # The scale is alpha / r, or alpha / sqrt(r).
    factor = 2**0.5 if lora.use_rslora else 2
    twice.r, twice.lora_alpha, twice.init_lora_weights = 2 * lora.r, factor * lora.lora_alpha, True
    twice.rank_pattern = {name: 2 * rank for name, rank in lora.rank_pattern.items()}
    twice.alpha_pattern = {name: factor * alpha for name, alpha in lora.alpha_pattern.items()}
    return twice


def save_adapter(
    model: PeftModel,
    directory: str | Path,
    state: dict[str, torch.Tensor] | None = None,
    prompt: str | None = None,
) -> None:
    """Write the adapter folder beside its place, then rename it there.

    `PeftModel.from_pretrained(base, directory)` alone gives the same model back; the media mode
    that a Flamingo was tuned in is kept for `load_adapter`, and the prompt for `adapter_prompt`.
    `state` is that of `adapter_state`, which all processes must make of sharded weights; None makes
    it here.
    """
    base: Any = model.get_base_model()
    media_mode = getattr(base.config, "media_mode", None)
    state = adapter_state(model) if state is None else state
    lora = model.peft_config["default"]
    lora = _doubled(lora) if _lora_start(model) else lora
    write_adapter(directory, lora, state, media_mode, own_class(base), prompt)


def adapter_writer(model: Any, prompt: str | None = None) -> Callable[[Path], None]:
    """What writes the adapter as it is now into a folder: so a checkpoint can be talked to."""
    # Here, where all processes are, and not in what is returned: weights may be sharded.
    state = adapter_state(model)
    return lambda folder: save_adapter(model, folder / "adapter", state, prompt)


def write_adapter(
    directory: str | Path,
    lora: PeftConfig,
    tensors: dict[str, torch.Tensor],
    media_mode: str | None,
    base: type = FlamingoForConditionalGeneration,
    prompt: str | None = None,
) -> None:
    """Write the files of an adapter beside their place, then rename the folder there.

    Args:
        directory: the folder to write or replace.
        lora: what adapter_config.json should hold, the name of the base included.
        tensors: by the keys from which PEFT loads them.
        media_mode: the one that it was tuned in; None where there are no images.
        base: class of the model that it belongs to.
        prompt: that it was tuned with, a name or the text of a template; None: the usual one.
    """
    # For inference; PEFT makes a set of the names, whose order would change from one process to
    # the next.
    kept: Any = copy.copy(lora)
    kept.inference_mode = True
    if isinstance(kept.target_modules, set):
        kept.target_modules = sorted(kept.target_modules)
    with whole_folder(Path(directory)) as beside:
        save_file(tensors, beside / WEIGHTS_NAME, metadata={"format": "pt"})
        # PEFT's AutoPeftModel finds the base class by these where there is no task type.
        mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        kept.save_pretrained(str(beside), auto_mapping_dict=mapping)
        if media_mode is not None:
            settings = {"media_mode": media_mode} | ({"prompt": prompt} if prompt else {})
            if kept.base_model_name_or_path == "embedded":
                settings[MARK] = shipped_mark()
            (beside / SETTINGS_NAME).write_text(json.dumps(settings) + "\n", "utf-8")


@contextmanager
def adapter_file(directory: Path) -> Iterator[Any]:
    """The open weights of an adapter that is put on a base inside.

    Raises:
        UserError: a file is missing or damaged, they do not fit the base, or memory ran out.
    """
    for name in (ADAPTER_CONFIG, WEIGHTS_NAME):
        if not (directory / name).is_file():
            if name == WEIGHTS_NAME and (directory / PICKLED_NAME).exists():
                raise UserError(
                    f"{directory} holds its weights as {PICKLED_NAME}, a pickle, which can run "
                    f"code and is not read. Where you trust it, load it with PEFT and save it "
                    f"again: that writes {WEIGHTS_NAME}"
                )
            raise UserError(
                f"{directory} holds no adapter: {name} is missing. Name a run's adapter/."
            )
    try:
        with safe_open(directory / WEIGHTS_NAME, framework="pt") as file:
            yield file
    except Exception as error:
        reason = first_lines(error)
        # A mistake of this package keeps its traceback.
        if not is_readers(error) or isinstance(error, OSError):
            raise
        if is_out_of_memory(error):
            raise UserError(f"{directory}: {reason}\n{MEMORY_HINT}") from error
        raise UserError(
            f"{directory} does not fit this base model, or is broken: {reason}"
        ) from error


def load_adapter(model: nn.Module, directory: str | Path, name: str = "default") -> PeftModel:
    """Put a saved adapter on its base, or beside those that are there, and turn it on.

    For inference; `adapters/switching.py` goes from one to another, and to the base. The media mode
    is that which the adapter was tuned in, which is said if the base has another.

    Args:
        model: the base, or what this function made of it.
        directory: the adapter.
        name: what to call it; new among the adapters of the model.

    Raises:
        UserError: the folder holds no adapter, or one that was made for another base.
        ValueError: the name is taken, or the model got an adapter otherwise.
    """
    directory = Path(directory)
    check_shipped_base(directory)
    check_base(directory, getattr(model.config, "name_or_path", None))
    adapters, media_mode = switching.adapters_of(model), tuned_media_mode(directory)
    if name in adapters.held:
        raise ValueError(f"there is an adapter {name!r} already")
    before = adapters.active
    if isinstance(model, PeftModel):
        switching.switch(model, None)
    try:
        peft_model, tensors = _load(model, directory, name, adapters)
    except UserError:
        if isinstance(model, PeftModel):
            # The other adapters stay usable: as if this one had not been tried.
            switching.put_back(adapters, model)
            if name in model.peft_config:
                model.delete_adapter(name)
            switching.switch(model, before)
        raise
    adapters.held[name] = switching.Held(tensors, media_mode)
    adapters.active = name
    peft_model.held_adapters = adapters  # pyright: ignore
    usual = adapters.held[None].media_mode
    if media_mode not in (None, usual):
        say(f"media_mode: {media_mode} (the adapter was tuned so; its base has {usual})")
    switching.switch(peft_model, name)
    return peft_model


def trained_weights(directory: Path) -> list[str]:
    """Names of the layers of which an adapter holds weights, whole or some rows; LoRA is beside."""
    with adapter_file(directory) as file:
        names = {switching.plain_name(key).partition(".token_adapter.") for key in file.keys()}
    whole = {name.removesuffix(".weight") for name, rows, _ in names if name.endswith(".weight")}
    partly = {name for name, rows, _ in names if rows}
    return sorted({name for name in whole | partly if ".lora_" not in name})


def as_trained(model: nn.Module, directory: Path) -> None:
    """Make float32, as training had them, the tensors of a base that an adapter trained in place.

    Before the adapter is loaded: a gate that is rounded to a base's bf16 gives other answers at
    times. For models that compute under autocast, as training does; else formats would not meet.
    """
    places = switching.places_of(model)
    with adapter_file(directory) as file:
        for name in map(switching.plain_name, file.keys()):
            if name in places:
                places[name].data = places[name].data.float()


def _load(
    model: nn.Module, directory: Path, name: str, adapters: switching.Adapters
) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """The model with the adapter, and the tensors of the base that this one had trained in place.

    Raises:
        UserError: the file is damaged, or the adapter was made for another base.
    """
    with adapter_file(directory) as file:
        # By plain names: LoRA of another may stand around what this one trained in place.
        stored = {switching.plain_name(key): key for key in file.keys()}
        places = switching.places_of(model)
        direct = [key for key in stored if key in places]
        switching.set_aside(adapters, places, direct)
        peft_model = _with_lora(model, directory, name, file)
        for key in direct:
            places[key].data.copy_(file.get_tensor(stored[key]))
    end = rf"\.{re.escape(name)}"
    # DoRA's lengths are stored without their last word.
    own = re.compile(rf"(?<=\.lora_magnitude_vector){end}\.weight$|{end}(?=\.|$)")
    known = {switching.plain_name(own.sub("", key)) for key in peft_model.state_dict()}
    strange = sorted(stored.keys() - known)
    if strange:
        raise UserError(
            f"{directory} was made for another base model: {len(strange)} of its tensors have no "
            f"place in this one, e.g. {strange[0]}. Name the base it was tuned from."
        )
    return peft_model, {key: places[key].data for key in direct}


def _with_lora(model: Any, directory: Path, name: str, file: Any) -> PeftModel:
    kept = read_adapter_config(directory)
    check_fits(kept, file, model.get_input_embeddings().num_embeddings, directory)
    know_int8(kept)
    if not isinstance(model, PeftModel):
        return quietly(PeftModel.from_pretrained, model, str(directory), name, config=kept)
    quietly(model.add_adapter, name, kept)
    state = load_file(directory / WEIGHTS_NAME)
    for path, module in model.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            # peft 0.21 looks for the rows of new tokens in every adapter as soon as one has some;
            # what has no place in this one is passed over.
            for key in module.adapter_state_dict_load_map(name):
                state.setdefault(f"{path}.{key}", torch.empty(0))
    set_state_dict(model, state, adapter_name=name)
    return model
