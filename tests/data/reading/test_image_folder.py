import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.reading.shards import picture, records
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.image_folder import (
    class_folder,
    described_folder,
    keyed_folder,
    tables_of,
)
from tuninglab.errors import UserError


def lay(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def described(folder, split=None, reading=None):
    return records(described_folder(folder, tables_of(folder), split), reading)


def test_metadata_names_pictures_and_others_are_counted(tmp_path):
    lay(tmp_path, "a.png", "in/b.png", "in/c.jpg", "left.png", "right.png", "in/also/d.webp")
    rows = [
        {"file_name": "a.png", "text": "a cat"},
        {"file_names": ["./in/b.png", "a.png"], "text": "two"},
        {"left_file_name": "left.png", "right_file_name": "right.png", "text": "three"},
        {"file_name": "a.png", "images": ["b"]},
        {"text": "four"},
        {"file_name": 7},
    ]
    lines = [json.dumps(row) for row in rows] + ["{", "", "[1]"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    reading = Reading()
    found = described(tmp_path, reading=reading)
    assert found[:4] == [
        {"text": "a cat", "image": "a.png"},
        {"text": "two", "images": ["./in/b.png", "a.png"]},
        {"text": "three", "images": ["left.png", "right.png"]},
        {"image": "a.png", "images": ["b"]},
    ]
    for bad, said in zip(
        found[4:],
        ["names no picture", "file_name is 7; expected the path", "broken JSON", "a list of 1"],
        strict=True,
    ):
        assert said in bad
    # in/c.jpg and in/also/d.webp
    assert reading.notes == {"pictures without a row in the metadata left out": 2}
    origins = [
        origin
        for origin, _ in described_folder(tmp_path, tables_of(tmp_path), None).records(Reading())
    ]
    assert origins[-1] == f"{tmp_path}/metadata.jsonl, line 9"


def test_metadata_may_be_csv_or_parquet_and_is_one(tmp_path):
    lay(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\n")
    assert described(tmp_path) == [{"text": "a cat", "image": "a.png"}]
    table = pa.table({"file_name": ["a.png"], "text": ["a cat"]})
    pq.write_table(table, tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"holds metadata\.csv, metadata\.parquet; keep one"):
        tables_of(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    assert described(tmp_path) == [{"text": "a cat", "image": "a.png"}]


def test_each_split_has_its_metadata(tmp_path):
    lay(tmp_path, "train/a.png", "test/a.png", "test/b.png")
    for split in ("train", "test"):
        row = {"file_name": "a.png", "text": split}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(row))
    reading = Reading()
    assert described(tmp_path, "test", reading) == [{"text": "test", "image": "test/a.png"}]
    assert reading.notes == {"pictures without a row in the metadata left out": 1}
    with pytest.raises(UserError, match=r"several splits \(test, train\)"):
        described(tmp_path)
    with pytest.raises(UserError, match="no split 'dev'"):
        described(tmp_path, "dev")


def test_a_row_with_two_names_for_one_key_is_refused(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "image": "b.png"}')
    assert described(tmp_path) == ["the record has both file_name and image; keep one of the two"]


def test_metadata_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_text('{"file_name": "a.png"}')
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metadata.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="link out of its folder"):
        tables_of(tmp_path / "d")
    # A download from the hub: links to its own blobs.
    snapshot = tmp_path / "datasets--a" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--a" / "blobs").mkdir()
    (tmp_path / "secret").rename(tmp_path / "datasets--a" / "blobs" / "7")
    (snapshot / "metadata.jsonl").symlink_to("../../blobs/7")
    assert described(snapshot) == [{"image": "a.png"}]


def test_folders_of_classes(tmp_path):
    lay(tmp_path, "cat/1.png", "cat/2.JPG", "dog/deep/3.png", "4.png", "empty/notes.md")
    reading = Reading()
    found = class_folder(tmp_path, None)
    assert found is not None and found.what == "a folder of pictures in 2 classes"
    assert records(found, reading) == [
        {"id": "cat/1.png", "image": "cat/1.png", "text": "cat"},
        {"id": "cat/2.JPG", "image": "cat/2.JPG", "text": "cat"},
        {"id": "dog/deep/3.png", "image": "dog/deep/3.png", "text": "deep"},
    ]
    assert reading.notes == {
        "pictures whose folder's name is learned as their caption": 3,
        "pictures beside the folders of classes left out": 1,
    }
    with pytest.raises(UserError, match="has no splits"):
        class_folder(tmp_path, "train")
    (tmp_path / "flat").mkdir()
    lay(tmp_path / "flat", "a.png")
    assert class_folder(tmp_path / "flat", None) is None


def test_classes_of_a_split(tmp_path):
    lay(tmp_path, "train/cat/1.png", "val/cat/2.png")
    found = class_folder(tmp_path, "val")
    assert found is not None
    assert [one["image"] for one in records(found)] == ["val/cat/2.png"]
    with pytest.raises(UserError, match=r"several splits \(train, val\)"):
        class_folder(tmp_path, None)


def test_the_files_form_of_img2dataset(tmp_path):
    lay(tmp_path, "00000/000.jpg", "00000/001.jpg", "00001/010.jpg", "00001/011.jpg")
    about = {"key": "000", "status": "success", "url": "u", "caption": "a cat"}
    (tmp_path / "00000" / "000.txt").write_text("a cat")
    (tmp_path / "00000" / "000.json").write_text(json.dumps(about))
    (tmp_path / "00001" / "010.json").write_text(json.dumps(about | {"key": "010"}))
    (tmp_path / "00001" / "011.json").write_text("{")
    for shard in ("00000", "00001"):
        (tmp_path / f"{shard}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard}_stats.json").write_text('{"count": 2}')
    found = keyed_folder(tmp_path)
    reading = Reading()
    assert found is not None
    *good, bad = records(found, reading)
    assert good == [
        {"id": "00000/000", "text": "a cat", "image": "00000/000.jpg"},
        {"id": "010", "text": "a cat", "image": "00001/010.jpg"},
    ]
    assert "broken JSON" in bad
    assert reading.notes == {"pictures without a caption left out": 1}


def test_pictures_without_texts_beside_them_are_no_such_folder(tmp_path):
    lay(tmp_path, "a.png", "b.png")
    assert keyed_folder(tmp_path) is None
    (tmp_path / "b.txt").symlink_to("/etc/hostname")
    found = keyed_folder(tmp_path)
    assert found is not None
    with pytest.raises(UserError, match="link out of its folder"):
        records(found)


def test_a_class_that_is_a_link_is_not_left_out_in_silence(tmp_path):
    lay(tmp_path, "elsewhere/red/a.png", "data/blue/b.png")
    (tmp_path / "data" / "red").symlink_to(tmp_path / "elsewhere" / "red")
    with pytest.raises(UserError, match="data/red is a link out of its folder"):
        class_folder(tmp_path / "data", None)
    # One that stays inside is there already.
    (tmp_path / "data" / "red").unlink()
    (tmp_path / "data" / "azure").symlink_to(tmp_path / "data" / "blue")
    assert [one["image"] for one in records(class_folder(tmp_path / "data", None))] == [
        "blue/b.png"
    ]
