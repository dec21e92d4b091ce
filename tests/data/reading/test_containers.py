import builtins
import gzip
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.reading.shards import picture, records, write_tar
from tests.data.reading.test_arrow_files import save, table_of, write
from tuninglab.data.reading.containers import container_of
from tuninglab.errors import UserError

SAMPLE = [("a.jpg", picture(1)), ("a.txt", b"a cat")]


def what(path, split=None):
    found = container_of(path, split)
    return None if found is None else found.what


def shard(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tar(path, SAMPLE)


def table(path, text="a cat"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": [text]}), path)
    return path


def test_files_are_told_by_their_first_bytes_and_not_by_their_name(tmp_path):
    files = {
        "a tar of samples": shard(tmp_path / "a"),
        "a parquet file": table(tmp_path / "b.jsonl"),
        "an Arrow file": write(tmp_path / "c.json", table_of([1])),
        "a table (csv)": tmp_path / "d.data",
        "a table (tsv)": tmp_path / "e.tsv",
    }
    (tmp_path / "d.data").write_text("image,text\na.png,x\n")
    (tmp_path / "e.tsv").write_text("text\nx\n")
    for expected, path in files.items():
        assert what(path) == expected
    assert what(write(tmp_path / "f", table_of([1]), stream=False)) == "an Arrow file"


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": []}\n',
        "[1, 2]",
        ' \n{"a": 1}',
        "",
        "no table and no JSON",
        "\ufeff[1]",
        "\0,\0",
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.txt", "b_instructions.json"])
def test_json_and_other_texts_are_for_others(tmp_path, text, name):
    (tmp_path / name).write_text(text)
    assert container_of(tmp_path / name) is None


def test_json_under_the_name_of_a_table_is_json(tmp_path):
    (tmp_path / "a.csv").write_text('{"a": 1, "b": 2}\n')
    assert container_of(tmp_path / "a.csv") is None


def test_what_is_packed_is_refused_with_the_command_that_unpacks_it(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(shard(tmp_path / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=f"packed with gzip.*: gunzip {path}"):
        container_of(path)
    for magic, command in ((b"PK\x03\x04", "unzip"), (b"\x28\xb5\x2f\xfd", "unzstd")):
        path.write_bytes(magic + bytes(999))
        with pytest.raises(UserError, match=command):
            container_of(path)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"holds 1 \.gz; unpack them first.*a\.tar\.gz"):
        container_of(tmp_path)


def test_a_folder_of_shards_ignores_the_tables_about_them(tmp_path):
    shard(tmp_path / "00000.tar")
    shard(tmp_path / "00001.tar")
    table(tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    found = container_of(tmp_path)
    assert found is not None and found.what == "2 shards (tar)" and found.root == tmp_path
    assert [file.name for file in found.files] == ["00000.tar", "00001.tar"]
    assert len(records(found)) == 2


def test_folders_are_told_in_order(tmp_path):
    assert what(save(tmp_path / "a", range(2))) == "a folder of Hugging Face's datasets"
    table(tmp_path / "b" / "data" / "0.parquet")
    table(tmp_path / "b" / "data" / "1.parquet")
    assert what(tmp_path / "b") == "2 parquet files"
    (tmp_path / "b" / "metadata.csv").write_text("file_name\na.png\n")
    assert what(tmp_path / "b") == "a folder of pictures with metadata.csv"
    shutil.copytree(tmp_path / "a", tmp_path / "c", ignore=lambda *_: ["state.json"])
    assert what(tmp_path / "c") == "2 Arrow files"
    for name in ("d/00000/1.jpg", "e/cat/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(picture(1))
    (tmp_path / "d" / "00000" / "1.txt").write_text("x")
    table(tmp_path / "d" / "00000.parquet")
    assert what(tmp_path / "d") == "a folder of pictures with a text beside each"
    assert what(tmp_path / "e") == "a folder of pictures in 1 classes"


def test_a_folder_of_something_else_tells_what_it_holds(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "README", "c.npy"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"2 \.jsonl, 1 README, 1 \.npy.*name a JSON file itself"):
        container_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it holds nothing"):
        container_of(tmp_path / "empty")
    with pytest.raises(UserError, match="No such file"):
        container_of(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"):
        container_of(tmp_path / "pipe")


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0.parquet", "test/0.parquet"),
        ("my_train_set.parquet", "my_test_set.parquet"),
    ],
)
def test_splits_are_never_mixed(tmp_path, names):
    table(tmp_path / names[0], "train")
    table(tmp_path / names[1], "test")
    with pytest.raises(UserError, match=r"several splits \(test, train\); name one: .*:test"):
        container_of(tmp_path)
    for split in ("train", "test"):
        found = container_of(tmp_path, split)
        assert found is not None and records(found) == [{"text": split}]
    with pytest.raises(UserError, match="no split 'dev'"):
        container_of(tmp_path, "dev")


def test_a_split_among_files_of_none_is_not_mixed_with_them(tmp_path):
    table(tmp_path / "test.parquet", "test")
    assert records(container_of(tmp_path)) == [{"text": "test"}]
    table(tmp_path / "data.parquet")
    with pytest.raises(UserError, match=r"holds test and files of no split, data\.parquet"):
        container_of(tmp_path)
    assert records(container_of(tmp_path, "test")) == [{"text": "test"}]


def test_words_within_words_are_no_splits(tmp_path):
    table(tmp_path / "contest.parquet")
    table(tmp_path / "latest-strains.parquet")
    assert what(tmp_path) == "2 parquet files"
    with pytest.raises(UserError, match="has no splits; leave out :train"):
        container_of(tmp_path, "train")
    with pytest.raises(UserError, match="has no splits"):
        container_of(tmp_path / "contest.parquet", "train")


def test_names_with_braces(tmp_path):
    for number in range(3):
        shard(tmp_path / f"{number}.tar")
    table(tmp_path / "3.tar")
    found = container_of(f"{tmp_path}/{{0..2}}.tar")
    assert found is not None and found.what == "3 shards (tar)" and found.root == tmp_path
    with pytest.raises(UserError, match="several kinds"):
        container_of(f"{tmp_path}/{{0..3}}.tar")
    # A file of such a name is meant itself.
    (tmp_path / "0.tar").rename(tmp_path / "{0..2}.tar")
    assert what(f"{tmp_path}/{{0..2}}.tar") == "a tar of samples"


def test_links_to_themselves_are_no_files(tmp_path):
    for name in ("a.tar", "state.json", "metadata.csv", "b.png"):
        (tmp_path / name).symlink_to(name)
    with pytest.raises(UserError, match="is no folder of data that is known"):
        container_of(tmp_path)


def test_shards_that_are_links_out_of_the_folder_are_refused(tmp_path):
    shard(tmp_path / "out.tar")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.tar").symlink_to(tmp_path / "out.tar")
    with pytest.raises(UserError, match="link out of its folder"):
        container_of(tmp_path / "d")


def test_without_pyarrow_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    paths = [table(tmp_path / "a.parquet"), write(tmp_path / "b.arrow", table_of([1]))]
    paths += [save(tmp_path / "c", range(2))]
    monkeypatch.setattr(builtins, "__import__", without)
    for path in paths:
        with pytest.raises(UserError, match=r"pip install 'tuninglab\[data\]'"):
            container_of(path)
    # The others do without.
    assert what(shard(tmp_path / "d.tar")) == "a tar of samples"
