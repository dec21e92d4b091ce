"""Where data lies and how it is mixed: `--data` as flags and YAML files write it."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeAlias

from tyro.constructors import PrimitiveConstructorSpec

from tuninglab.config.checks import MOST, check
from tuninglab.config.marks import Mark
from tuninglab.config.prompts import TUNINGLAB, kept_prompt
from tuninglab.errors import UserError
from tuninglab.untrusted import check_path, shown

EXPECTED = "expected a path, a list of paths, or a list of {path: ..., weight: ...}"
# Pictures decoded whole before the start, where nothing else is said: some minutes of photographs.
CHECKED = 20_000
# What --data, `data:` in a file and Python may give; `parts_of` says what it comes to.
Data: TypeAlias = str | list[Any]
DataFlag: TypeAlias = Annotated[
    Data | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="PATH [PATH ...]",
        instance_from_str=lambda words: words[0] if len(words) == 1 else words or None,
        is_instance=lambda value: value is None or isinstance(value, (str, list)),
        str_from_instance=lambda value: (
            [value] if isinstance(value, str) else [*map(str, value or ["None"])]
        ),
    ),
]


@dataclass(frozen=True)
class DataPart:
    """One of the sets that a run learns from.

    Args:
        path: a file or folder; `questions.json+annotations.json` belong together, `PATH:SPLIT` is
            a split of a folder, `PATH#500` are 500 records, drawn by the seed.
        weight: its share of an epoch, relative to the others'.
        repeat: how often an epoch goes through it; not with a weight.
        limit: at most so many of its records are taken, drawn by the seed.
        format: its format, where it shall not be found out.
        image_root: the folder that its pictures' paths start from.
    """

    path: str
    weight: float | None = None
    repeat: float | None = None
    limit: int | None = None
    format: str | None = None
    image_root: str | None = None

    def located(self) -> "DataPart":
        """This part with the paths of what exists made absolute."""
        files, end = split_path(self.path)
        places = [os.path.abspath(name) if os.path.exists(name) else name for name in files]
        root = self.image_root
        root = os.path.abspath(root) if root and os.path.exists(root) else root
        return replace(self, path="+".join(places) + end, image_root=root)


@dataclass
class MixConfig:
    """How several sets of data become an epoch."""

    strategy: Literal["concat", "weights"] | None = None
    """concat: all rows of each set; weights: by their weights. None: weights if any has one."""
    temperature: float = 1.0
    """For concat: a set's share goes with rows^(1/temperature); more levels large and small."""
    epoch_rows: int | None = None
    """Rows of an epoch. None: as many as all sets have."""


@dataclass
class RecordsConfig:
    """How records are read, in every verb that reads data."""

    image_root: Annotated[str | None, Mark.PATH] = None
    """Folder that picture paths start from. None: where the data lies."""
    format: str | None = None
    """Format of the data, where it shall not be found out; see docs/data.md."""
    columns: str | None = None
    """Keys of the records by what they hold, e.g. query=Q,response=A,image=file."""
    keep_marks: bool = False
    """Leave <image> where a LLaVA file has it. Else a single one moves to the front of its turn."""
    check: str = str(CHECKED)
    """Pictures decoded before the start: all, headers (none whole), or how many; of the others the
    headers are read."""

    def validate(self) -> None:
        """Check every range.

        Raises:
            UserError: naming the flag, the value given, what is expected and the remedy.
        """
        whole = pictures_checked(self.check) is not None
        check(whole, "check", self.check, "all, headers or a number")
        columns_of(self.columns)
        super().validate()  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class ReadingConfig(RecordsConfig):
    """How data is read; what `finetune` and `data` have in common."""

    prompt: str = TUNINGLAB
    """How a dialogue becomes text: tuninglab, multimodal_gpt, otter, openflamingo-vqa,
    openflamingo-caption, chat_template (the tokenizer's own) or the path of a Jinja file."""
    on_bad_picture: Annotated[Literal["stop", "skip"], Mark.CHANGEABLE] = "stop"
    """What to do when a picture turns out to be damaged during the training."""
    mix: MixConfig = field(default_factory=MixConfig)

    def validate(self) -> None:
        """Check every range, and settings that exclude each other.

        Raises:
            UserError: naming the flag, the value given, what is expected and the remedy.
        """
        kept_prompt(self.prompt)
        check_mix(self.mix)
        super().validate()


def pictures_checked(wish: str) -> float | None:
    """How many pictures are decoded whole before the start; None: the wish is none."""
    if wish in ("all", "headers"):
        return math.inf if wish == "all" else 0
    return int(wish) if wish.isascii() and wish.isdigit() and len(wish) < 10 else None


