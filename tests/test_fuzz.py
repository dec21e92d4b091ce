"""Damaged input of every kind: success, or one message that names the file; nothing else happens.

Each case has a number, and the same number makes the same case. `FUZZ_SEED=7 pytest ...` makes
others.
"""

import base64
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, ByT5Tokenizer

from tests.data.reading.released import DOCUMENTS_RELEASED, RECORDS_RELEASED
from tests.data.reading.shards import write_tar
from tests.tiny import t5
from tuninglab.adapters.saving import load_adapter
from tuninglab.cli import main
from tuninglab.config.prompts import kept_prompt
from tuninglab.data.images import load_image
from tuninglab.data.prompt import encode_dialogue, make_prompt
from tuninglab.data.reading.finding import find
from tuninglab.data.reading.formats import samples_of
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.opening import read_samples
from tuninglab.data.reading.pairs import read_pairs
from tuninglab.errors import UserError, WorkError
from tuninglab.models.build import load_flamingo
from tuninglab.models.formats.reading import read_checkpoint
from tuninglab.models.text_to_text import load_text_to_text

pytestmark = pytest.mark.filterwarnings("ignore")

SEED = int(os.environ.get("FUZZ_SEED", "0"))
LONGEST_S = 20.0
MOST_BYTES = 3 * 2**29  # 1.5 GiB

# In place of any value of a JSON or YAML file.
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
VALUES = (
    *(None, True, False, 0, -1, 1, 10**6, 2**31, 2**63, 10**30, 1e308, 0.5),
    *(float("nan"), float("inf"), "", "\0", "a" * 5000, "\ud800", "../../etc/passwd", "/dev/zero"),
    *("someone/something", "12", "nan", [], {}, [1, 2], [None], {"": {}}, DEEP, "\u202e<image>"),
)


@dataclass
class Kind:
    """A file of a folder that is damaged, and what then reads the folder.

    Args:
        folder: whole; each case has a copy of it.
        file: that is damaged.
        read: a function (copy of the folder) -> whatever; of a command line, what it said.
        damage: a function (content, random generator) -> other content.
        share: of the cases: those that take long are fewer.
    """

    folder: Path
    file: str
    read: Callable[[Path], Any]
    damage: Callable[[bytes, random.Random], bytes]
    share: float = 1.0


class Refused(Exception):
    """A command line ended with 1 or 2, and said why."""


def command(*words: Any) -> None:
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = main([str(word) for word in words])
    if code not in (0, 1, 2) or "Traceback" in said.getvalue():
        raise AssertionError(f"exit {code}: {said.getvalue()}")
    if code:
        raise Refused(said.getvalue())


# What is damaged, from any bytes to the values inside.


