"""What lies at a path: a container or JSON, and of which format its records are."""

from pathlib import Path

from tuninglab.data.reading.dialogues import to_sample
from tuninglab.data.reading.found import Found
from tuninglab.data.reading.json_files import LINES, json_lines, list_records, read_json_file


def find(paths: list[Path], split: str | None, form: str | None) -> Found:
    document = read_json_file(paths[0])
    if document is LINES:
        return Found("", paths, lambda reading: json_lines(paths[0]), paths[0].parent)
    return Found("", paths, lambda reading: list_records(document, paths[0]), paths[0].parent)


def samples_of(found: Found):
    def to_samples(record, origin, reading):
        return "records", [to_sample(record, origin)]

    return to_samples