def columns_of(columns: str | None) -> dict[str, str]:
    """What --columns says: the key of a record by what it holds.

    Raises:
        UserError: it is not written so.
    """
    pairs = [pair.split("=", 1) for pair in columns.split(",")] if columns else []
    fine = all(len(pair) == 2 and all(word.strip() for word in pair) for pair in pairs)
    check(fine, "columns", columns, "names as query=Q,response=A")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}


def check_mix(mix: MixConfig) -> None:
    """Refuse what is no way to mix.

    Raises:
        UserError: naming the flag.
    """
    check(0.1 <= mix.temperature <= 100, "mix.temperature", mix.temperature, "from 0.1 to 100")
    rows = mix.epoch_rows
    check(rows is None or 0 < rows <= MOST, "mix.epoch_rows", rows, "a whole number of at least 1")
    if mix.temperature != 1.0 and mix.strategy == "weights":
        raise UserError("--mix.temperature levels sizes, but --mix.strategy weights has weights.")


def split_path(path: str) -> tuple[list[str], str]:
    """The files that a path names, and the `:SPLIT` and `#500` at its end.

    What exists as it stands is taken as it stands.
    """
    end = ""
    for pattern in (r"#\d+$", r":[A-Za-z0-9_.-]+$"):
        found = re.search(pattern, path)
        if found and not os.path.exists(path):
            path, end = path[: found.start()], found[0] + end
    if "+" not in path or os.path.exists(path):
        return [path], end
    return path.split("+"), end


def parts_of(data: Any, name: str = "data") -> list[DataPart] | None:
    """Parts from whatever a flag, a YAML file or Python gives; None stays None.

    Raises:
        UserError: it is nothing of that kind, or a part has unknown or wrong values.
    """
    if data is None:
        return None
    if isinstance(data, (str, os.PathLike, Mapping, DataPart)):
        data = [data]
    if not isinstance(data, Sequence) or not data:
        raise UserError(f"{name} is {shown(repr(data))}; {EXPECTED}.")
    return [_part(one, name) for one in data]


def check_places(settings: Any, *names: str) -> None:
    """Refuse, in these fields, what can be no path here.

    Raises:
        UserError: with the flag.
    """
    here = "a file or folder here: addresses are not fetched"
    for name in names:
        for part in parts_of(getattr(settings, name), f"--{name}") or []:
            check(not re.match(r"\w+://", part.path), name, part.path, here)
            check_path(part.path, f"--{name}")


def located_data(settings: Any, *names: str) -> dict[str, Any]:
    """These fields with the paths of what exists made absolute."""
    parts = {name: parts_of(getattr(settings, name), name) or [] for name in names}
    return {name: compact([one.located() for one in of] or None) for name, of in parts.items()}


def compact(parts: list[DataPart] | None) -> Any:
    """Parts as a YAML file has them: a path alone where nothing else is said."""
    if parts is None:
        return None
    plain = [
        part.path
        if part == DataPart(part.path)
        else {f.name: v for f in fields(part) if (v := getattr(part, f.name)) is not None}
        for part in parts
    ]
    return plain[0] if len(plain) == 1 and isinstance(plain[0], str) else plain


def _part(one: Any, name: str) -> DataPart:
    if isinstance(one, DataPart):
        return one
    if isinstance(one, (str, os.PathLike)):
        one = {"path": os.fspath(one)}
    if not isinstance(one, Mapping):
        raise UserError(f"{name} holds {shown(repr(one))}; {EXPECTED}.")
    known = [field.name for field in fields(DataPart)]
    for key in one:
        if key not in known:
            raise UserError(
                f"{name}: a part has the unknown key {shown(repr(key))}. Known: {', '.join(known)}."
            )
    part = DataPart(**{**{"path": ""}, **one})
    for key in ("path", "format", "image_root"):
        value = getattr(part, key)
        if not (isinstance(value, str) and value) and (key == "path" or value is not None):
            raise UserError(f"{name}: {key} is {shown(repr(value))}; expected text.")
    where = f"{name}: {shown(part.path)}"
    for key, kinds in (("weight", (int, float)), ("repeat", (int, float)), ("limit", int)):
        value = getattr(part, key)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and 0 < value <= 1e9
        if value is not None and not fits:
            raise UserError(f"{where}: {key} is {shown(repr(value))}; expected a number above 0.")
    if part.weight is not None and part.repeat is not None:
        raise UserError(f"{where} has a weight and a repeat; give one of them.")
    return part