def in_bytes(data: bytes, draw: random.Random) -> bytes:
    data = bytearray(data)
    kind = draw.randrange(7)
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice((1, 8, 100, 10_000)))
    if kind == 0:
        return bytes(data[:start])
    if kind == 1:
        del data[start:end]
    elif kind == 2:
        data[start:start] = data[start:end]
    elif kind == 3:
        data[start:end] = bytes(end - start)
    elif kind == 4:
        data[start:start] = draw.choice((b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80" * 1000))
    else:
        for _ in range(draw.choice((1, 3, 30))):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def in_value(value: Any, draw: random.Random) -> Any:
    """The same with something in it exchanged, removed or added."""
    inner = value if isinstance(value, dict | list) else ()
    if not inner or draw.random() < 0.15:
        return draw.choice(VALUES)
    value = copy.copy(value)
    key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
    way = draw.random()
    if way < 0.1:
        del value[key]
    elif way < 0.2 and isinstance(value, dict):
        value[draw.choice(("auto_map", "quantization_config", "a" * 300, "__class__"))] = (
            draw.choice(VALUES)
        )
    else:
        value[key] = in_value(value[key], draw)
    return value


def in_json(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.2:
        return in_bytes(data, draw)
    return json.dumps(in_value(json.loads(data), draw)).encode()


def in_json_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = in_json(lines[number], draw)
    return b"\n".join(lines)


def in_yaml(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return in_bytes(data, draw)
    if draw.random() < 0.1:
        bomb = "".join(f"a{n}: &a{n} [{', '.join(['*a' + str(n - 1)] * 9)}]\n" for n in range(1, 9))
        return b"a0: &a0 [x]\n" + bomb.encode() + data
    value = in_value(yaml.safe_load(data), draw)
    try:
        return yaml.dump(value, sort_keys=False).encode()
    except RecursionError:
        # Too deep for this writer; JSON is YAML, too.
        return json.dumps(value).encode()


def in_safetensors(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return in_bytes(data, draw)
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(in_value(json.loads(data[8 : 8 + length]), draw)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def in_pickle(data: bytes, draw: random.Random) -> bytes:
    """In a file of torch.save: the pickle in the archive, or the archive."""
    if draw.random() < 0.3:
        return in_bytes(data, draw)
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, in_bytes(content, draw) if name.endswith(".pkl") else content)
    return changed.getvalue()


def in_rows(data: bytes, draw: random.Random) -> bytes:
    """In a table as text: a cell, the cells of a row, or bytes."""
    if draw.random() < 0.4:
        return in_bytes(data, draw)
    comma = b"\t" if b"\t" in data else b","
    lines = data.splitlines()
    number = draw.randrange(len(lines))
    cells = lines[number].split(comma)
    odd = json.dumps(draw.choice(VALUES)).encode()
    odd = draw.choice((odd, b'"' + odd.replace(b'"', b'""') + b'"', b'"', b"\0", b"\r", b"=1+1"))
    cells[draw.randrange(len(cells))] = odd * draw.choice((1, 1, 3))
    lines[number] = comma.join(cells * draw.choice((1, 1, 2)))
    return b"\n".join(lines)


def in_tar(data: bytes, draw: random.Random) -> bytes:
    """In a tar: bytes; a member's name, kind or content; or a size that it does not have."""
    if draw.random() < 0.3:
        return in_bytes(data, draw)
    changed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as old,
        tarfile.open(
            fileobj=changed, mode="w", format=draw.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        ) as new,
    ):
        members = old.getmembers()
        chosen, way = draw.randrange(len(members)), draw.randrange(5)
        for number, member in enumerate(members):
            content = old.extractfile(member).read()
            if number == chosen and way == 0:
                member.name = draw.choice(("../../etc/passwd", "/etc/passwd", ".jpg", "a" * 300))
            elif number == chosen and way == 1:
                member.type = draw.choice((b"1", b"2", b"3", b"5", b"6", b"S", b"x", b"g", b"?"))
                member.linkname = draw.choice(("/etc/passwd", "..", "0.json", ""))
            elif number == chosen and way == 2:
                member.pax_headers = {"size": draw.choice(("9" * 19, "-1", "x")), "path": "a.jpg"}
            elif number == chosen and member.name.endswith(".json"):
                content = in_json(content, draw)
            elif number == chosen:
                content = in_bytes(content, draw)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    changed = bytearray(changed.getvalue())
    if way == 3:
        # 2^60 bytes, or as many as the whole, in the first header, which is correct otherwise.
        size = draw.choice((2**60, len(changed), 2**40))
        changed[124:136] = b"\x80" + size.to_bytes(11, "big")
        changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + 8 * 32 + sum(changed[156:512]))
    return bytes(changed)


def in_parquet(data: bytes, draw: random.Random) -> bytes:
    """In a parquet file: bytes, or a value of a column whose others stay."""
    if draw.random() < 0.6:
        return in_bytes(data, draw)
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    name = draw.choice(list(rows[0]))
    for number in draw.choice((range(len(rows)), [draw.randrange(len(rows))])):
        rows[number] = rows[number] | {name: in_value(rows[number][name], draw)}
    changed = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), changed)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
        # No column can hold both.
        return in_bytes(data, draw)
    return changed.getvalue()


def in_template(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return in_bytes(data, draw)
    place = draw.choice([n for n, byte in enumerate(data) if byte == 10])
    odd = draw.choice(
        (
            "{{ ''.__class__.__mro__ }}",
            "{% for m in messages %}",
            "{{ messages | tojson }}",
            "{% include '/etc/passwd' %}",
            "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
            "{% set messages = messages[::-1] %}",
            "{{ 'a' * 10 ** 6 }}",
            "{{ lipsum.__globals__ }}",
            "{{ raise_exception(messages) }}",
            "{{ messages[7].content }}",
            "<image>",
            "{{ '\ue0f00\ue0f1' }}",
            "{% for i in range(10 ** 9) %}a{% endfor %}",
        )
    )
    return data[:place] + odd.encode() + data[place:]


# What there is to damage.


@pytest.fixture(scope="module")
def whole_run(tiny_bases, tiny_data, tmp_path_factory):
    """The folder of a run of two steps, with checkpoints."""
    place = tmp_path_factory.mktemp("whole")
    words = ["--model", tiny_bases["plain"], "--data", tiny_data, "--run_name", "run"]
    words += ["--max_steps", 2, "--batch_size", 2, "--precision", "fp32", "--save_steps", 1]
    command("finetune", *words, "--output_dir", place)
    return place / "run"


@pytest.fixture(scope="module")
def kinds(tiny_bases, tiny_data, run_folder, model_directory, whole_run, tmp_path_factory):
    """Every kind of file that may come from elsewhere: by what it belongs to, and its name."""
    place = tmp_path_factory.mktemp("fuzz")
    return {
        "data": data_kinds(place, tiny_data),
        "containers": container_kinds(place / "containers"),
        "sets": set_kinds(place / "sets"),
        "prompts": prompt_kinds(place / "prompts", tiny_bases["plain"]),
        "pictures": picture_kinds(place / "pictures"),
        "models": model_kinds(place, tiny_bases["plain"]),
        "checkpoints": checkpoint_kinds(place / "checkpoints", tiny_bases["plain"]),
        "adapters": adapter_kinds(run_folder / "adapter", load_flamingo(model_directory)[0]),
        "runs": run_kinds(whole_run),
    }


BELONGING = (
    "data",
    "containers",
    "sets",
    "prompts",
    "pictures",
    "models",
    "checkpoints",
    "adapters",
    "runs",
)


def data_kinds(place: Path, tiny_data: Path) -> dict[str, Kind]:
    folder = place / "data"
    shutil.copytree(tiny_data.parent, folder)
    records = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    (folder / "list.json").write_text(json.dumps(records))
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    (folder / "llava.json").write_text(json.dumps([{"image": "0.png", "conversations": turns}] * 3))
    pairs = [json.dumps({"source": f"say {n}", "target": "yes"}) for n in range(9)]
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    (folder / "config.yaml").write_text(
        "model: embedded\nmax_steps: 3\nlearning_rate: 0.001\nseed: 3\nprecision: fp32\n"
    )

    def settings(copied: Path) -> None:
        command("finetune", "--config", copied / "config.yaml", "--print_config")

    def skipping(copied: Path) -> None:
        read_samples(copied / tiny_data.name, skip_bad_records=True)

    return {
        "messages.jsonl": Kind(
            folder, tiny_data.name, lambda f: read_samples(f / tiny_data.name), in_json_lines, 2
        ),
        "messages.jsonl, skipping": Kind(folder, tiny_data.name, skipping, in_json_lines, 2),
        "messages.json": Kind(
            folder, "list.json", lambda f: read_samples(f / "list.json"), in_json
        ),
        "llava.json": Kind(folder, "llava.json", lambda f: read_samples(f / "llava.json"), in_json),
        "pairs.jsonl": Kind(
            folder, "pairs.jsonl", lambda f: read_pairs(f / "pairs.jsonl"), in_json_lines, 2
        ),
        "settings": Kind(folder, "config.yaml", settings, in_yaml, 2),
    }


def looked_at(path: str | Path, **wishes: Any) -> None:
    """Every sample of data, with its pictures."""
    for sample in read_samples(path, **wishes):
        for image in sample.images:
            load_image(image)


def container_kinds(folder: Path) -> dict[str, Kind]:
    """What holds many records and their pictures: a folder of each kind, and what is damaged."""
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, "PNG")
    picture = file.getvalue()
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    said = [{"role": "user", "content": "<image>colour?"}, {"role": "assistant", "content": "red"}]
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "colour?"}]
    asked = {"messages": [{"role": "user", "content": parts}, said[1]]}
    whole = [{"image": {"bytes": picture, "path": None}, "messages": said, "id": 3}] * 4
    table = pa.Table.from_pylist(whole)
    instruction = {"instruction": "colour?", "answer": "red", "image_ids": ["a"]}
    instruction |= {"rel_ins_ids": ["one"]}
    for name in ("tar", "parquet", "csv", "tsv", "parts", "saved", "pictures", "mimic", "mix"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(picture)
    members = {"0.png": picture, "0.json": json.dumps({"messages": said}).encode()}
    members |= {"1.png": picture, "1.txt": b"a red one", "1.json": b'{"width": 9}'}
    write_tar(folder / "tar" / "a.tar", members.items())
    pq.write_table(table, folder / "parquet" / "a.parquet", row_group_size=2)
    for name, separator in (("csv", ","), ("tsv", "\t")):
        rows = [("image", "question", "answers"), *[("a.png", "colour?", '"[""red""]"')] * 5]
        lines = "\n".join(map(separator.join, rows))
        (folder / name / f"a.{name}").write_text(lines)
    (folder / "parts" / "a.jsonl").write_text("\n".join([json.dumps(asked)] * 3))
    with pa.OSFile(str(folder / "saved" / "a.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": "a.arrow"}], "_split": None}
    features = {"image": {"_type": "Image"}, "id": {"dtype": "int64", "_type": "Value"}}
    (folder / "saved" / "state.json").write_text(json.dumps(state))
    (folder / "saved" / "dataset_info.json").write_text(json.dumps({"features": features}))
    row = json.dumps({"file_name": "a.png", "text": "red"})
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join([row] * 3))
    named = {"meta": {}, "data": {"one": instruction | {"rel_ins_ids": []}, "two": instruction}}
    (folder / "mimic" / "X_instructions.json").write_text(json.dumps(named))
    (folder / "mimic" / "X.json").write_text(json.dumps({"a": url.partition(",")[2]}))
    (folder / "mimic" / "a.png").unlink()
    mixed = [{"path": str(folder / "csv" / "a.csv"), "weight": 3.0, "limit": 2}]
    mixed += [{"path": str(folder / "tsv" / "a.tsv"), "weight": 1}]
    settings = {"data": mixed, "mix": {"epoch_rows": 10, "strategy": "weights"}}
    (folder / "mix" / "mix.yaml").write_text(yaml.safe_dump(settings))

    def audited(copied: Path) -> None:
        try:
            command("data", "--config", copied / "mix.yaml", "--json")
        except Refused as error:
            # Of a mixture, the set that is wrong is named, by its key or by a path.
            named = any(word in str(error) for word in ("data", "mix", "/", "exist"))
            raise Refused(f"{copied if named else ''}{error}") from error

    damaged = [
        ("tar/a.tar", in_tar, "", 0.9),
        ("parquet/a.parquet", in_parquet, "", 0.6),
        ("csv/a.csv", in_rows, "a.csv", 0.5),
        ("tsv/a.tsv", in_rows, "a.tsv", 0.3),
        ("parts/a.jsonl", in_json_lines, "a.jsonl", 0.4),
        ("saved/a.arrow", in_bytes, "", 0.4),
        ("saved/state.json", in_json, "", 0.2),
        ("saved/dataset_info.json", in_json, "", 0.2),
        ("pictures/metadata.jsonl", in_json_lines, "", 0.3),
        ("mimic/X_instructions.json", in_json, "", 0.3),
        ("mimic/X.json", in_json, "", 0.2),
    ]
    kinds = {
        name: Kind(
            folder / Path(name).parent,
            Path(name).name,
            lambda f, end=end: looked_at(f / end),
            damage,
            share,
        )
        for name, damage, end, share in damaged
    }
    return kinds | {"mix/mix.yaml": Kind(folder / "mix", "mix.yaml", audited, in_yaml, 0.6)}


