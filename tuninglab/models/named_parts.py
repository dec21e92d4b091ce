"""The parts of a Flamingo, by the words that settings call them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tuninglab.models.towers import TOWERS

SCOPE = "lang_encoder"
GATED_BLOCK = "gated_cross_attn_layer"
GATES = ("attn_gate", "ff_gate")


def part_namer(model: Any) -> Callable[[str], str]:
    """A function from the name of a parameter to its part; `unused` where no loss reaches it.

    Names may be those of the model itself, or of PEFT's around it. What is no Flamingo has lm, head
    and embeddings.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = {id(module): name for name, module in base.named_modules()}
    tables = {
        f"{names[id(module)]}.": part
        for part, module in (
            ("embeddings", base.get_input_embeddings()),
            ("head", base.get_output_embeddings()),
        )
        if id(module) in names
    }

    # Where features of pictures are read, there is no tower any more.
    tower = getattr(getattr(base, "vision_encoder", None), "config", None)
    # E.g. what makes a summary of the picture of a class token: not what the Perceiver reads.
    unused = None if tower is None else TOWERS[tower.model_type].unused

    def part_of(name: str) -> str:
        """The part that a parameter of this name belongs to."""
        name = name.removeprefix("base_model.model.")
        parts = name.split(".")
        if parts[-1] in GATES:
            return "gates"
        if parts[0] == "vision_encoder":
            return "unused" if unused in parts else "vision"
        if parts[0] == "perceiver":
            return "perceiver"
        if GATED_BLOCK in parts:
            return "cross_attention"
        return next((part for start, part in tables.items() if name.startswith(start)), "lm")

    return part_of


def modules_of(model: nn.Module, part: str) -> list[str]:
    """Names of the largest modules that belong to a part with all they hold."""
    part_of = part_namer(model)

    def largest(prefix: str, module: nn.Module) -> list[str]:
        """The module itself if all in it is of the part, else those below it that are."""
        # Tied weights stand under each of their names.
        inside = module.named_parameters(prefix, remove_duplicate=False)
        parts = {part_of(name) for name, _ in inside}
        # Parameters of its own have no other module: those of DINO's embeddings have an unused one
        # among them.
        own = {part_of(name) for name, _ in module.named_parameters(prefix, recurse=False)}
        if parts == {part} or part in own and parts == {part, "unused"}:
            return [prefix]
        children = module.named_children()
        return [n for name, m in children for n in largest(f"{prefix}.{name}".lstrip("."), m)]

    return largest("", model)
