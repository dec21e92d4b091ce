"""The pages as tests read them: their code blocks, and a copy of the checkout to run those in."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.tiny import save_tower
from tuninglab.models.build import load_flamingo

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `shown` is what stands in a text block right below it."""

    page: Path
    line: int
    language: str
    code: str
    shown: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.M | re.S):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, *match.groups()))
    return [block for block in found if block.language == language]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def commands(block: Block) -> list[str]:
    """The command lines of a bash block: continued lines joined, comments off."""
    joined = re.sub(r"\\[ ]*\n\s*", "", block.code)
    lines = [re.sub(r"\s+# .*|^#.*", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def inline_commands(page: Path, program: str) -> list[str]:
    """What the prose of a page quotes that begins with a program, line breaks taken out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    quoted = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))
    return [code for code in quoted if code.split()[0] == program]


# What takes its time by a size that no flag has: in the copy it is smaller.
SMALLER = {
    "embedded/task.py": {"TEST_QUESTIONS = 1000": "TEST_QUESTIONS = 8"},
    "embedded/text_task.py": {"VAL_PAIRS, TEST_PAIRS = 250, 1000": "VAL_PAIRS, TEST_PAIRS = 5, 5"},
    "comparison/workloads.py": {
        '"num_hidden_layers": 8': '"num_hidden_layers": 2',
        '"vocab_size": 32003': '"vocab_size": 259',
        '"image_size": 224': '"image_size": 28',
        "source_tokens: int = 256": "source_tokens: int = 32",
    },
    "models/text_to_text.py": {
        '"num_layers": 8': '"num_layers": 2',
        '"vocab_size": 32128': '"vocab_size": 256',
    },
}


def copy_checkout(folder: Path) -> None:
    """What a user has after `git clone`, as far as the pages need it, with smaller sizes."""
    left_out = shutil.ignore_patterns("__pycache__", "runs", "results")
    for name in ("tuninglab", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("fine_tuning.py", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name, changes in SMALLER.items():
        path = folder / "tuninglab" / name
        text = path.read_text(encoding="utf-8")
        for usual, smaller in changes.items():
            assert usual in text, f"{name} no longer says {usual}"
            text = text.replace(usual, smaller)
        path.write_text(text, encoding="utf-8")


def put_stand_ins(folder: Path, model: Path, take_apart) -> None:
    """The files that the pages name as the reader's own: my.json, pics/, my_flamingo, LM ..."""
    shutil.copytree(model, folder / "my_flamingo")
    flamingo, processor = load_flamingo(model)
    lang, clip = take_apart(flamingo, folder, rows=len(processor.tokenizer) - 3)
    processor.image_processor.save_pretrained(clip)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, lang)
    lang.rename(folder / "LM")
    clip.rename(folder / "CLIP")
    save_tower(folder / "TOWER", "dinov3_vit")
    # The README's own record, once for each of twelve pictures.
    (shown,) = blocks(PAGES[0], "json")
    (folder / "pics").mkdir()
    records = []
    for number, name in enumerate(["one.jpg", *(f"{n}.jpg" for n in range(11))]):
        Image.new("RGB", (32, 32), (20 * number, 90, 40)).save(folder / "pics" / name)
        records.append(json.loads(shown.code) | {"images": [name]})
    (folder / "my.json").write_text(json.dumps(records), encoding="utf-8")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "my.jsonl").write_text(lines, encoding="utf-8")
    (folder / "test.jsonl").write_text(lines, encoding="utf-8")
    odd = {"Q": "What is on the table?", "A": "Two cups.", "photo": "pics/one.jpg"}
    (folder / "odd.jsonl").write_text(json.dumps(odd), encoding="utf-8")
    pair = json.dumps({"source": "the third of May 2021", "target": "2021-05-03"})
    (folder / "pairs.jsonl").write_text(f"{pair}\n" * 4, encoding="utf-8")
