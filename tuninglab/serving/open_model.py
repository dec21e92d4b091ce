"""A model ready to answer: from a run folder, an adapter, a model directory or a hub id."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuninglab.adapters.base_format import TOWERS, tell_base_format
from tuninglab.adapters.kept_settings import adapter_prompt
from tuninglab.adapters.products import choose_products, use_onednn
from tuninglab.adapters.saving import load_adapter, trained_weights
from tuninglab.adapters.switching import switch
from tuninglab.console import Choices, say
from tuninglab.int8.quantiser import Int8Config, int8_layers
from tuninglab.kernels.gpu import passes_here
from tuninglab.models.build import load_flamingo
from tuninglab.models.decoding import decoding_of
from tuninglab.run_folder.named_model import NamedModel, base_told, find_model
from tuninglab.training.hardware import best_device

MAIN = "default"  # what PEFT calls the adapter of the model that was named


def open_model(name: str, threads: int | None = None, exact: bool = True) -> tuple[Any, Any]:
    """Load a model in evaluation mode on the best device of this machine, and its processor.

    A base is loaded as it is saved, even if the run held it in fewer bits, which is said. Its
    weights are frozen.

    Args:
        name: a run folder, the adapter/ in it or one of its checkpoints, an adapter directory (all
            of them: base with adapter), a model directory, a hub id, or `embedded`.
        threads: that compute on a CPU; None leaves their number to torch and the environment.
        exact: False rounds the language model's float weights to int8 as they are read, but those
            that the adapter trained: other answers at times, in less memory and time.

    Raises:
        UserError: there is no such model, the run has not ended, its base is gone, or it is to be
            rounded and cannot be (weights of another quantisation, DoRA).
    """
    return open_named(find_model(name), {}, threads, exact)


def open_named(
    named: NamedModel, beside: Mapping[str, Path], threads: int | None, exact: bool
) -> tuple[Any, Any]:
    """As `open_model`, of a model that was found, with further adapters that are off.

    Args:
        named: the base, and its adapter if it has one, which is on.
        beside: adapters by what they are called.
        threads: as in `open_model`.
        exact: as in `open_model`.

    Raises:
        UserError: as `open_model`.
    """
    main = {} if named.adapter is None else {MAIN: named.adapter}
    adapters = main | dict(beside)
    trained = [] if exact else [w for path in adapters.values() for w in trained_weights(path)]
    quantised = None if exact else Int8Config([*TOWERS, *trained], head=True)
    with base_told(named):
        model, processor = load_flamingo(named.base, quantization=quantised)
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
    if not exact:
        tell_base_format(model, choices, device)
    # Before an adapter is loaded: PEFT puts its weights where the layers are.
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.requires_grad_(False)
    products = choose_products("auto", model, model.dtype, choices)
    opened = model
    for name, path in adapters.items():
        opened = load_adapter(opened, path, name).eval()
    if named.adapter is not None:
        processor.use_prompt(adapter_prompt(named.adapter))
    if beside:
        switch(opened, MAIN if main else None)  # pyright: ignore[reportArgumentType]
    if products == "onednn":
        use_onednn(opened)
    if device.type == "cpu":
        choices.add("decoding", *decoding_of(opened.lang_encoder))
    return opened, processor