def set_kinds(folder: Path) -> dict[str, Kind]:
    """Each set that is read as it is released, with its pictures."""
    kinds = {}
    released = {name: list(documents) for name, documents in DOCUMENTS_RELEASED.items()}
    released |= {f"{name} row": [[row] * 3] for name, row in RECORDS_RELEASED.items()}
    for name, documents in released.items():
        place = folder / name
        place.mkdir(parents=True)
        files = [f"{number}.json" for number in range(len(documents))]
        for file, document in zip(files, documents, strict=True):
            (place / file).write_text(json.dumps(document, default=lambda _: "a.png"))
        for picture in pictures_of([place / file for file in files], place):
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 7), "red").save(picture, "PNG")

        def read(copied: Path, files: list[str] = files) -> None:
            looked_at("+".join(str(copied / file) for file in files))

        kinds[name] = Kind(place, files[-1], read, in_json, 0.15)
    return kinds


def pictures_of(files: list[Path], root: Path) -> list[Path]:
    """The pictures that a set names."""
    found, reading, named = find([str(file) for file in files], None, None), Reading(root), []
    for origin, row in found.records(reading):
        # Of rows that look like those of two sets, --format decides.
        with suppress(ValueError):
            named += [image for one in samples_of(row, origin, reading) for image in one.images]
    return [root / image for image in named if isinstance(image, str)]


