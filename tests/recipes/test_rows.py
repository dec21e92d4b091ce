"""Killed at any step and gone on with other processes and workers: each step has the same rows."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tuninglab.data.loading import make_loader
from tuninglab.data.reading.splits import read_splits
from tuninglab.data.sampler import MaskedRow, StepSampler
from tuninglab.recipes.row_orders import order_of

ROWS, BATCH = 23, 4


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (number, 7 * number % 256, 9)).save(out, "PNG")
    return out.getvalue()


def messages(number):
    question = {"role": "user", "content": f"<image>what is {number}?"}
    return [question, {"role": "assistant", "content": f"it is {number}"}]


def jsonl(folder, rows=ROWS):
    path = folder / "rows.jsonl"
    lines = []
    for number in range(rows):
        (folder / f"{number}.png").write_bytes(png(number))
        lines.append(json.dumps({"messages": messages(number), "images": [f"{number}.png"]}))
    path.write_text("\n".join(lines))
    return str(path)


def tars(folder):
    (folder / "shards").mkdir()
    for shard, numbers in enumerate(np.array_split(np.arange(ROWS), 3)):
        with tarfile.open(folder / "shards" / f"{shard:05d}.tar", "w") as tar:
            for number in numbers.tolist():
                files = {"png": png(number), "txt": f"it is {number}".encode()}
                for ending, data in files.items():
                    member = tarfile.TarInfo(f"{number:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / "shards")


def parquet(folder):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"image": {"bytes": png(n), "path": None}, "question": f"{n}?", "answer": f"it is {n}"}
        for n in range(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=3)
    return str(folder / "rows.parquet")


def mixture(folder):
    (folder / "small").mkdir()
    parts = [{"path": jsonl(folder), "weight": 3}]
    return [*parts, {"path": jsonl(folder / "small", 2), "weight": 1}]


class Texts:
    """Rows as what a sample says and shows; as a Dataset."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[int(index)]
        (image,) = sample.images
        shown = image.read_bytes() if hasattr(image, "read_bytes") else image.read()
        said = sample.messages[-1]["content"][0]["text"]
        return None if isinstance(index, MaskedRow) else (said, shown)


def as_list(rows):
    return [row for row in rows if row is not None]


def steps(samples, order, states, worlds, workers):
    """The rows of each step; at `states[k]` steps all starts anew with worlds[k] and workers[k]."""
    found, state = [], None
    for count, world, worker in zip(states, worlds, workers, strict=True):
        size = BATCH // world
        ranks = []
        for rank in range(world):
            sampler = StepSampler(len(samples), size, 1, rank, world, seed=5, order=order)
            if state is not None:
                sampler.load_state_dict(state)
            ranks.append((sampler, make_loader(Texts(samples), as_list, sampler, worker)))
        loaders = [iter(loader) for _, loader in ranks]
        for _ in range(count):
            sampler = ranks[0][0]
            batches = sampler.micro_batches(sampler.step)
            mine = [row for loader in loaders for _ in range(batches) for row in next(loader)]
            found.append(sorted(mine))
            for one, _ in ranks:
                one.advance()
            if sampler.step == 0:
                loaders = [iter(loader) for _, loader in ranks]
        state = ranks[0][0].state_dict()
    return found


@pytest.mark.parametrize("make", [jsonl, tars, parquet, mixture])
def test_steps_have_the_same_rows_however_often_a_run_goes_on(tmp_path, make):
    samples = read_splits(make(tmp_path), seed=5).train
    order = order_of(samples)
    whole = steps(samples, order, [16], [1], [0])
    # In the middle of epochs, at their ends, at the start.
    for kills in ((3, 13), (1, 4, 11), (6, 6, 4), (0, 16)):
        changed = steps(samples, order, kills, (1, 2, 1)[: len(kills)], (0, 3, 1)[: len(kills)])
        assert changed == whole
    told = [said for step in whole for said, _ in step]
    if make is not mixture:
        # Two epochs and the beginning of a third.
        first, second = told[:ROWS], told[ROWS : 2 * ROWS]
        assert sorted(first) == sorted(second) == sorted(f"it is {n}" for n in range(ROWS))
        assert first != second
    for said, shown in (row for step in whole for row in step):
        assert shown == png(int(said.removeprefix("it is ")))
