"""Templates of strangers run within bounds: so many steps, and texts and lists of so many things.

Jinja's sandbox keeps a template from what is none of its business, not from working for ever.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from math import prod
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

# Rounds of loops and calls, for one dialogue. Templates that go through all messages for each of
# them need 10,000 for a hundred.
MOST_STEPS = 400_000
# What the rounds may write in a block that is kept, when each writes the whole template.
MOST_WRITTEN = 2**30
# Letters of a text or entries of a list; and what a filter or function might make at once.
MOST_LENGTH, MOST_GROWN = 2**20, 2**26
# Letters or entries that are gone through in the time of a round.
A_STEP = 4
WIDTHS = re.compile(r"[0-9]{4,30}")
STEPS = "steps_left"  # the name under which a rendering has its count
COUNTED, MEASURED = "counted_steps", "measured_length"
OPERATORS = frozenset(["+", "*", "**", "%"])


class Bounded(ImmutableSandboxedEnvironment):
    """transformers' environment of chat templates, made by `bounded`."""

    intercepted_binops = OPERATORS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise SecurityError("loops that call themselves are not run")
            loop.iter = _filtered(loop.iter, COUNTED)
        for joined in list(tree.find_all(nodes.Concat)):
            whole = nodes.Concat(joined.nodes)
            whole.lineno = joined.lineno
            joined.nodes = [_filtered(whole, MEASURED)]
        # What is new in the tree has to know, as the parser sees to it for all else.
        tree.set_environment(self)
        return tree

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call, which is a step."""
        given = [getattr(obj, "__self__", None), *args]
        _check_given(getattr(obj, "__name__", ""), given, kwargs)
        _take(context, *given)
        result = measured(super().call(context, obj, *args, **kwargs))
        _take(context, result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result may be much larger than what it is of."""
        if operator == "%" and isinstance(left, str):
            _check_given("format", [left, *(right if isinstance(right, tuple) else [right])], {})
        elif operator in "**":
            sizes = [len(one) if hasattr(one, "__len__") else abs(one) for one in (left, right)]
            numbers = all(isinstance(one, int) for one in (left, right))
            if operator == "**" and numbers and (sizes[0] > MOST_LENGTH or sizes[1] > 64):
                raise SecurityError("** makes a number that is too large")
            if operator == "*":
                _check_length(sizes[0] * sizes[1], MOST_LENGTH**2 if numbers else MOST_LENGTH)
        return measured(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """The `format` of a text, None for any other value."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_given("format", [value.__self__], {})
        return wrapped


class Steps:
    """How many steps a rendering may still take."""

    def __init__(self, template: str):
        self.left = min(MOST_STEPS, MOST_WRITTEN // (1 + len(template)))


@lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """A chat template, to be rendered with a new `Steps` under the name STEPS.

    Raises:
        Exception: whatever Jinja says of it.
    """
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Bounded:
    # As `Environment.overlay` makes one, but of this class.
    known = chat_template_utils._compile_jinja_template("").environment
    made = object.__new__(Bounded)
    made.__dict__.update(known.__dict__)
    made.overlayed, made.linked_to = True, known
    made.extensions = {name: one.bind(made) for name, one in known.extensions.items()}
    made.intercepted_binops = OPERATORS
    # Else what is constant would be computed before anything is counted.
    made.optimized = False
    made.filters = {name: _within(one) for name, one in known.filters.items()}
    made.filters |= {COUNTED: counted, MEASURED: measured}
    # Of no use in a prompt, and as much text as is asked for.
    made.globals = {name: one for name, one in known.globals.items() if name != "lipsum"}
    return made


@pass_context
def counted(context: Context, things: Iterable[Any]) -> Iterator[Any]:
    """What a loop goes through, each a step."""
    for one in things:
        _take(context)
        yield one


def measured(value: Any) -> Any:
    """The value, if it is not too long."""
    if isinstance(value, str | list | tuple):
        _check_length(len(value))
    return value


def _within(filter: Callable[..., Any]) -> Callable[..., Any]:
    # What Jinja passes to it before all else, by a mark on the function.
    passed = getattr(getattr(filter, "jinja_pass_arg", None), "name", None)
    name = filter.__name__.removeprefix("do_")

    @wraps(filter)
    def checked(context: Context, *args: Any, **kwargs: Any) -> Any:
        _check_given(name, args, kwargs)
        _take(context, *args)
        firsts = {"context": context, "eval_context": context.eval_ctx}
        firsts |= {"environment": context.environment}
        result = filter(*([firsts[passed]] if passed else []), *args, **kwargs)
        _take(context, result)
        return measured(result)

    return pass_context(checked)


def _filtered(of: Any, name: str) -> nodes.Filter:
    made = nodes.Filter(of, name, [], [], None, None)
    made.lineno = of.lineno
    return made


def _take(context: Context, *things: Any) -> None:
    """Count a step, and as many as it takes to go through the largest of some things."""
    sizes = [len(one) for one in things if isinstance(one, str | list | tuple | range)]
    steps = context.parent[STEPS]
    steps.left -= 1 + max(sizes, default=0) // A_STEP
    if steps.left < 0:
        raise SecurityError("it takes too many steps for one dialogue")


def _check_given(name: str, given: Iterable[Any], named: dict[str, Any]) -> None:
    """Refuse what makes much of little: widths and counts, and texts put into texts."""
    given = [*given, *named.values()]
    sizes = [max(len(one), 1) for one in given if isinstance(one, str | list | tuple)]
    numbers = [max(abs(one), 1) for one in given if isinstance(one, int)]
    if name in ("format", "format_map"):
        texts = [one for one in given if isinstance(one, str)]
        numbers += [int(width) for width in WIDTHS.findall("".join(texts[:1]))]
    size = prod(sizes) if name in ("replace", "join") else max(sizes, default=1)
    _check_length(size * prod(numbers), MOST_GROWN)


def _check_length(length: float, most: int = MOST_LENGTH) -> None:
    if length > most:
        raise SecurityError(f"it makes something of more than {most:,} letters or entries")
