"""A pickle as records: read by a machine of few instructions, which imports and calls nothing."""

import pickletools
from typing import IO, Any

import torch

from tuninglab.models.formats.records import (
    DENSE,
    DICTIONARIES,
    ORDERED,
    STORAGES,
    SUBCLASS,
    WRAPPED,
    Dictionary,
    Foreign,
    Named,
    Storage,
    TensorRecord,
    named,
)

# Instructions and copied items. A state dict takes some 40 for a tensor; of this many, even empty
# dictionaries take less than a GiB.
MOST_STEPS = 2_000_000
# Of integers as keys: beyond it, thousands of them can be found that share one hash.
LARGEST_KEY = 2**60

# Instructions that put their argument on the stack, a constant, or a new container. Sets become
# lists: nothing here needs more of them. Integers beyond 255 bytes have no place in a checkpoint.
PUSHED = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """Reads pickles (protocols 2 to 5).

    Attributes:
        storages: those that tensors were found to lie in, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._left = MOST_STEPS
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self, stream: IO[bytes]) -> Any:
        """The next pickle of a stream, which is left behind its end.

        Time and memory are bounded: by `MOST_STEPS`, and by the bytes of the pickle.

        Raises:
            ForbiddenName: it names what is neither a tensor nor a known container.
            Exception: of many classes, where it is damaged or does what no checkpoint needs.
        """
        self._stack, self._below, self._memo = [], [], {}
        argument: Any
        for opcode, argument, _ in pickletools.genops(stream):
            self._spend(1)
            name = opcode.name
            if name in PUSHED:
                self._stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[argument] = self._stack[-1]
            elif name == "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            elif name in CONSTANTS:
                self._stack.append(CONSTANTS[name])
            elif name in EMPTY:
                self._stack.append(EMPTY[name]())
            elif name in TUPLES:
                self._stack.append(tuple(self._pop() for _ in range(TUPLES[name]))[::-1])
            elif name == "GLOBAL":
                self._stack.append(named(*argument.split(" ", 1)))
            else:
                self._collect(name)
        return self._pop()

    def _collect(self, name: str) -> None:
        """The instructions that put something together out of what lies on the stack."""
        if name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name == "TUPLE":
            items = tuple(self._above_mark())
            self._stack.append(items)
        elif name in ("SETITEMS", "SETITEM"):
            items = self._above_mark() if name == "SETITEMS" else self._last_two()
            _set_items(self._stack[-1], list(zip(items[::2], items[1::2], strict=True)))
        elif name in ("APPENDS", "APPEND", "ADDITEMS"):
            items = [self._pop()] if name == "APPEND" else self._above_mark()
            if type(self._stack[-1]) is not list:
                raise ValueError(f"it appends to a {_kind(self._stack[-1])}")
            self._stack[-1].extend(items)
        elif name in ("REDUCE", "NEWOBJ"):
            self._stack.append(self._made(*self._last_two()))
        elif name == "POP":
            self._pop()
        elif name == "BUILD":
            self._build(*self._last_two())
        elif name == "BINPERSID":
            self._stack.append(self._storage(self._pop()))
        elif name == "STACK_GLOBAL":
            self._stack.append(named(*self._last_two()))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its instruction {name} is of no use in a checkpoint")

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise ValueError(f"it takes more than {MOST_STEPS:,} steps to read")

    def _pop(self) -> Any:
        return self._stack.pop()

    def _last_two(self) -> list[Any]:
        last = self._pop()
        return [self._pop(), last]

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _made(self, maker: Any, arguments: Any) -> Any:
        """The record of what would come of a call."""
        if type(maker) is not Named or type(arguments) is not tuple:
            raise ValueError(f"it calls a {_kind(maker)}")
        name = maker.name
        if name in DICTIONARIES or name in ORDERED:
            made = Dictionary(name)
            for given in arguments[:1]:
                self._update(made, given)
            return made
        if name in WRAPPED or name == "torch.Size":
            return arguments[0]
        if name == SUBCLASS:
            return self._made(arguments[0], arguments[2])
        return _tensor(name, arguments) if name in DENSE else Foreign(name, arguments)

    def _build(self, made: Any, state: Any) -> None:
        """Give an object its state: what it holds, never an attribute of anything."""
        self._stack.append(made)
        if isinstance(made, Dictionary) and made.name in ORDERED and type(state) is dict:
            made.attributes = state
        elif isinstance(made, Dictionary):
            # addict gives itself as its state.
            if isinstance(state, dict) and state is not made:
                self._update(made, state)
        elif type(made) is Foreign:
            made.held = (state,)
        else:
            raise ValueError(f"it sets attributes of a {_kind(made)}")

    def _update(self, made: Dictionary, given: Any) -> None:
        # Whoever copies one long dictionary again and again pays for it each time.
        if isinstance(given, dict):
            self._spend(len(given))
            made.update(given)
        elif type(given) in (list, tuple):
            self._spend(len(given))
            _set_items(made, [(key, value) for key, value in given])

    def _storage(self, told: Any) -> Storage:
        if type(told) is not tuple or told[0] != "storage" or type(told[1]) is not Named:
            raise ValueError("it refers to something that is no storage")
        kind, key, _, whole = told[1:5]
        dtype = STORAGES.get(kind.name.rpartition(".")[2])
        # Only torch's older format: a part of another storage, as (key, start, count).
        view = told[5] if len(told) > 5 else None
        if type(key) not in (str, int) or type(view) not in (tuple, type(None)):
            raise ValueError("a storage has no name")
        start = view[1] if view else 0
        if not all(type(number) is int and number >= 0 for number in (whole, start)):
            raise ValueError("a storage has no size")
        found = Storage(dtype, str(key), whole * (dtype.itemsize if dtype else 0), start)
        self.storages.setdefault(found.key, found)
        return found


def _tensor(maker: str, arguments: tuple[Any, ...]) -> TensorRecord | Foreign:
    """The record of a dense tensor (torch/_utils.py tells what its makers take)."""
    storage, offset, size, stride = arguments[:4]
    if type(storage) is not Storage:
        raise ValueError(f"a tensor lies in a {_kind(storage)}")
    version3 = maker.endswith("v3")
    dtype = arguments[6] if version3 else storage.dtype
    # The bits of a negated or conjugated view would have to be applied.
    changed = any(arguments[7 if version3 else 6 :])
    if dtype is None or changed or storage.start and dtype != storage.dtype:
        return Foreign(maker, arguments)
    if not isinstance(dtype, torch.dtype) or type(offset) is not int:
        raise ValueError("a tensor has no format or no place")
    return TensorRecord(storage, dtype, (storage.start + offset, size, stride))


def _set_items(target: Any, items: list[tuple[Any, Any]]) -> None:
    if not isinstance(target, dict):
        raise ValueError(f"it sets items of a {_kind(target)}")
    for key, value in items:
        # Tuples are left out: the hash of deep ones recurses, and alike ones are easily made.
        if not isinstance(key, (str, bytes, int, float, type(None))):
            raise ValueError(f"a key is a {_kind(key)}, not a text or a number")
        if isinstance(key, int) and abs(key) > LARGEST_KEY:
            raise ValueError("a key is a number beyond all reason")
        target[key] = value


def _kind(value: Any) -> str:
    return "name" if type(value) is Named else type(value).__name__
