"""docs/data.md says what comes out of each of its examples, to the letter."""

import csv
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.documents import ROOT, blocks
from tools.embedded_base.captions import caption
from tuninglab.config import DataConfig
from tuninglab.config.data import CHECKED, DataPart, parts_of
from tuninglab.config.yaml_file import read_config
from tuninglab.data.images import FORMATS as KINDS
from tuninglab.data.reading.entries import PLACE
from tuninglab.data.reading.formats import FORMATS, samples_of
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.opening import read_samples
from tuninglab.data.reading.pairs import read_pairs
from tuninglab.data.reading.picture_values import MAX_INLINE
from tuninglab.data.reading.sets import DOCUMENTS
from tuninglab.data.reading.splits import read_splits
from tuninglab.data.sample import StoredPicture
from tuninglab.embedded.task import EmbeddedSamples, dialogue
from tuninglab.reporting.data_audit import look_at_data
from tuninglab.untrusted import MIB

PAGE = ROOT / "docs" / "data.md"
TEXT = PAGE.read_text(encoding="utf-8")
# A file with its name before it, or what comes of the files before.
BLOCK = re.compile(r"(?:`([^`\n]+)`:\n\n```(?:json|csv)|\n```text)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Example:
    """Files by name, and what is said and read of them."""

    files: dict[str, str]
    shown: str

    def __str__(self) -> str:
        return self.path

    @property
    def path(self) -> str:
        return self.shown.partition(": ")[0]


def examples() -> tuple[list[Example], dict[str, str]]:
    """The examples, and the files at the end that none follows: those of pairs of texts."""
    found, files = [], {}
    for name, code in BLOCK.findall(TEXT):
        if name:
            files[name] = code
        elif files:
            found.append(Example(files, code))
            files = {}
    return found, files


def told(message: dict) -> str:
    """A message in a line, pictures as their marks."""
    parts = (part.get("text", "<image>") for part in message["content"])
    return "".join(parts).replace("\n", r"\n")


def told_sample(sample, root: Path) -> str:
    """A sample in a line: questions, what is learned, pictures."""
    turns = []
    for message in sample.messages:
        unlearned = " (not learned)" if message.get("loss") is False else ""
        said = {"system": f"[{told(message)}]", "user": told(message)}
        turns.append(said.get(message["role"], f"-> {told(message)}{unlearned}"))
    named = [
        image.name.removeprefix(f"{root}/")
        if isinstance(image, StoredPicture)
        else Path(image).relative_to(root).as_posix()
        for image in sample.images
    ]
    return " ".join(turns) + (f" ({', '.join(named)})" if named else "")


def draw(folder: Path, shown: str) -> None:
    """The pictures that stand in the brackets of what is shown, of a colour each."""
    names = re.findall(r"[\w./-]+\.(?:png|jpg)(?=[,)])", shown)
    for number, name in enumerate(dict.fromkeys(names)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 90, 40)).save(folder / name)


@pytest.mark.parametrize("example", examples()[0], ids=str)
def test_what_comes_of_an_example(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, code in example.files.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    draw(tmp_path, example.shown)
    samples = read_samples(example.path)
    said = capsys.readouterr().err
    rows = [told_sample(sample, tmp_path) for sample in samples]
    assert said + "".join(f"{row}\n" for row in rows) == example.shown


def test_each_file_of_the_page_is_in_an_example():
    found, files = examples()
    told = sum(len(example.files) for example in found) + len(files)
    assert told == sum(len(blocks(PAGE, language)) for language in ("json", "csv"))
    assert len(found) >= 24


def test_pairs_are_read(tmp_path):
    ((name, code),) = examples()[1].items()
    (tmp_path / name).write_text(code, encoding="utf-8")
    pairs = [(pair.source, pair.target) for pair in read_pairs(tmp_path / name)]
    assert pairs == [("the third of May 2021", "2021-05-03"), ("1 June 1999", "1999-06-01")]


def test_every_format_that_can_be_named_is_there():
    (names,) = re.findall(r"Names for `--format`: (.*?)\. An unknown", TEXT, re.S)
    known = {one.name for one in (*FORMATS, *DOCUMENTS)}
    # Rows of addresses are known only to be refused.
    assert set(re.findall(r"`([\w-]+)`", names)) == known - {"laion"}


def rows_below(head: str) -> list[list[str]]:
    """The cells of the table with this first cell."""
    (table,) = re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]


@pytest.mark.parametrize("place", ["a record with", "an answer with"])
def test_what_is_refused_is_refused_by_name(place):
    asked = {"role": "user", "content": "Which colour?"}
    good = {"role": "assistant", "content": "Blue."}
    assert len(samples_of({"messages": [asked, good]}, "here", Reading())) == 1
    rows = rows_below(place)
    assert len(rows) >= 4
    for code, why in rows:
        more = json.loads(code.strip("`"))
        record: dict = {"messages": [asked, good | more if place == "an answer with" else good]}
        record |= more if place == "a record with" else {}
        with pytest.raises(ValueError) as raised:
            samples_of(record, "here", Reading())
        assert why in str(raised.value) and next(iter(more)) in str(raised.value), code


def test_limits_and_places_are_those_of_the_code():
    assert f"{CHECKED:,} unless" in " ".join(TEXT.split())
    assert f"may have {MAX_INLINE // MIB} MiB" in " ".join(TEXT.split())
    (kinds,) = re.findall(r"Kinds: ([\w, ]+)\.", TEXT)
    assert [kind.upper() for kind in kinds.split(", ")] == list(KINDS)
    assert f"`{PLACE}`" in TEXT


def test_the_mixture_of_the_page_is_the_one_in_examples(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (block,) = blocks(PAGE, "yaml")
    (path,) = re.findall(r"here `(examples/.*?)`", TEXT)
    assert block.code == (ROOT / path).read_text()
    parts = parts_of(read_config(ROOT / path, DataConfig).data)
    assert parts and all(part.weight for part in parts)
    read_splits(parts)
    assert block.shown and block.shown in capsys.readouterr().err
    settings = {name for row in rows_below("of a set") for name in re.findall(r"`(\w+)`", row[0])}
    assert settings == {field.name for field in fields(DataPart)} - {"path"}


def test_the_table_of_figures_has_every_key():
    rows = rows_below("keys")
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    found = look_at_data(DataConfig(data=str(ROOT / "examples/scenes/questions.jsonl")))
    assert named == found.figures.keys()


def test_the_scenes_are_as_the_package_draws_and_describes_them():
    folder = ROOT / "examples" / "scenes"
    items = EmbeddedSamples("train", 72).items[::3]
    records = [json.loads(line) for line in (folder / "questions.jsonl").open()]
    rows = list(csv.DictReader((folder / "captions.csv").open()))
    names = [*(record["images"][0] for record in records), *(row["image"] for row in rows)]
    assert len(records) == 16 and len(set(names)) == len(items) == 24
    for item, record in zip(items, records, strict=False):
        assert record["messages"] == dialogue(item.questions)
    for item, row in zip(items[len(records) :], rows, strict=True):
        assert row["caption"] == caption(item.picture)
    for item, name in zip(items, names, strict=True):
        kept, drawn = (
            np.asarray(picture, np.float32)
            for picture in (Image.open(folder / name), item.picture.draw())
        )
        # JPEG smooths; another picture of the set differs by more than 20.
        assert np.abs(kept - drawn).mean() < 8
