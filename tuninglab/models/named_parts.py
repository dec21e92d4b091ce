"""The parts of a Flamingo, by the words that settings call them."""

from collections.abc import Callable
from typing import Any

from torch import nn

SCOPE = "lang_encoder"
GATED_BLOCK = "gated_cross_attn_layer"
GATES = ("attn_gate", "ff_gate")
# Its output, a summary of the picture, is not what the Perceiver reads: nothing trains it.
UNUSED = "post_layernorm"


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

    def part_of(name: str) -> str:
        name = name.removeprefix("base_model.model.")
        parts = name.split(".")
        if parts[-1] in GATES:
            return "gates"
        if parts[0] == "vision_encoder":
            return "unused" if UNUSED in parts else "vision"
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
        # Tied weights stand under each of their names.
        inside = module.named_parameters(prefix, remove_duplicate=False)
        if {part_of(name) for name, _ in inside} == {part}:
            return [prefix]
        children = module.named_children()
        return [n for name, m in children for n in largest(f"{prefix}.{name}".lstrip("."), m)]

    return largest("", model)
