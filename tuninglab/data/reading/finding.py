"""What lies at a path, and of which format it is: found out, or as the user says."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuninglab.data.reading.containers import container_of
from tuninglab.data.reading.formats import FORMATS, format_named
from tuninglab.data.reading.found import Document, Format, Found, RawRecord, Reading
from tuninglab.data.reading.json_files import (
    LINES,
    described,
    json_lines,
    list_records,
    read_json_file,
    shown,
)
from tuninglab.data.reading.sets import DOCUMENTS
from tuninglab.errors import UserError


def find(paths: Sequence[str], split: str | None, form: str | None) -> Found:
    """What a path holds, or several that belong together (questions and their annotations).

    Args:
        paths: as the user names them.
        split: of those in a folder; None: its only one.
        form: the name of a format; None: it is found out.

    Raises:
        UserError: there is nothing that can be read, or it is of another format.
    """
    document = next((one for one in DOCUMENTS if one.name == form), None)
    format = None if form is None or document else format_named(form)
    if len(paths) > 1:
        return _together([Path(path) for path in paths], document)
    container = container_of(paths[0], split)
    if container is not None:
        if document:
            raise UserError(
                f"--format {form} is one of JSON files; {paths[0]} holds {container.what}"
            )
        container.format = format or container.format
        return container
    found = _json(Path(paths[0]), document, format)
    # What is only a list of records cannot tell; a document says it when it is read.
    if split is not None and not found.what:
        raise UserError(f"{paths[0]} is a file, which has no splits; leave out :{split}")
    return found


def _json(path: Path, document: Document | None, format: Format | None) -> Found:
    """A JSON file: lines, a list, or a document of a set.

    Raises:
        UserError: it is broken, or holds something else.
    """

    def is_document(value: Any) -> bool:
        if document is not None or format is not None:
            return document is not None
        return any(one.fits([value]) for one in DOCUMENTS)

    value = read_json_file(path, is_document)
    if value is LINES:
        if document is not None:
            raise UserError(f"--format {document.name} is a JSON document; {shown(path)} has lines")
        return Found("", [path], lambda _: json_lines(path), path.parent, format)
    if format is None and not _is_list_of_records(value):
        document = document or next((one for one in DOCUMENTS if one.fits([value])), None)
    if document is not None:
        return _of_document(document, [value], [path])
    # One record, written out over several lines.
    if isinstance(value, dict) and (format or any(one.fits(value) for one in FORMATS)):
        value = [value]
    return Found("", [path], lambda _: list_records(value, path), path.parent, format)


def _is_list_of_records(value: Any) -> bool:
    """Whether a list has records of some format, so that it is no document as a whole."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(one.fits(first) for one in FORMATS)


def _together(paths: list[Path], document: Document | None) -> Found:
    """Documents that belong together.

    Raises:
        UserError: they are none that do.
    """
    values = [read_json_file(path, lambda _: True) for path in paths]
    document = document or next((one for one in DOCUMENTS if one.fits(values)), None)
    if document is None:
        held = ", ".join(
            f"{shown(path)} holds {'JSON lines' if value is LINES else described(value)}"
            for path, value in zip(paths, values, strict=True)
        )
        raise UserError(
            f"{held}; only questions and their annotations are joined by +. Several sets are named "
            "one after another: --data A B"
        )
    return _of_document(document, values, paths)


def _of_document(document: Document, values: list[Any], paths: list[Path]) -> Found:
    label = "+".join(shown(path) for path in paths)

    def records(reading: Reading) -> Iterator[RawRecord]:
        yield from document.records(values, label, reading)
        if reading.split is not None and not reading.has_splits:
            raise UserError(f"{label} has no splits; leave out :{reading.split}")

    return Found(document.what, paths, records, paths[0].parent)
