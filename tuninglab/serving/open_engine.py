"""An engine for what a user named: a run or a model, further adapters, and the base below them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuninglab.adapters.kept_settings import adapter_prompt
from tuninglab.adapters.switching import adapters_of
from tuninglab.config import ServeConfig
from tuninglab.console import Choices, say
from tuninglab.data.prompt import make_prompt
from tuninglab.errors import UserError
from tuninglab.run_folder.named_model import NamedModel, find_model, shipped
from tuninglab.serving.engine import Engine
from tuninglab.serving.exchange import Sampling
from tuninglab.serving.open_model import MAIN, open_named
from tuninglab.serving.reading import ServedModel
from tuninglab.serving.sampling import Chooser

# Parts that see; an adapter that trained some sees otherwise than the base.
EYES = ("vision_encoder.", "perceiver.")


def open_engine(config: ServeConfig) -> tuple[Engine, str]:
    """Load what the settings name; returns its engine, and what the base is called.

    Raises:
        UserError: a model or an adapter cannot be loaded, or names and bases do not go together.
    """
    named = find_model(config.model)
    beside = dict(_adapter(pair, named) for pair in config.adapter)
    # PEFT takes no dots in names, clients' names may have some.
    inner = {name: f"adapter{number}" for number, name in enumerate(beside)}
    main, base = called(named)
    adapters = {main: MAIN} if named.adapter is not None else {}
    if taken := {*adapters, base} & inner.keys():
        raise UserError(
            f"--adapter {taken.pop()}=...: a model of this name is served already; give another"
        )
    paths = {inner[name]: path for name, path in beside.items()}
    model, processor = open_named(named, paths, config.threads, config.exact)
    served = _served(model, processor, adapters | inner, beside, base)
    engine = Engine(
        model,
        processor,
        served,
        max_new_tokens=config.max_new_tokens,
        max_rows=config.max_rows,
        max_queue=config.max_queue,
        image_cache=config.image_cache,
        prefix_cache=config.prefix_cache,
    )
    # Told now, and not to the first client: that model's own settings let it answer.
    flamingo = engine.reader.model
    chooser = Chooser(flamingo, Sampling(), 1)
    end = flamingo.config.eoc_token_id
    vocabulary = flamingo.get_input_embeddings().num_embeddings
    chooser.choose([end], torch.zeros(vocabulary, device=flamingo.device))
    return engine, base


def tell(engine: Engine) -> None:
    """Say what was chosen of how requests are answered together, and why."""
    choices = Choices()
    reader = engine.reader
    together = f"up to {engine.max_rows} together" if reader.plain else "a row at a time each"
    reason = engine.rows_reason if reader.plain else reader.reason
    choices.add("answers", together, reason)


def called(named: NamedModel) -> tuple[str, str]:
    """What clients call the model that was named, and its base: the same where there is no adapter.

    A folder by its own name, a checkpoint by its run's besides, others as they are.
    """
    folder = Path(named.base)
    base = folder.resolve().name if folder.is_dir() else named.base
    if named.adapter is None:
        return base, base
    own = named.adapter.resolve()
    parts = [own.parent.name if own.name == "adapter" else own.name]
    run = None if named.run is None else named.run.resolve()
    if run is not None and parts[0] != run.name:
        parts.insert(0, run.name)
    name = "-".join(parts)
    # A run that keeps a base of its own calls it `base`.
    alike = base == name or run is not None and folder.resolve() == run / "base"
    return name, f"{name}-base" if alike else base


def _adapter(pair: str, named: NamedModel) -> tuple[str, Path]:
    """Name and folder of `NAME=DIR`.

    Raises:
        UserError: there is no adapter, or it is of another base.
    """
    name, _, place = pair.partition("=")
    other = find_model(place)
    if other.adapter is None:
        raise UserError(
            f"--adapter {pair}: {place} is no adapter but a model. Serve it by itself, or name a "
            "run or an adapter directory"
        )
    bases = [Path(shipped(base)).expanduser() for base in (named.base, other.base)]
    if all(base.is_dir() for base in bases) and bases[0].resolve() != bases[1].resolve():
        raise UserError(
            f"--adapter {pair}: it was tuned on {other.base}, and {named.base} is served. Adapters "
            "work on their own base only"
        )
    if not all(base.is_dir() for base in bases) and named.base != other.base:
        say(f"adapter {name}: it names {other.base} as its base; taken for {named.base}")
    return name, other.adapter


def _served(
    model: Any,
    processor: Any,
    adapters: Mapping[str, str],
    beside: Mapping[str, Path],
    base: str,
) -> dict[str, ServedModel]:
    """What each name stands for, the model that was named first, the base last."""
    held = adapters_of(model).held if adapters else {}
    served = {}
    for name, inner in adapters.items():
        prompt = processor.prompt
        if name in beside:
            prompt = make_prompt(adapter_prompt(beside[name]), processor.tokenizer)
        sees = any(key.startswith(EYES) for key in held[inner].tensors)
        served[name] = ServedModel(inner, prompt, inner if sees else None)
    # In the prompt of the run, where one was named: so it is compared with what it became.
    return served | {base: ServedModel(None, processor.prompt)}
