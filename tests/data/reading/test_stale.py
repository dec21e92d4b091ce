"""What was kept of data is not believed once anything of it is another."""

import json
import multiprocessing
import pickle
import shutil
import tarfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.data.reading.released import COCO, KARPATHY, VQA_ANNOTATIONS, VQA_QUESTIONS
from tests.data.reading.test_opening import builds, data, record  # noqa: F401
from tuninglab.data.mixture import Joined
from tuninglab.data.reading.lengths import fit, lengths_of
from tuninglab.data.reading.opening import read_samples
from tuninglab.data.reading.splits import chosen, read_splits
from tuninglab.data.reading.store import Chosen
from tuninglab.data.sources import Records, Splits
from tuninglab.errors import DataError, UserError
from tuninglab.recipes.row_orders import order_of


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), colour).save(path)


def texts(samples):
    return [sample.messages[-1]["content"][0]["text"] for sample in samples]


def test_what_comes_to_a_folder_of_classes_is_read(tmp_path, builds):  # noqa: F811
    picture(tmp_path / "pets" / "cat" / "1.png")
    picture(tmp_path / "pets" / "cat" / "old" / "2.png")
    assert texts(read_samples(tmp_path / "pets")) == ["cat", "old"]
    picture(tmp_path / "pets" / "cat" / "old" / "3.png")
    assert texts(read_samples(tmp_path / "pets")) == ["cat", "old", "old"]
    picture(tmp_path / "pets" / "dog" / "4.png")
    assert texts(read_samples(tmp_path / "pets")) == ["cat", "old", "old", "dog"]
    read_samples(tmp_path / "pets")
    assert len(builds) == 3


def test_a_text_that_was_rewritten_in_its_place_is_read(tmp_path, builds):  # noqa: F811
    picture(tmp_path / "pets" / "part" / "1.png")
    picture(tmp_path / "pets" / "0.png")
    (tmp_path / "pets" / "part" / "1.txt").write_text("a cat")
    (tmp_path / "pets" / "0.txt").write_text("a cow")
    assert texts(read_samples(tmp_path / "pets")) == ["a cow", "a cat"]
    (tmp_path / "pets" / "part" / "1.txt").write_text("a dog!")
    assert texts(read_samples(tmp_path / "pets")) == ["a cow", "a dog!"]
    read_samples(tmp_path / "pets")
    assert len(builds) == 2


def test_a_shard_that_came_to_its_folder_is_read(tmp_path):
    for number in range(2):
        folder = tmp_path / str(number)
        picture(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"text {number}")
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as tar:
            for name in (f"{number}.png", f"{number}.txt"):
                tar.add(folder / name, name)
        found = texts(read_samples(tmp_path / "shards"))
        assert found == [f"text {n}" for n in range(number + 1)]


def test_pictures_that_were_nowhere_are_looked_for_again(tmp_path):
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps(COCO))
    with pytest.raises(DataError, match="does not exist"):
        read_samples(path)
    for number in (9, 25):
        picture(tmp_path / "val2014" / f"COCO_val2014_{number:012d}.jpg")
    assert len(read_samples(path)) == 3


def test_another_seed_reads_nothing_anew(data, builds):  # noqa: F811
    read_samples(data, seed=1)
    read_samples(data, seed=2)
    assert len(builds) == 1


def test_a_split_of_a_document_is_named_behind_its_path(tmp_path):
    for image in KARPATHY["images"]:
        picture(tmp_path / image["filepath"] / image["filename"])
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(KARPATHY))
    assert texts(read_samples(path)) == ["A shoe.", "A dog.", "Two."]
    assert texts(read_samples(f"{path}:test")) == ["A bike."]
    with pytest.raises(UserError, match="no split 'dev'"):
        read_samples(f"{path}:dev")
    for name, part in (("q.json", VQA_QUESTIONS), ("a.json", VQA_ANNOTATIONS)):
        (tmp_path / name).write_text(json.dumps(part))
    with pytest.raises(UserError, match=r"a.json has no splits; leave out :train"):
        read_samples(f"{tmp_path / 'q.json'}+{tmp_path / 'a.json'}:train")


def test_no_split_of_a_list_and_not_no_record(data):  # noqa: F811
    with pytest.raises(UserError, match="is a file, which has no splits; leave out :train"):
        read_samples(f"{data}:train")
    with pytest.raises(UserError, match="#0 takes no record"):
        read_samples(f"{data}#0")


def _answers(samples, queue):
    try:
        queue.put(texts(samples))
    except UserError as error:
        queue.put(str(error))


