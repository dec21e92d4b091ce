"""Several adapters on one base, and which of them is on, or the base alone.

PEFT keeps LoRA for each adapter, but what was trained in place (gates, the Perceiver) only once:
loading a second adapter overwrites the gates of the first, and neither `set_adapter` nor
`disable_adapter()` brings them, or those of the base, back (peft 0.21). Here each keeps its own.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

PREFIX = "base_model.model."


@dataclass
class Held:
    """What belongs to an adapter, or to the base, and PEFT keeps only once.

    Attributes:
        tensors: what the adapter trained in place, by name; of the base, what any of them did.
        media_mode: which image text sees; None where it is the base's, or there are no images.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    media_mode: str | None = None


@dataclass
class Adapters:
    """The adapters of a model by name; None is the base alone, and what `active` is then."""

    held: dict[str | None, Held]
    active: str | None = None


def adapters_of(model: nn.Module) -> Adapters:
    """The adapters that `load_adapter` put on a model; of a plain base, that it has none.

    Raises:
        ValueError: the model got its adapter otherwise: what its base held is not known.
    """
    kept = getattr(model, "held_adapters", None)
    if kept is None and isinstance(model, PeftModel):
        raise ValueError(
            "this model did not get its adapter from tuninglab's load_adapter: what its base held "
            "where the adapter trained in place is not known. Load base and adapter again with it"
        )
    mode = getattr(getattr(model, "config", None), "media_mode", None)
    return kept or Adapters({None: Held(media_mode=mode)})


def places_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The base's own parameters by name; a layer is called the same under LoRA and without."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    named = base.named_parameters(remove_duplicate=False)
    return {plain_name(name): parameter for name, parameter in named}


def plain_name(key: str) -> str:
    """A key of an adapter file, or a name in a wrapped model, as the bare base names it."""
    return key.removeprefix(PREFIX).replace(".base_layer.", ".")


def set_aside(adapters: Adapters, places: dict[str, nn.Parameter], names: Iterable[str]) -> None:
    """Keep the base's values of some parameters, which go on as copies that may be loaded into.

    The base is what must be on. The kept ones are its tensors themselves: where they are mapped
    from a file, they take no memory.
    """
    for name in names:
        adapters.held[None].tensors.setdefault(name, places[name].data)
        places[name].data = places[name].data.clone()


def put_back(adapters: Adapters, model: nn.Module) -> None:
    """Give the base its kept tensors again, whatever was loaded into their copies."""
    places = places_of(model)
    for key, tensor in adapters.held[None].tensors.items():
        places[key].data = tensor


def switch(model: PeftModel, name: str | None) -> None:
    """Turn one adapter on and all others off; None leaves the base alone, as if never wrapped.

    What trains stays what it was; the media mode goes along.

    Raises:
        ValueError: there is no such adapter, or the model was not loaded by `load_adapter`.
    """
    adapters = adapters_of(model)
    if name not in adapters.held:
        loaded = ", ".join(sorted(filter(None, adapters.held)))
        raise ValueError(f"there is no adapter {name!r}; loaded are: {loaded}")
    base, old, new = (adapters.held[key] for key in (None, adapters.active, name))
    places = places_of(model)
    for key in base.tensors:
        place = places[key]
        # Read back first: it may have been trained or moved to another device since.
        (old if key in old.tensors else base).tensors[key] = place.data
        value = new.tensors.get(key, base.tensors[key])
        place.data = value.to(place.device, place.dtype)
    _switch_lora(model, name)
    config: Any = model.get_base_model().config
    if base.media_mode is not None:
        config.media_mode = new.media_mode or base.media_mode
    adapters.active = name


def _switch_lora(model: PeftModel, name: str | None) -> None:
    # PEFT lets what it turns on train, and what it turns off not.
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    tuner: Any = model.base_model
    with warnings.catch_warnings():
        # Of biases, which PEFT leaves as they are; here they are among the tensors put back.
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers")
        if name is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            model.set_adapter(name)
    for parameter, flag in trains:
        parameter.requires_grad_(flag)


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[PeftModel]:
    """The base alone while inside, gates and media mode included; then the adapter again.

    PEFT's own `disable_adapter()` turns off LoRA only.

    Raises:
        ValueError: the model was not loaded by `load_adapter`.
    """
    active = adapters_of(model).active
    switch(model, None)
    try:
        yield model
    finally:
        switch(model, active)
