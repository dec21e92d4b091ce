"""Whether a checkpoint and the parts given belong together, before any weights are loaded."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from tuninglab.errors import UserError
from tuninglab.models.build import flamingo_config_of
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.formats.filling import misfits
from tuninglab.models.formats.layout import Checkpoint, Layout
from tuninglab.models.formats.open_flamingo import FAMILIES
from tuninglab.models.formats.released import matching, right_parts
from tuninglab.models.pretrained import find_decoder_layers
from tuninglab.models.processing import FlamingoProcessor

SHOWN = 6


def bridge_options(layout: Layout) -> dict[str, Any]:
    """The fields of `FlamingoConfig` that a checkpoint determines."""
    return {
        "cross_attn_every_n_layers": layout.interval,
        "media_mode": layout.media_mode,
        **layout.perceiver,
    }


def check_lang_config(lang_config: Any, layout: Layout, name: str) -> None:
    """Check the family and size of a language model.

    Raises:
        UserError: it is not the one of the checkpoint.
    """
    text, kind = lang_config.get_text_config(decoder=True), lang_config.model_type
    problems = []
    families = {model.family for model in matching(layout)}
    if not families and kind in FAMILIES.values():
        # What has names of its own is asked about its layers later.
        families = {layout.family}
    if families and kind not in families:
        problems.append(f"it is a {kind}, not a {' or '.join(sorted(families))}")
    if text.hidden_size != layout.width:
        problems.append(f"it is {text.hidden_size} wide, not {layout.width}")
    if text.num_hidden_layers not in layout.layers:
        problems.append(f"it has {text.num_hidden_layers} layers, not {layout.layers_told}")
    if problems:
        raise UserError(
            f"--lang_encoder {name} is not the language model of this checkpoint: "
            f"{'; '.join(problems)}. {right_parts(layout)}"
        )


def check_skeleton(
    checkpoint: Checkpoint,
    layout: Layout,
    text_config: Any,
    vision_config: Any,
    processor: FlamingoProcessor,
    rows: int,
    trust: bool,
) -> None:
    """Check every name and shape on a model without weights.

    Raises:
        UserError: a weight of the file has no place, or the bridge is not whole.
    """
    text = copy.deepcopy(text_config)
    text.get_text_config(decoder=True).vocab_size = rows
    try:
        # transformers cannot resolve the dtype of a config while the default device is meta.
        with torch.device("meta"):
            lang = AutoModelForCausalLM.from_config(text, trust_remote_code=trust)
            layers = find_decoder_layers(lang)
            path = next(name for name, module in lang.named_modules() if module is layers)
            config = flamingo_config_of(
                lang.config, copy.deepcopy(vision_config), processor, **bridge_options(layout)
            )
            vision = AutoModel.from_config(config.vision_config)
            skeleton = FlamingoForConditionalGeneration(config, lang, vision)
    except (ValueError, StrictDataclassError) as error:
        raise UserError(f"{checkpoint.path} with this language model: {error}") from error
    if FAMILIES.get(path) != layout.family:
        raise UserError(
            f"the language model given is a {text.model_type} with its layers at {path}, but the "
            f"checkpoint is of a {layout.family}. {right_parts(layout)}"
        )
    refuse_misfits(skeleton.state_dict(), checkpoint, layout)


def refuse_misfits(expected: Mapping[str, Tensor], checkpoint: Checkpoint, layout: Layout) -> None:
    """Check the names and shapes of a file against those of a model.

    Raises:
        UserError: naming those that do not fit.
    """
    problems = misfits(expected, checkpoint.tensors, layout.keys)
    targets = layout.targets
    # Of the tower a file has all or nothing; another tower's layers must not be mixed in.
    whole = ["perceiver.", "vision_encoder."] if holds_tower(targets) else ["perceiver."]
    problems += [
        f"no {name} in the file"
        for name in expected
        if name not in targets
        and (name.startswith(tuple(whole)) or ".gated_cross_attn_layer." in name)
    ]
    if problems:
        raise UserError(
            f"{checkpoint.path} does not fit the parts given: {told(problems)}. "
            f"{right_parts(layout)}"
        )


def told(problems: Sequence[str]) -> str:
    """The first of some problems, and how many more there are."""
    rest = len(problems) - SHOWN
    return "; ".join([*problems[:SHOWN], *([f"and {rest} more"] if rest > 0 else [])])


def holds_tower(targets: Collection[str]) -> bool:
    """Whether weights of a vision tower are among these targets."""
    return any(target.startswith("vision_encoder.") for target in targets)


def refuse_unfilled(model: torch.nn.Module, layout: Layout, checkpoint: Checkpoint) -> None:
    """Check that a file fills every weight of a model.

    Raises:
        UserError: naming those that it lacks.
    """
    state = model.state_dict()
    # By place and not by name: a tied head has no key of its own.
    filled = {state[target].data_ptr() for target in layout.targets}
    gone = [name for name, tensor in state.items() if tensor.data_ptr() not in filled]
    if gone:
        raise UserError(
            f"{checkpoint.path} is incomplete: {len(gone)} weights are not there, e.g. "
            f"{', '.join(gone[:SHOWN])}. Download the whole directory"
        )
