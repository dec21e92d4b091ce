import base64
import datetime
import json
import math
import multiprocessing
import os
import pickle
import random
from operator import methodcaller

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.reading.shards import picture, records, with_bytes
from tuninglab.data.reading import parquet
from tuninglab.data.reading.cells import Held
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.parquet import parquet_files, window
from tuninglab.errors import UserError

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, columns, features=None, rows=10, **settings):
    """A parquet file of {name: (type, values)}."""
    table = pa.table({name: pa.array(values, kind) for name, (kind, values) in columns.items()})
    if features:
        noted = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(noted)
    pq.write_table(table, path, row_group_size=rows, **settings)
    return path


def read(path, reading=None):
    return records(parquet_files([path], path.parent), reading)


def image(number):
    return {"bytes": picture(number), "path": f"{number}.png"}


def without_nulls(value):
    """What pyarrow gives, with pictures as bytes and nulls of objects left out."""
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return value["bytes"]
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("statistics", [False, True])
def test_records_and_pictures_are_those_that_pyarrow_reads(tmp_path, missing, statistics):
    draw = random.Random(1)
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("loss", pa.bool_())])
    path = write(
        tmp_path / "a.parquet",
        {
            "image": (PICTURE, [None if missing and i % 3 == 0 else image(i) for i in range(47)]),
            "images": (
                pa.list_(PICTURE),
                [[image(i + j) for j in range(draw.randrange(3))] for i in range(47)],
            ),
            "messages": (
                pa.list_(turn),
                [[{"role": "user", "content": f"q{i}", "loss": None}] for i in range(47)],
            ),
            "score": (pa.float64(), [None if i % 5 == 0 else i / 4 for i in range(47)]),
        },
        write_statistics=statistics,
    )
    expected = [without_nulls(row) for row in pq.read_table(path).to_pylist()]
    assert read(path) == expected
    # At random, each for itself, as well.
    found = [record for _, record in parquet_files([path], tmp_path).records(Reading())]
    order = draw.sample(range(47), 47)
    assert [with_bytes(found[i]) for i in order] == [expected[i] for i in order]
    groups = [found[i]["image"].group for i in range(47) if "image" in found[i]]
    assert groups == [(str(path), i // 10) for i in range(47) if "image" in found[i]]
    if not missing and statistics:
        assert [found[i]["image"].row for i in (0, 9, 10, 46)] == [0, 9, 0, 6]


def test_pictures_may_be_bytes_base64_lists_and_deep(tmp_path):
    part = pa.struct([("type", pa.string()), ("text", pa.string()), ("image", PICTURE)])
    turn = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
    parts = [
        {"type": "image", "text": None, "image": image(1)},
        {"type": "text", "text": "?", "image": None},
    ]
    messages = [{"role": "user", "content": parts}]
    large = picture(2) + bytes(1000)
    text = base64.encodebytes(large).decode()
    path = write(
        tmp_path / "a.parquet",
        {
            "messages": (pa.list_(turn), [messages, messages]),
            "images": (pa.list_(pa.binary()), [[picture(5), picture(6)], []]),
            "image": (pa.string(), [text, "folder/a.jpg"]),
        },
    )
    told = [{"role": "user", "content": [{"type": "image", "image": picture(1)}, parts[1]]}]
    told[0]["content"][1] = {"type": "text", "text": "?"}
    assert read(path) == [
        {"messages": told, "images": [picture(5), picture(6)], "image": large},
        {"messages": told, "images": [], "image": "folder/a.jpg"},
    ]
    data_url = f"data:image/png;base64,{base64.b64encode(picture(3)).decode()}"
    path = write(tmp_path / "b.parquet", {"image": (pa.string(), [data_url, "data:,%%%"])})
    one, other = [
        record["image"] for _, record in parquet_files([path], tmp_path).records(Reading())
    ]
    assert one.read() == picture(3)
    with pytest.raises(UserError, match="image of row 1 in block 0 is no base64"):
        other.read()


def test_a_picture_without_bytes_is_the_file_that_its_path_names(tmp_path):
    values = [{"bytes": None, "path": "beside.png"}, image(1)]
    path = write(tmp_path / "a.parquet", {"image": (PICTURE, values)})
    assert read(path) == [{"image": "beside.png"}, {"image": picture(1)}]


def test_a_path_among_bytes_is_told_when_it_is_read(tmp_path):
    values = [image(i) for i in range(30)] + [{"bytes": None, "path": "beside.png"}]
    path = write(tmp_path / "a.parquet", {"image": (PICTURE, values)})
    *cells, last = [r["image"] for _, r in parquet_files([path], tmp_path).records(Reading())]
    assert [cell.read() for cell in cells] == [picture(i) for i in range(30)]
    with pytest.raises(UserError, match="image of row 0 in block 3 holds no picture: its bytes"):
        last.read()


def test_structs_that_only_look_like_pictures_are_values(tmp_path):
    numbers = pa.struct([("bytes", pa.int64()), ("path", pa.string())])
    texts = pa.struct([("bytes", pa.string()), ("path", pa.string())])
    three = pa.struct([("bytes", pa.int64()), ("path", pa.string()), ("x", pa.string())])
    columns = {
        "a": (numbers, [{"bytes": 1, "path": "p"}]),
        "b": (three, [{"bytes": 1, "path": None, "x": "y"}]),
        "c": (texts, [{"bytes": "b", "path": "p"}]),
    }
    path = write(tmp_path / "a.parquet", columns)
    assert read(path) == [
        {
            "a": {"bytes": 1, "path": "p"},
            "b": {"bytes": 1, "x": "y"},
            "c": {"bytes": "b", "path": "p"},
        }
    ]


def test_other_columns_of_pictures_become_the_record_s_images(tmp_path):
    columns = {
        "image_1": (PICTURE, [image(1), image(3)]),
        "image_2": (PICTURE, [image(2), None]),
        "question": (pa.string(), ["q", "r"]),
    }
    path = write(tmp_path / "a.parquet", columns)
    assert read(path) == [
        {"question": "q", "images": [picture(1), picture(2)]},
        {"question": "r", "image": picture(3)},
    ]
    reading = Reading(columns={"image": "image_2"})
    assert read(path, reading)[0] == {"question": "q", "image_2": picture(2)}
    assert reading.notes == {"pictures of the column image_1 left out: others are in image_2": 2}


def test_features_of_hugging_face_are_respected(tmp_path):
    label = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    path = write(
        tmp_path / "a.parquet",
        {
            "label": (pa.int64(), [1, -1, 2, 0]),
            "labels": (pa.list_(pa.int64()), [[0, 1], [], [], []]),
            "any": (pa.json_(pa.string()), ['{"x": [1]}', None, "1", "{"]),
        },
        {"label": label, "labels": {"_type": "List", "feature": label}, "any": {"_type": "Json"}},
    )
    one, two, three, four = read(path)
    assert one == {"label": "dog", "labels": ["cat", "dog"], "any": {"x": [1]}}
    assert two == {"labels": []}
    assert three == "label is 2, but there are 2 classes"
    assert "Expecting property name" in four
    for name in ("Audio", "Video"):
        path = write(tmp_path / "b.parquet", {"a": (PICTURE, [None])}, {"a": {"_type": name}})
        with pytest.raises(UserError, match=rf"b\.parquet: the column a holds {name.lower()}"):
            read(path)


def test_values_that_json_lacks_and_pandas_index(tmp_path):
    day = datetime.date(2020, 1, 2)
    path = write(
        tmp_path / "a.parquet",
        {
            "day": (pa.date32(), [day]),
            "text": (pa.float64(), [math.nan]),
            "__index_level_0__": (pa.int64(), [7]),
            "kept.dotted": (pa.string(), ["x"]),
        },
    )
    assert read(path) == [{"day": "2020-01-02", "kept.dotted": "x"}]


def test_the_parquet_form_of_img2dataset(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {
            "key": (pa.string(), ["0", "1", "2"]),
            "jpg": (pa.binary(), [picture(0), None, picture(2)]),
            "txt": (pa.string(), ["a cat", "a dog", ""]),
            "caption": (pa.string(), ["a cat", "a dog", None]),
            "url": (pa.string(), ["u", "v", "w"]),
            "status": (pa.string(), ["success", "failed_to_download", "success"]),
        },
    )
    reading = Reading()
    assert read(path, reading) == [{"id": "0", "text": "a cat", "image": picture(0)}]
    assert reading.notes == {
        "captions without a picture left out": 1,
        "pictures without a caption left out": 1,
    }


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pictures_are_read_in_other_processes(tmp_path, method):
    path = write(tmp_path / "a.parquet", {"image": (PICTURE, [image(i) for i in range(30)])})
    found = [record["image"] for _, record in parquet_files([path], tmp_path).records(Reading())]
    assert found[3].read() == picture(3)  # held here, and by no means there
    assert pickle.loads(pickle.dumps(found[3])) == found[3]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(methodcaller("read"), found) == [picture(i) for i in range(30)]


def test_a_fork_starts_empty_and_with_a_lock_of_its_own(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": (PICTURE, [image(1)])})
    ((_, record),) = parquet_files([path], tmp_path).records(Reading())
    record["image"].read()
    assert parquet._columns.things
    with parquet._columns.lock:  # as another thread might at that moment
        child = os.fork()
        if not child:
            empty = not parquet._columns.things and not parquet._files.things
            os._exit(0 if empty and record["image"].read() == picture(1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_that_changed_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": (PICTURE, [image(i) for i in range(9)])})
    cells = [record["image"] for _, record in parquet_files([path], tmp_path).records(Reading())]
    os.truncate(path, 200)
    with pytest.raises(UserError, match=r"a\.parquet has changed since"):
        cells[0].read()
    path.unlink()
    with pytest.raises(UserError, match=r"a\.parquet: No such file"):
        cells[0].read()


def test_damage_is_a_message_or_nothing(tmp_path):
    columns = {
        "image": (PICTURE, [image(i) for i in range(20)]),
        "text": (pa.string(), [f"text {i}" for i in range(20)]),
    }
    whole = write(tmp_path / "whole.parquet", columns).read_bytes()
    draw, path, told = random.Random(0), tmp_path / "a.parquet", 0
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        try:
            read(path)
        except UserError as error:
            assert "a.parquet" in str(error)
            told += 1
    assert told > 100  # all that were cut off


def test_held_things_are_few_and_small_and_each_is_loaded_once():
    loaded = []

    def get(held, key, size):
        return held.get(key, lambda: (loaded.append(key) or key * 2, size))

    held = Held(3, 100)
    assert [get(held, key, 10) for key in (1, 2, 3, 1, 4, 1, 2)] == [2, 4, 6, 2, 8, 2, 4]
    assert loaded == [1, 2, 3, 4, 2]
    # By size; one thing that is larger than all is held alone.
    get(held, 5, 95)
    assert list(held.things) == [5] and held.bytes == 95
    get(held, 6, 500)
    assert list(held.things) == [6] and held.bytes == 500
    get(held, 7, 1)
    assert list(held.things) == [7] and held.bytes == 1


def test_the_window_is_what_is_held(tmp_path, monkeypatch):
    path = write(
        tmp_path / "a.parquet", {"image": (PICTURE, [image(i) for i in range(60)])}, rows=5
    )
    assert window([path]) == parquet.HELD_GROUPS
    about = pq.ParquetFile(path).metadata
    largest = max(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    monkeypatch.setattr(parquet, "HELD_BYTES", 3 * largest + largest // 2)
    assert window([path]) == 3
    monkeypatch.setattr(parquet, "_columns", Held(3, 2**30))
    loads = []
    read_column = parquet._read_column
    monkeypatch.setattr(
        parquet, "_read_column", lambda *key: loads.append(key) or read_column(*key)
    )
    cells = [record["image"] for _, record in parquet_files([path], tmp_path).records(Reading())]
    draw = random.Random(0)
    for start in range(0, 60, 15):  # three groups of five at a time
        for cell in draw.sample(cells[start : start + 15], 15):
            cell.read()
    assert len(loads) == 12


def test_groups_beyond_memory_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"image": (PICTURE, [image(1)])})
    ((_, record),) = parquet_files([path], tmp_path).records(Reading())
    monkeypatch.setattr(parquet, "MOST_GROUP", 50)
    with pytest.raises(UserError, match="write the file with smaller ones"):
        record["image"].read()


def test_a_text_that_is_too_long_for_one_becomes_no_value_of_python(tmp_path):
    texts = pa.array(["a" * (32 * 2**20 + 1)])
    columns = [texts, pa.DictionaryArray.from_arrays(pa.array([0]), texts)]
    for number, column in enumerate(columns):
        file = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"image": ["a.png"], "text": column}), file)
        with pytest.raises(UserError, match=f"{number}.parquet .*a text of 33,554,433 bytes"):
            list(parquet_files([file], tmp_path).records(Reading()))