def prompt_kinds(folder: Path, model: Path) -> dict[str, Kind]:
    """A template as --prompt takes it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [{"role": "user", "content": "colour?"}, {"role": "assistant", "content": "red"}]
    folder.mkdir()
    (folder / "a.jinja").write_text(
        "{% for m in messages %}\n{{ m['role'] }}:\n{% for part in m['content'] %}\n"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}\n{% endfor %}\n"
    )

    def read(copied: Path) -> None:
        try:
            prompt = make_prompt(kept_prompt(str(copied / "a.jinja")), tokenizer)
            encode_dialogue(asked, tokenizer, prompt)
        except ValueError as error:
            # The record is named by who reads it.
            raise UserError(f"--prompt: {error}") from error

    return {"a.jinja": Kind(folder, "a.jinja", read, in_template, 0.5)}


def picture_kinds(folder: Path) -> dict[str, Kind]:
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    kinds = {}
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif", "wide.png", "float.tif"):
        picture = Image.fromarray(noise)
        if name == "wide.png":
            picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
        elif name == "float.tif":
            picture = Image.fromarray(noise[..., 0].astype(np.float32))
        picture.save(folder / name)
        kinds[name] = Kind(folder, name, lambda f, name=name: load_image(f / name), in_bytes)
    return kinds


def model_kinds(place: Path, flamingo: Path) -> dict[str, Kind]:
    question = [{"role": "user", "content": "colour?"}]

    def read(copied: Path) -> None:
        model, processor = load_flamingo(copied)
        inputs = processor.apply_chat_template(
            question, add_generation_prompt=True, tokenize=True, return_tensors="pt"
        )
        model(**inputs) if isinstance(inputs, dict) else model(inputs)

    folder = place / "t5"
    t5(vocab_size=259).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    kinds = {}
    for source, reader in ((flamingo, read), (folder, load_text_to_text)):
        for path in sorted(source.iterdir()):
            damage = {".json": in_json, ".safetensors": in_safetensors}.get(path.suffix, in_bytes)
            kinds[f"{source.name.rstrip('0')}/{path.name}"] = Kind(
                source, path.name, reader, damage, 0.4
            )
    return kinds


def checkpoint_kinds(folder: Path, flamingo: Path) -> dict[str, Kind]:
    folder.mkdir()
    state = {f"lang_encoder.{n}": t for n, t in load_file(flamingo / "model.safetensors").items()}
    torch.save({"model_state_dict": state, "epoch": 3}, folder / "zip.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    shutil.copy(flamingo / "model.safetensors", folder / "a.safetensors")

    def inspected(name: str) -> Callable[[Path], None]:
        return lambda f: command("convert", "--checkpoint", f / name, "--inspect")

    return {
        "checkpoint, zip": Kind(
            folder, "zip.pt", lambda f: read_checkpoint(f / "zip.pt"), in_pickle, 2
        ),
        "checkpoint, legacy": Kind(folder, "legacy.pt", inspected("legacy.pt"), in_bytes, 2),
        "checkpoint, safetensors": Kind(
            folder, "a.safetensors", inspected("a.safetensors"), in_safetensors
        ),
    }


def adapter_kinds(folder: Path, base: Any) -> dict[str, Kind]:
    def read(copied: Path) -> None:
        load_adapter(copy.deepcopy(base), copied)

    damages = {".json": in_json, ".safetensors": in_safetensors}
    return {
        f"adapter/{path.name}": Kind(folder, path.name, read, damages[path.suffix], 0.6)
        for path in sorted(folder.iterdir())
        if path.suffix in damages
    }


def run_kinds(folder: Path) -> dict[str, Kind]:
    def resume(copied: Path) -> None:
        words = ["--output_dir", copied.parent, "--run_name", copied.name, "--max_steps", 2]
        command("finetune", *words, "--resume")

    def report(copied: Path) -> None:
        command("report", copied)

    damages = {".json": in_json, ".jsonl": in_json_lines, ".yaml": in_yaml, ".pt": in_pickle}
    damages[".safetensors"] = in_safetensors
    names = ["config.yaml", "metrics.jsonl", "report.json", "environment.json", "trainable.json"]
    names += ["answers.json"] if (folder / "answers.json").exists() else []
    kinds = {
        f"report: {name}": Kind(folder, name, report, damages[Path(name).suffix], 0.25)
        for name in names
    }
    (newest,) = folder.glob("checkpoints/step-*2")
    names = ["config.yaml", "metrics.jsonl", "environment.json"]
    names += [str(path.relative_to(folder)) for path in sorted(newest.rglob("*"))]
    for name in names:
        if (folder / name).is_file() and Path(name).suffix in damages:
            kinds[f"resume: {name}"] = Kind(folder, name, resume, damages[Path(name).suffix], 0.1)
    return kinds


# The rule.


def what_went_wrong(kind: Kind, number: int, place: Path) -> str | None:
    """Damage a copy of the folder, read it, and tell what should not have happened."""
    draw = random.Random(f"{SEED} {kind.file} {number}")
    copied = place / "copied"
    shutil.copytree(kind.folder, copied)
    target = copied / kind.file
    target.write_bytes(kind.damage(target.read_bytes(), draw))
    try:
        # Of CPU time: on a busy machine the clock says little.
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            kind.read(copied)
    except (UserError, WorkError, Refused) as error:
        named = (target.name, str(copied), "--")
        if not any(name in str(error) for name in named):
            return f"names no file: {str(error)[:300]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(copied)
    left = [path.name for path in place.iterdir()]
    return f"written beside it: {left}" if left else None


class TookTooLong(BaseException):
    """A case computes for longer than it may; no Exception, which the case might catch."""


@pytest.fixture
def bounded():
    """Bounds of time and memory, so that what takes more is a failure and not a dead machine."""

    def stop(*_: Any) -> None:
        raise TookTooLong(f"more than {LONGEST_S:.0f} s")

    before = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        reserved = pages * resource.getpagesize() + 2 * MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (reserved, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGPROF, before)


@pytest.fixture
def alone(bounded, tmp_path, monkeypatch):
    """An empty current folder, no standard input and no network; what was tried is a failure."""
    calls: list[Any] = []

    def refuse(self: Any, address: Any) -> None:
        calls.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    assert calls == []
    assert not list((tmp_path / "here").iterdir())


def check(kinds: dict[str, Kind], cases: int, tmp_path: Path, before: int) -> None:
    place = tmp_path / "cases"
    place.mkdir()
    wrong = {}
    for name, kind in kinds.items():
        for number in range(max(1, round(cases * kind.share))):
            # What ended the whole process is to be found here.
            (tmp_path / "case").write_text(f"{name}, case {number}")
            problem = what_went_wrong(kind, number, place)
            if problem:
                wrong[f"{name}, case {number}"] = problem
                print(f"{name}, case {number}: {problem}", flush=True)
    assert wrong == {}
    assert peak_bytes() - before < MOST_BYTES


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.fixture(scope="module")
def before(kinds) -> int:
    """The peak of memory before any case."""
    return peak_bytes()


def test_all_that_may_come_from_elsewhere_is_damaged(kinds):
    assert tuple(kinds) == BELONGING and all(kinds.values())


@pytest.mark.parametrize("belonging", BELONGING)
def test_damaged_files_are_refused_by_name(kinds, belonging, alone, before):
    check(kinds[belonging], 7, alone, before)


@pytest.mark.slow
@pytest.mark.parametrize("belonging", BELONGING)
def test_many_damaged_files_are_refused_by_name(kinds, belonging, alone, before):
    check(kinds[belonging], 70, alone, before)
