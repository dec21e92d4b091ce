"""The columns of a table of Arrow's: which hold pictures, class names or JSON, and rows as records.

A row's values come as Python's; where a picture is, a `StoredPicture` or a name takes its place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from tuninglab.data.reading.found import RawRecord, Reading
from tuninglab.data.reading.json_files import parse_json, shown
from tuninglab.data.reading.picture_keys import (
    ABOUT,
    IMAGE_KEYS,
    NO_CAPTION,
    NO_PICTURE,
    about_fetched,
    gathered,
)
from tuninglab.data.reading.tables import MOST_RECORD
from tuninglab.data.sample import StoredPicture
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB

# Columns of text that may hold pictures in base64; a shorter text is a name.
TEXT_PICTURES = {*IMAGE_KEYS, "img", "picture", "photo", "base64", "image_base64", "jpg", "png"}
LONGEST_NAME = 1024
MOVING = {"Audio", "Video"}
INDEX = "__index_level_0__"  # pandas' row numbers
MOST_DEPTH = 20

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Kind:
    """What the values of a column are, where that is more than what Arrow says.

    Args:
        what: "struct" ({bytes, path}), "bytes" or "text" (a picture), "label" or "json"; "list" and
            "fields" of such.
        names: of classes, by number.
        inner: of a list.
        fields: by name.
    """

    what: str
    names: tuple[str, ...] = ()
    inner: "Kind | None" = None
    fields: tuple[tuple[str, "Kind"], ...] = ()

    @property
    def pictures(self) -> bool:
        """Whether a value is a picture or a list of them."""
        one = self.inner if self.inner is not None else self
        return one.what in ("struct", "bytes", "text")


def kinds_of(schema: pa.Schema, features: Mapping[str, Any], file: Path) -> dict[str, Kind]:
    """The columns that are more than what Arrow says, by name.

    Args:
        schema: of the table.
        features: what `datasets` noted of the columns.
        file: the table, for messages.

    Raises:
        UserError: two columns have one name, or one holds sounds or films.
    """
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{shown(file)} has two columns of one name; rename one")
    found = {}
    for column in schema:
        feature = features.get(column.name)
        if moving := MOVING & _types_in(feature):
            raise UserError(
                f"{shown(file)}: the column {column.name} holds {min(moving).lower()}; only "
                "pictures and texts are learned: write the table without it"
            )
        kind = _kind(column.type, feature)
        text = column.type.value_type if _is_list(column.type) else column.type
        if kind is None and column.name in TEXT_PICTURES and _is_text(text):
            kind = Kind("text")
            kind = Kind("list", inner=kind) if _is_list(column.type) else kind
        if kind is not None:
            found[column.name] = kind
    return found


def _kind(type_: Any, feature: Any, depth: int = 0) -> Kind | None:
    if depth > MOST_DEPTH:
        return None
    if isinstance(type_, pa.JsonType):
        return Kind("json")
    if kinds.is_struct(type_):
        types = {field.name: field.type for field in type_}
        if types.keys() == {"bytes", "path"}:
            # Where no picture has a path, the column of paths is of nothing.
            named = _is_text(types["path"]) or pa.types.is_null(types["path"])
            if _is_binary(types["bytes"]) and named:
                return Kind("struct")
        named = feature if isinstance(feature, dict) else {}
        inner = [(one.name, _kind(one.type, named.get(one.name), depth + 1)) for one in type_]
        fields = tuple((name, kind) for name, kind in inner if kind is not None)
        return Kind("fields", fields=fields) if fields else None
    if _is_list(type_):
        of = feature[0] if isinstance(feature, list) and feature else feature
        of = of.get("feature") if isinstance(of, dict) and "_type" in of else of
        inner = _kind(type_.value_type, of, depth + 1)
        return None if inner is None else Kind("list", inner=inner)
    if _is_binary(type_):
        return Kind("bytes")
    if kinds.is_integer(type_) and isinstance(feature, dict):
        names = feature.get("names")
        if feature.get("_type") == "ClassLabel" and isinstance(names, list):
            return Kind("label", names=tuple(map(str, names)))
    return None


def _is_list(type_: Any) -> bool:
    return kinds.is_list(type_) or kinds.is_large_list(type_) or kinds.is_fixed_size_list(type_)


def _is_binary(type_: Any) -> bool:
    return kinds.is_binary(type_) or kinds.is_large_binary(type_) or kinds.is_binary_view(type_)


def _is_text(type_: Any) -> bool:
    return kinds.is_string(type_) or kinds.is_large_string(type_) or kinds.is_string_view(type_)


def _types_in(feature: Any) -> set[str]:
    """The names of `datasets`' types in a feature, however deep."""
    found, waiting = set(), [feature]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found |= {one["_type"]} if isinstance(one.get("_type"), str) else set()
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return found


