"""The module tree of a model as text: equal siblings on one line, parameters behind their owner.

The rules are those by which the source document's trees were printed (bigmodelvis 0.0.1); PEFT's
`base_layer` is folded into its owner, as PEFT 0.3 to 0.6, which made the second tree, had none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# A line is a row of (style, text): what it says must be known apart from its colours.
Line = list[tuple[str, str]]

# The colours of bigmodelvis 0.0.1, but frozen is dim: its dark blue cannot be read on black.
COLOURS = {"merged": "31", "class": "32", "trainable": "36", "frozen": "2", "stats": "2"}


@dataclass(frozen=True)
class Branch:
    """One line of the tree, and what hangs below it. Equal branches compare equal.

    Attributes:
        members: name and class of the merged siblings, or of the one module.
        parameters: text and trainability: a frozen and a trainable one of equal shape never merge.
        modules: all that the line stands for: 4 projections below 32 merged layers are 128.
    """

    members: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, bool], ...]
    children: tuple["Branch", ...]
    modules: tuple["nn.Module", ...] = field(compare=False)

    @property
    def shown(self) -> bool:
        """False for modules with neither parameters nor sub-modules: dropout, activations.

        A container whose only content is such a module stays, as in the source document.
        """
        return bool(self.parameters or self.children)


def plain(line: Line) -> str:
    """The text of a line."""
    return "".join(text for _, text in line)


def coloured(line: Line) -> str:
    """The text of a line with the colours of a terminal."""
    return "".join(
        f"\x1b[{COLOURS[style]}m{text}\x1b[0m" if style in COLOURS else text for style, text in line
    )


def own_parameters(module: "nn.Module") -> list[tuple[str, "nn.Parameter"]]:
    """A module's own parameters, with those of the layer that PEFT wrapped in it."""
    owners = [owner for owner in (module, _wrapped(module)) if owner is not None]
    return [item for owner in owners for item in owner.named_parameters(recurse=False)]


def _wrapped(module: "nn.Module") -> "nn.Module | None":
    # PEFT since 0.7 keeps the layer it wraps as a child of this name.
    return dict(module.named_children()).get("base_layer")


def _children(module: "nn.Module") -> list[tuple[str, "nn.Module"]]:
    """Sub-modules by name, with those of PEFT's wrapped layer in place of the layer."""
    wrapped = _wrapped(module)
    inside = [] if wrapped is None else list(wrapped.named_children())
    return inside + [item for item in module.named_children() if item[1] is not wrapped]


def branches_below(module: "nn.Module") -> tuple[Branch, ...]:
    """Sub-modules as branches; siblings with equal content below their own label become one.

    Groups stand where their first member stood and need not be adjacent: `gate_proj,up_proj`
    merge around the activation between them. Modules with nothing below have no content to
    compare, so they stay apart.
    """
    groups: dict[tuple, list[Branch]] = {}
    for name, child in _children(module):
        kind = type(_wrapped(child) or child).__name__
        parameters = tuple(
            (f"{key}:{list(value.shape)}", value.requires_grad)
            for key, value in own_parameters(child)
        )
        branch = Branch(((name, kind),), parameters, branches_below(child), (child,))
        # The own name takes part in the comparison only where there is nothing else to compare.
        content = (parameters, branch.children, "" if branch.shown else name)
        groups.setdefault(content, []).append(branch)
    return tuple(
        replace(_stacked(group), members=tuple(m for branch in group for m in branch.members))
        for group in groups.values()
    )


def _stacked(equal: list[Branch]) -> Branch:
    """Equal branches as one, which stands for the modules of all."""
    # Equal content is of one form, so the branches below correspond one to one.
    if len(equal) == 1:
        return equal[0]
    modules = tuple(module for branch in equal for module in branch.modules)
    below = zip(*(branch.children for branch in equal), strict=True)
    children = tuple(_stacked(list(branches)) for branches in below)
    return replace(equal[0], modules=modules, children=children)


def label(branch: Branch) -> Line:
    """`name (Class)` of one module; `a,b(Class)` or `0-31(Class)` of several."""
    if len(branch.members) == 1:
        name, kind = branch.members[0]
        return [("name", name), ("class", f" ({kind})")]
    # Content decides about merging, not class: LayerNorm and RMSNorm of one shape may share a line.
    by_class: dict[str, list[str]] = {}
    for name, kind in branch.members:
        by_class.setdefault(kind, []).append(name)
    line: Line = []
    for kind, names in by_class.items():
        comma = "," if line else ""
        line += [("merged", comma + ",".join(_ranges(names))), ("class", f"({kind})")]
    return line


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


def tree_lines(branches: tuple[Branch, ...], indent: str = "") -> Iterator[tuple[Line, Branch]]:
    """The lines of a tree, each with the branch it shows."""
    shown = [branch for branch in branches if branch.shown]
    for branch in shown:
        last = branch is shown[-1]
        line = [("guide", indent + ("└── " if last else "├── ")), *label(branch)]
        for text, trainable in branch.parameters:
            line.append(("trainable" if trainable else "frozen", " " + text))
        yield line, branch
        yield from tree_lines(branch.children, indent + ("    " if last else "│   "))
