"""Adapters on disk, in PEFT's layout, with what was tuned besides LoRA in the same file."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tuninglab.adapters.lora import quietly
from tuninglab.disk import whole_folder
from tuninglab.errors import UserError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


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
    return {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}


def save_adapter(model: PeftModel, directory: str | Path) -> None:
    """Write the adapter folder beside its place, then rename it there.

    `PeftModel.from_pretrained(base, directory)` alone gives the same model back.
    """
    with whole_folder(Path(directory)) as beside:
        save_file(adapter_state(model), beside / WEIGHTS_NAME, metadata={"format": "pt"})
        config = model.peft_config["default"]
        training, config.inference_mode = config.inference_mode, True
        base = type(model.get_base_model())
        # PEFT's AutoPeftModel finds the base class by these where there is no task type.
        mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        config.save_pretrained(str(beside), auto_mapping_dict=mapping)
        config.inference_mode = training


def load_adapter(model: nn.Module, directory: str | Path) -> PeftModel:
    """Put a saved adapter on its base model, for inference.

    Raises:
        UserError: the folder holds no adapter, or one that was made for another base.
    """
    directory = Path(directory)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} holds no adapter: {name} is missing. Name a run's adapter/."
            )
    try:
        with safe_open(directory / WEIGHTS_NAME, framework="pt") as file:
            stored = set(file.keys())
        peft_model = quietly(PeftModel.from_pretrained, model, str(directory))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{directory} does not fit this base model, or is broken: {reason}"
        ) from error
    known = {name.replace(".default", "") for name in peft_model.state_dict()}
    strange = sorted(stored - known)
    if strange:
        raise UserError(
            f"{directory} was made for another base model: {len(strange)} of its tensors have no "
            f"place in this one, e.g. {strange[0]}. Name the base it was tuned from."
        )
    return peft_model