def features_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What `datasets` noted of the columns in the file itself; nothing if it was not by it."""
    try:
        noted = parse_json((metadata or {})[b"huggingface"].decode("utf-8"))
        features = noted["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def without_bytes(batch: pa.RecordBatch, columns: Mapping[str, Kind]) -> pa.RecordBatch:
    """Rows with empty bytes in the place of pictures, so that those become no Python values."""
    names = batch.schema.names
    light = [_light(batch.column(i), columns.get(name)) for i, name in enumerate(names)]
    return pa.RecordBatch.from_arrays(light, names=names)


def _light(array: Any, kind: Kind | None) -> Any:
    """A column with empty bytes in the place of pictures, so that those are not even looked at.

    Raises:
        ValueError: a text is so long that it is none.
    """
    if kind is None and (_is_text(array.type) or kinds.is_dictionary(array.type)):
        texts = array.dictionary if kinds.is_dictionary(array.type) else array
        # One gigabyte of one letter takes a few kilobytes on the disk.
        call: Any = pc.call_function  # its functions by name are made as it is imported
        longest = _is_text(texts.type) and call("max", [call("binary_length", [texts])]).as_py()
        if (longest or 0) > MOST_RECORD:
            raise ValueError(f"a text of {longest:,} bytes, more than {MOST_RECORD // MIB} MiB")
    if kind is not None and kind.what == "bytes":
        return _emptied(array)
    if kind is not None and kind.what == "struct":
        # Where bytes were not read there is only the path.
        names = [field.name for field in array.type]
        parts = [array.field(name) for name in names]
        parts = [_emptied(p) if n == "bytes" else p for n, p in zip(names, parts, strict=True)]
        return pa.StructArray.from_arrays(parts, names, mask=array.is_null())
    if kind is not None and kind.what == "list" and pa.types.is_list(array.type):
        # The values as they lie there, of which the offsets speak, not those that are in use.
        values = _light(array.values, kind.inner)
        return pa.ListArray.from_arrays(array.offsets, values, mask=array.is_null())
    return array


def _emptied(array: Any) -> Any:
    missing = array.is_null().to_pylist()
    return pa.array([None if gone else b"" for gone in missing], array.type)


def records_of_rows(
    rows: Iterable[tuple[int, int, dict[str, Any]]],
    columns: Mapping[str, Kind],
    cell: Callable[[int, int], Callable[[Place], StoredPicture]],
    file: Path,
    reading: Reading,
) -> Iterator[RawRecord]:
    """The rows of a table as records, those left out that have nothing; rows count from 1.

    Args:
        rows: (block, row in there, values).
        columns: what they hold.
        cell: block and row -> the way to a picture in them -> the picture.
        file: the table, for messages.
        reading: how records are read.
    """
    for number, (block, index, row) in enumerate(rows, 1):
        origin = f"{shown(file)}, row {number}"
        try:
            record = record_of_row(row, columns, cell(block, index), reading)
        except ValueError as error:
            yield origin, error
            continue
        if record is not None:
            yield origin, record


def record_of_row(
    row: dict[str, Any],
    columns: Mapping[str, Kind],
    cell: Callable[[Place], StoredPicture],
    reading: Reading,
) -> dict[str, Any] | None:
    """A row as a record, nulls absent; None if it is left out, which the notes count.

    Args:
        row: Python values; pictures whose bytes were not read lack them.
        columns: from `kinds_of`.
        cell: the picture at a place in this row.
        reading: how records are read.

    Raises:
        ValueError: a class number without a name, or broken JSON.
    """
    record = {}
    for name, value in row.items():
        value = _value(value, columns.get(name), (name,), cell)
        if value is not None and name != INDEX:
            record[name] = value
    pictures = [name for name, kind in columns.items() if kind.pictures]
    if record.keys() >= ABOUT:
        about = about_fetched(record)
        pictured = {name: record[name] for name in pictures if name in record}
        if not pictured or "text" not in about:
            reading.notes[NO_CAPTION if pictured else NO_PICTURE] += 1
            return None
        record = about | pictured
    return gathered(record, pictures, reading)


def _value(
    value: Any, kind: Kind | None, place: Place, cell: Callable[[Place], StoredPicture]
) -> Any:
    """A value of a row with pictures in their places, and as JSON could hold it."""
    if value is None or value != value:  # pandas writes NaN where a text is missing
        return None
    if isinstance(value, list | tuple):
        inner = kind.inner if kind is not None else None
        return [_value(one, inner, (*place, i), cell) for i, one in enumerate(value)]
    if kind is not None and kind.what == "struct":
        # A picture without bytes is a file beside the table.
        return cell(place) if value.get("bytes", b"") is not None else value.get("path")
    if kind is not None and kind.what == "bytes":
        return cell(place)
    if isinstance(value, dict):
        fields = dict(kind.fields) if kind is not None else {}
        named = {
            name: _value(one, fields.get(name), (*place, name), cell) for name, one in value.items()
        }
        return {name: one for name, one in named.items() if one is not None}
    if kind is not None and kind.what == "text":
        named = len(value) <= LONGEST_NAME and not value.startswith("data:")
        return value if named else cell(place)
    if kind is not None and kind.what == "json":
        return parse_json(value)
    if kind is not None and kind.what == "label":
        if value < 0:  # datasets' mark of no label
            return None
        if value >= len(kind.names):
            raise ValueError(f"{place[0]} is {value}, but there are {len(kind.names)} classes")
        return kind.names[value]
    # Times, decimals and the like, which no format knows.
    return value if isinstance(value, str | int | float | bool) else str(value)
