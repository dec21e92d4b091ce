"""A model ready to answer: from a run folder, an adapter, a model directory or a hub id."""

from typing import Any

from tuninglab.adapters.saving import load_adapter
from tuninglab.console import Choices, say
from tuninglab.errors import UserError
from tuninglab.int8.quantiser import int8_layers
from tuninglab.kernels.gpu import passes_here
from tuninglab.models.build import load_flamingo
from tuninglab.named_model import find_model
from tuninglab.training.hardware import best_device


def open_model(name: str, threads: int | None = None) -> tuple[Any, Any]:
    """Load a model in evaluation mode on the best device of this machine, and its processor.

    A base is loaded as it is saved, even if the run held it in fewer bits, which is said.

    Args:
        name: a run folder, the adapter/ in it or one of its checkpoints, an adapter directory (all
            of them: base with adapter), a model directory, a hub id, or `embedded`.
        threads: that compute on a CPU; None leaves their number to torch and the environment.

    Raises:
        UserError: there is no such model, the run has not ended, or its base is gone.
    """
    named = find_model(name)
    try:
        model, processor = load_flamingo(named.base)
    except UserError as error:
        if named.adapter is None:
            raise
        # The user named the result of tuning, not its base: say how the two belong together.
        raise UserError(f"The base of {named.tuned}: {error}") from error
    if named.tuned_on != "none" and not hasattr(model.config, "quantization_config"):
        floats = str(model.dtype).removeprefix("torch.")
        say(
            f"base weights: {floats}, as they are saved ({named.tuned} was tuned on them in "
            f"{named.tuned_on}; its adapter fits both)"
        )
    choices = Choices()
    device = best_device(choices, threads)
    # On other devices Triton multiplies those of int8 layers alone.
    if device.type == "cpu" or int8_layers(model):
        choices.add("products of few rows", *passes_here(device))
    # Before the adapter is loaded: PEFT puts its weights where the layers are.
    model.to(device)  # pyright: ignore[reportArgumentType]
    if named.adapter is None:
        return model, processor
    return load_adapter(model, named.adapter).eval(), processor