def test_who_reads_goes_on_with_what_was_there_at_the_start(data):  # noqa: F811
    samples = read_samples(data)
    before, packed = list(samples), pickle.dumps(samples)
    lines = [record(9, answer=f"other {n}") for n in range(3)]
    data.write_text("\n".join(map(json.dumps, lines)))
    assert texts(read_samples(data)) == ["other 0", "other 1", "other 2"]
    assert list(samples) == before
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_answers, args=(samples, queue))
    worker.start()
    assert queue.get(timeout=60) == texts(before)
    worker.join()
    # A worker that is spawned finds another file, and says so.
    with pytest.raises(UserError, match="was read anew by another process"):
        list(pickle.loads(packed))


def test_some_of_some_samples(data):  # noqa: F811
    samples = read_samples(data)
    for numbers in ([], [2], [3, 1, 1], [0, 1, 2, 3]):
        table = samples.table.of(np.array(numbers, np.int64))
        expected = [row for n in numbers for row in [list(samples.table.pictures_of())[n].tolist()]]
        assert [row.tolist() for row in table.pictures_of()] == expected
    once = Chosen(samples, np.array([0, 2, 3]))
    twice = chosen(once, np.array([2, 0]))
    assert twice.source is samples and list(twice) == [samples[3], samples[0]]


def test_a_part_of_a_table_of_which_samples_are_held_out(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for number in range(9):
        picture(tmp_path / f"{number}.png", (number, 0, 0))
    rows = [
        {"image": {"bytes": (tmp_path / f"{n}.png").read_bytes(), "path": None}, "text": str(n)}
        for n in range(9)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    splits = read_splits(f"{tmp_path / 't.parquet'}#8", val_split=0.3)
    order = order_of(splits.train).rows(0, 0)
    assert sorted(order.tolist()) == list(range(len(splits.train)))


def test_an_epoch_of_what_fits_takes_each_row_once():
    sources = [Records(list(range(n))) for n in (6, 4)]
    lengths = lambda source: np.array([9 if n == 5 else 1 for n in source])  # noqa: E731
    for repeats, counts in (([1.0, 2.0], [5, 8]), (None, [6, 8])):
        mixed = Joined(["a", "b"], sources, [6, 8], repeats)
        samples = Splits("x", mixed, Records([]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tuninglab.data.reading.lengths.too_long", lambda *a: "long")
            patch.setattr(Records, "__getitem__", lambda self, n: _Row(self.samples[n]))
            left = fit(samples, lambda s: lengths(s.samples), 5, skip=True).train
        assert (list(map(len, left.sources)), left.counts) == ([5, 4], counts)


class _Row(int):
    origin = "row"


def test_copies_are_found_whether_headers_or_all_of_them_were_read(data, tmp_path, capsys):  # noqa: F811
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "b.png", other / "copy.png")
    (other / "val.jsonl").write_text(json.dumps(record(8, "copy.png")))
    for check in (float("inf"), 1, 0):
        # With 1, of the training pictures only a.png is read whole, and of the others the copy.
        read_splits(str(data), val_data=str(other / "val.jsonl"), check=check)
        assert "1 of 1 validation records show a picture" in capsys.readouterr().err


def test_counts_are_remembered_and_few_of_many_counted_alone(data):  # noqa: F811
    samples, counted = read_samples(data), []

    def count(some):
        counted.append(len(some))
        return [(len(sample.origin), number) for number, sample in enumerate(some)]

    lengths = partial(lengths_of, count=count, key="k")
    few = Chosen(samples, np.array([3]))
    assert lengths(few).tolist() == [[len(samples[3].origin), 0]] and counted == [1]
    assert lengths(samples)[:, 1].tolist() == [0, 1, 2, 3] and counted == [1, 4]
    assert lengths(few)[:, 1].tolist() == [3] and lengths(samples).shape == (4, 2)
    assert counted == [1, 4]


def test_another_tar_in_the_place_of_one_that_was_read_is_noticed(tmp_path):
    def write(colour):
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            picture(tmp_path / "a.png", colour)
            (tmp_path / "a.txt").write_text("A sheet.")
            for name in ("a.png", "a.txt"):
                tar.add(tmp_path / name, name)

    write("red")
    (sample,) = samples = read_samples(tmp_path / "0.tar")
    assert sample.images[0].read() == (tmp_path / "a.png").read_bytes()
    digest = samples.content
    write("blue")
    with pytest.raises(UserError, match=r"0.tar: a.png: .*0.tar has changed since it was read"):
        samples[0].images[0].read()
    # When a tar was changed is no part of what the samples are.
    write("red")
    assert read_samples(tmp_path / "0.tar").content == digest
