import json
import multiprocessing
import os
import random
from operator import methodcaller

import pyarrow as pa
import pytest

from tests.data.reading.shards import picture, records
from tuninglab.data.reading.arrow_files import arrow_files, saved_folder
from tuninglab.data.reading.found import Reading
from tuninglab.errors import UserError

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    "text": {"_type": "Value", "dtype": "string"},
}


def image(number):
    return {"bytes": picture(number), "path": None}


def table_of(numbers):
    numbers = list(numbers)
    return pa.table(
        {
            "image": pa.array([image(i) if i % 4 else None for i in numbers], PICTURE),
            "images": pa.array(
                [None if i % 5 == 4 else [image(j) for j in range(i % 3)] for i in numbers],
                pa.list_(PICTURE),
            ),
            "beside": pa.array([{"bytes": None, "path": f"{i}.png"} for i in numbers], PICTURE),
            "label": pa.array([i % 2 for i in numbers]),
            "text": pa.array([f"t{i}" if i % 3 else None for i in numbers]),
        }
    )


def expected(number):
    """By hand, what `table_of` says in a row."""
    record = {"label": ("cat", "dog")[number % 2]}
    record |= {"image": picture(number)} if number % 4 else {}
    record |= {"images": [picture(j) for j in range(number % 3)]} if number % 5 != 4 else {}
    return record | ({"text": f"t{number}"} if number % 3 else {})


def write(path, table, stream=True, batch=7, **settings):
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(path, table.schema, **settings) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def save(folder, numbers, files=2):
    """A folder as save_to_disk of datasets 5.2.0 writes it."""
    folder.mkdir(parents=True)
    numbers, names = list(numbers), []
    size = -(-len(numbers) // files)
    for part in range(files):
        names.append({"filename": f"data-{part:05d}-of-{files:05d}.arrow"})
        write(folder / names[-1]["filename"], table_of(numbers[part * size : (part + 1) * size]))
    state = {"_data_files": names, "_fingerprint": "0", "_format_type": None, "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def test_a_saved_folder_gives_its_rows(tmp_path):
    found = saved_folder(save(tmp_path / "d", range(40)), None)
    assert len(found.files) == 2
    reading = Reading()
    assert records(found, reading) == [expected(i) for i in range(40)]
    assert reading.notes == {"pictures of the column beside left out: others are in image": 40}


@pytest.mark.parametrize("stream", [False, True])
def test_files_and_streams_are_read_at_random_and_in_order(tmp_path, stream):
    table = table_of(range(60)).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    )
    path = write(tmp_path / "a.arrow", table, stream)
    found = [record for _, record in arrow_files([path], tmp_path).records(Reading())]
    for i in random.Random(0).sample(range(60), 60):
        if "image" in found[i]:
            assert found[i]["image"].read() == picture(i)
            assert found[i]["image"].group is None
    assert records(arrow_files([path], tmp_path)) == [expected(i) for i in range(60)]


def test_splits_are_named(tmp_path):
    save(tmp_path / "d" / "train", range(5))
    save(tmp_path / "d" / "test", range(5, 8))
    listed = tmp_path / "d" / "dataset_dict.json"
    listed.write_text('{"splits": ["train", "test"]}')
    assert records(saved_folder(tmp_path / "d", "test")) == [expected(i) for i in range(5, 8)]
    with pytest.raises(UserError, match=r"several splits \(train, test\); name one"):
        saved_folder(tmp_path / "d", None)
    with pytest.raises(UserError, match="no split 'dev'"):
        saved_folder(tmp_path / "d", "dev")
    with pytest.raises(UserError, match="has no splits"):
        saved_folder(tmp_path / "d" / "train", "train")
    listed.write_text('{"splits": ["train"]}')
    assert len(records(saved_folder(tmp_path / "d", None))) == 5
    listed.write_text('{"splits": ["../d/train"]}')
    with pytest.raises(UserError, match="names no splits"):
        saved_folder(tmp_path / "d", None)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_data_files": [{"filename": "../x.arrow"}]}, "names no files"),
        ({"_data_files": [{"filename": 7}]}, "names no files"),
        ({"_data_files": []}, "names no files"),
        ({"_data_files": 7}, "names no files"),
        ([], "holds no object"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow: No such file"),
        ({"_data_files": [{"filename": "out.arrow"}]}, "link out of its folder"),
        ({"_data_files": [], "_indices_data_files": [{}]}, "flatten_indices"),
    ],
)
def test_a_saved_folder_that_is_wrong_is_refused(tmp_path, state, said):
    folder = save(tmp_path / "d", range(3))
    (tmp_path / "x.arrow").write_bytes(b"")
    (folder / "out.arrow").symlink_to(tmp_path / "x.arrow")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=said):
        saved_folder(folder, None)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pictures_are_read_in_other_processes(tmp_path, method):
    path = write(tmp_path / "a.arrow", table_of(range(1, 4)))
    cells = [record["image"] for _, record in arrow_files([path], tmp_path).records(Reading())]
    assert cells[0].read() == picture(1)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(methodcaller("read"), cells) == [picture(i) for i in range(1, 4)]


def test_a_file_that_changed_or_has_categories_is_named(tmp_path):
    path = write(tmp_path / "a.arrow", table_of([1]))
    ((_, record),) = arrow_files([path], tmp_path).records(Reading())
    os.utime(path, ns=(0, 1))
    with pytest.raises(UserError, match=r"a\.arrow has changed since"):
        record["image"].read()
    path = write(tmp_path / "b.arrow", pa.table({"a": pa.array(["x"]).dictionary_encode()}))
    with pytest.raises(UserError, match=r"b\.arrow has columns of categories"):
        records(arrow_files([path], tmp_path))


@pytest.mark.parametrize("stream", [False, True])
def test_damage_is_a_message_or_nothing(tmp_path, stream):
    whole = write(tmp_path / "whole.arrow", table_of(range(20)), stream).read_bytes()
    draw, told = random.Random(0), 0
    for number in range(150):
        path = tmp_path / f"{number}.arrow"  # mapped still by the one before
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        try:
            records(arrow_files([path], tmp_path))
        except UserError as error:
            assert path.name in str(error)
            told += 1
    assert told > 40


def test_a_file_of_a_name_that_no_file_can_have(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a" * 300}]}))
    with pytest.raises(UserError, match="longer than file names can be"):
        saved_folder(tmp_path, None)
