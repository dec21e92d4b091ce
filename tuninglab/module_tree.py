"""The module tree of a model as text: equal siblings on one line, parameters behind their owner.

The rules are those by which the source document's trees were printed (bigmodelvis 0.0.1); PEFT's
`base_layer` is folded into its owner, as PEFT 0.3 to 0.6, which made the second tree, had none.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuninglab.adapters.tuning_config import TuningConfig
from tuninglab.config import TreeConfig
from tuninglab.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class _Branch:
    """One line of the tree, and what hangs below it. Equal branches compare equal."""

    label: str
    # Text and trainability: a frozen and a trainable parameter of one shape never merge.
    parameters: tuple[tuple[str, bool], ...]
    children: tuple["_Branch", ...]


def render_tree(module: "nn.Module") -> str:
    """Render the tree below a module; the root's own parameters are not shown."""
    return "\n".join(["root", *_lines(_merge(_children(module)))])


def tree_of(config: TreeConfig) -> str:
    """Load the model that the user named and render its tree.

    Raises:
        UserError: there is no such model or no such part.
    """
    # torch is imported by these two; rendering a tree that exists needs neither.
    from tuninglab.adapters.lora import tune
    from tuninglab.serving.open_model import open_model

    model, _ = open_model(config.model)
    if config.lora and not hasattr(model, "peft_config"):
        model = tune(model, TuningConfig())
    if config.part is None:
        return render_tree(model)
    # Parts are named as in the Flamingo itself, with PEFT's wrapper or without it.
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    parts = dict(whole.named_modules())
    if not config.part or config.part not in parts:
        near = difflib.get_close_matches(config.part, parts, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        top = ", ".join(name for name, _ in whole.named_children())
        raise UserError(f"--part is {config.part!r}; there is no such module.{hint} Parts: {top}.")
    return render_tree(parts[config.part])


def _children(module: "nn.Module") -> list[tuple[str, "nn.Module"]]:
    """Sub-modules by name, with those of PEFT's wrapped layer in place of the layer."""
    children = dict(module.named_children())
    # PEFT since 0.7 keeps the layer it wraps as a child of this name.
    wrapped = children.pop("base_layer", None)
    return [*(wrapped.named_children() if wrapped is not None else ()), *children.items()]


def _class_and_parameters(module: "nn.Module") -> tuple[str, tuple[tuple[str, bool], ...]]:
    own = [*module.named_parameters(recurse=False)]
    wrapped = dict(module.named_children()).get("base_layer")
    if wrapped is not None:
        own += wrapped.named_parameters(recurse=False)
    texts = tuple((f"{name}:{list(p.shape)}", p.requires_grad) for name, p in own)
    return type(module if wrapped is None else wrapped).__name__, texts


def _merge(modules: Iterable[tuple[str, "nn.Module"]]) -> tuple[_Branch, ...]:
    """Turn siblings into branches; those with equal content below their own label become one.

    Groups stand where their first member stood and need not be adjacent: `gate_proj,up_proj`
    merge around the activation between them. Modules with nothing below have no content to
    compare, so they stay apart.
    """
    groups: dict[_Branch, list[tuple[str, str]]] = {}
    for name, module in modules:
        kind, parameters = _class_and_parameters(module)
        children = _merge(_children(module))
        # The own name takes part in the comparison only where there is nothing else to compare.
        own_label = "" if parameters or children else name
        content = _Branch(own_label, parameters, children)
        groups.setdefault(content, []).append((name, kind))
    return tuple(
        _Branch(_label(members), content.parameters, content.children)
        for content, members in groups.items()
    )


def _label(members: list[tuple[str, str]]) -> str:
    """`name (Class)` of one module; `a,b(Class)` or `0-31(Class)` of several."""
    if len(members) == 1:
        return "{} ({})".format(*members[0])
    # Content decides about merging, not class: LayerNorm and RMSNorm of one shape may share a line.
    by_class: dict[str, list[str]] = {}
    for name, kind in members:
        by_class.setdefault(kind, []).append(name)
    return ",".join(f"{','.join(_ranges(names))}({kind})" for kind, names in by_class.items())


def _ranges(names: list[str]) -> list[str]:
    """Numbers become runs, always `first-last` (a lone 3 is `3-3`); other names stay."""
    if not all(name.isdecimal() for name in names):
        return names
    # Gated blocks stand at 3, 7, 11, ...: the layers between them are runs of three.
    runs: list[list[int]] = []
    for number in map(int, names):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [f"{first}-{last}" for first, last in runs]


def _lines(branches: tuple[_Branch, ...], indent: str = "") -> list[str]:
    # Modules with neither parameters nor sub-modules (dropout, activations) are left out; a
    # container whose only content is such a module stays, as in the source document.
    shown = [branch for branch in branches if branch.parameters or branch.children]
    lines = []
    for branch in shown:
        last = branch is shown[-1]
        text = " ".join([branch.label, *(text for text, _ in branch.parameters)])
        lines.append(f"{indent}{'└── ' if last else '├── '}{text}")
        lines += _lines(branch.children, indent + ("    " if last else "│   "))
    return lines
