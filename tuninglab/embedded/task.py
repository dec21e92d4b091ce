"""The demo's task: questions about generated pictures, made on the fly from a seed.

The splits differ by construction: training never shows a held-out colour-shape pair, a scan of a
test writer or a held-out thing. Every test picture of shapes shows such a pair, every one of
handwriting such a writer, every sixth one of drawings such things only; the rest are new pictures.
"""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuninglab.console import say
from tuninglab.data.sample import ImageSource, Message, Sample
from tuninglab.data.sources import Source, fingerprint
from tuninglab.disk import UNWRITABLE
from tuninglab.embedded.digits import sample_digits
from tuninglab.embedded.drawings import asked_about, sample_drawings
from tuninglab.embedded.questions import Picture, Question, ask
from tuninglab.embedded.scenes import sample_scene
from tuninglab.errors import UserError, WorkError

SEEDS = {"train": 11, "val": 12, "test": 13}
# What a picture of a split shows, so that figures can be reported apart.
GROUPS = {
    "train": ("scenes", "handwriting", "drawings"),
    "val": ("scenes", "handwriting, validation writers", "drawings"),
    # Every sixth picture of drawings shows things that were never shown in any training.
    "test": (
        *("held-out pairs", "handwriting, unseen writers", "drawings in new pictures") * 5,
        *("held-out pairs", "handwriting, unseen writers", "drawings never shown"),
    ),
}
VAL_QUESTIONS = 240
TEST_QUESTIONS = 1000
# Training asks more often what takes longer to learn; chosen on the validation split.
TRAIN_WEIGHTS = {"relation": 4, "exists": 3, "count by color": 4, "number": 2, "kind": 2}
TRAIN_WEIGHTS |= {"kind by place": 2, "how many of a kind": 3, "how many of it": 3}
TURNS = 3  # questions in a training dialogue; a test dialogue has one


@dataclass(frozen=True)
class Item:
    """A picture, the questions asked about it, and the group it belongs to."""

    picture: Picture
    questions: tuple[Question, ...]
    group: str


class EmbeddedSamples(Source):
    """Samples of a split, a third each of shapes, handwriting and drawings.

    A picture is drawn when it is asked for.

    Args:
        split: train, val or test.
        count: number of pictures.
        turns: questions in a dialogue.
    """

    def __init__(self, split: str, count: int, turns: int = 1):
        rng = random.Random(SEEDS[split])
        self.split = split
        self.items: list[Item] = []
        for k in range(count):
            group = GROUPS[split][k % len(GROUPS[split])]
            picture: Picture
            if k % 3 == 0:
                picture = sample_scene(rng, held_out=split == "test")
            elif k % 3 == 1:
                picture = sample_digits(rng, split)
            else:
                picture = sample_drawings(rng, asked_about(group == "drawings never shown"))
            weights = TRAIN_WEIGHTS if split == "train" else None
            questions = tuple(ask(picture, rng, turns, weights))
            self.items.append(Item(picture, questions, group))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """Of the pictures' descriptions, which fix every pixel, and of the questions."""
        return fingerprint(self.items)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        item = self.items[index]
        kind = item.questions[0].type if len(item.questions) == 1 else None
        origin = f"embedded {self.split} data, picture {index + 1}"
        images: list[ImageSource] = [item.picture.draw()]
        return Sample(dialogue(item.questions), images, origin, kind, group=item.group)


def dialogue(questions: Sequence[Question]) -> list[Message]:
    """Questions and answers in turn; the picture comes with the first question."""
    messages: list[Message] = []
    for k, question in enumerate(questions):
        text = {"type": "text", "text": question.text}
        messages.append({"role": "user", "content": [text] if k else [{"type": "image"}, text]})
        messages.append(
            {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}
        )
    return messages


def write_data(folder: Path, train_pictures: int) -> None:
    """Write the three splits as messages JSONL with PNG pictures, as `finetune --data` reads them.

    Raises:
        UserError: the folder holds something already.
        WorkError: the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--write_data {folder}: it exists and is not an empty folder; name a new one"
        )
    sizes = {
        "train": (train_pictures, TURNS),
        "val": (VAL_QUESTIONS, 1),
        "test": (TEST_QUESTIONS, 1),
    }
    try:
        for split, (count, turns) in sizes.items():
            _write_split(folder, split, count, turns)
            say(f"{folder / split}.jsonl: {count} pictures")
    except OSError as error:
        # It was empty: what is there now is of this call, and in the way of the next.
        for split in sizes:
            shutil.rmtree(folder / split, ignore_errors=True)
            (folder / f"{split}.jsonl").unlink(missing_ok=True)
        if error.errno not in UNWRITABLE:
            raise
        raise WorkError(
            f"--write_data {folder}: {error.strerror}; what was written is removed. Free some "
            "space, or name another folder."
        ) from error


def _write_split(folder: Path, split: str, count: int, turns: int) -> None:
    (folder / split).mkdir(parents=True)
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as lines:
        for k, item in enumerate(EmbeddedSamples(split, count, turns).items):
            name = f"{split}/{k:05d}.png"
            item.picture.draw().save(folder / name)
            record = {"messages": dialogue(item.questions), "images": [name], "group": item.group}
            if len(item.questions) == 1:
                record["kind"] = item.questions[0].type
            lines.write(json.dumps(record) + "\n")
