import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.reading.shards import picture, records
from tuninglab.data.reading.containers import container_of
from tuninglab.data.reading.found import Reading
from tuninglab.errors import UserError


def instruction(text, *images, before=()):
    return {
        "instruction": text,
        "answer": text.upper(),
        "image_ids": list(images),
        "rel_ins_ids": list(before),
    }


INSTRUCTIONS = {
    "INS_0": instruction("a", "IMG_0", before=["INS_1", "INS_2"]),
    "INS_1": instruction("b", "IMG_1", "IMG_2"),
    "INS_2": instruction("c", "IMG_3"),
    "INS_3": instruction("d", "IMG_0", before=["INS_0"]),
}


def lay(folder, instructions, pictures, parquet=True):
    path = folder / "DC_instructions.json"
    path.write_text(json.dumps({"meta": {"version": "0"}, "data": instructions}))
    texts = {name: base64.b64encode(content).decode() for name, content in pictures.items()}
    if parquet:
        # As pandas writes a frame whose index is the ids.
        columns = {"base64": list(texts.values()), "__index_level_0__": list(texts)}
        pq.write_table(pa.table(columns), folder / "DC.parquet", row_group_size=2)
    else:
        (folder / "DC.json").write_text(json.dumps(texts, indent=1))
    return path


def dialogue(*turns):
    """The messages of (number of pictures, question) turns."""
    messages = []
    for count, text in turns:
        parts = [{"type": "image"}] * count + [{"type": "text", "text": text}]
        messages.append({"role": "user", "content": parts})
        answer = [{"type": "text", "text": text.upper()}]
        messages.append({"role": "assistant", "content": answer})
    return messages


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_examples_come_first_each_with_its_own_pictures(tmp_path, parquet, whole_folder):
    images = {f"IMG_{i}": picture(i) for i in range(4)}
    path = lay(tmp_path, INSTRUCTIONS, images, parquet)
    found = container_of(tmp_path if whole_folder else path)
    assert found is not None and found.what == "MIMIC-IT instructions"
    assert records(found) == [
        {
            "id": "INS_0",
            "messages": dialogue((2, "b"), (1, "c"), (1, "a")),
            "images": [picture(1), picture(2), picture(3), picture(0)],
        },
        {
            "id": "INS_1",
            "messages": dialogue((2, "b")),
            "images": [picture(1), picture(2)],
        },
        {"id": "INS_2", "messages": dialogue((1, "c")), "images": [picture(3)]},
        # Both are about one picture, which is shown once.
        {"id": "INS_3", "messages": dialogue((1, "a"), (0, "d")), "images": [picture(0)]},
    ]


def test_a_broken_instruction_is_one_bad_record(tmp_path):
    broken = {
        "INS_0": instruction("a", "IMG_9"),
        "INS_1": instruction("b", before=["INS_9"]),
        "INS_2": {"instruction": "c", "answer": None},
        "INS_3": "d",
        "INS_4": {"instruction": "e", "answer": "E", "image_ids": [7]},
        "INS_5": {"instruction": "f", "answer": "F", "image_ids": None},
    }
    path = lay(tmp_path, broken, {"IMG_0": picture(0)})
    found = records(container_of(path))
    for bad, said in zip(
        found[:5],
        [
            "the picture 'IMG_9' of 'INS_0' is not there",
            "the instruction 'INS_9' of rel_ins_ids is not there",
            "instruction and answer of 'INS_2' are not both texts",
            "the instruction 'INS_3' is 'd'; expected an object",
            "image_ids of 'INS_4' is a list of 1; expected a list of ids",
        ],
        strict=True,
    ):
        assert bad == said
    assert found[5] == {"id": "INS_5", "messages": dialogue((0, "f")), "images": []}


def test_of_ids_that_are_there_twice_the_file_of_the_same_name_counts(tmp_path):
    path = lay(tmp_path, {"INS_0": instruction("a", "IMG_0")}, {"IMG_0": picture(0)})
    other = {"base64": [base64.b64encode(picture(9)).decode()], "__index_level_0__": ["IMG_0"]}
    pq.write_table(pa.table(other), tmp_path / "AA.parquet")
    reading = Reading()
    assert records(container_of(path), reading)[0]["images"] == [picture(0)]
    assert reading.notes == {"ids of pictures that are there twice, the first taken": 1}


@pytest.mark.parametrize(
    "text", ['{"a": "YQ=="', '{"a": "YQ==",', '{"a": 7}', "[]", '{"a": "\\u0041"}', '{"a": "b"} {']
)
def test_pictures_that_are_no_object_of_texts_are_named(tmp_path, text):
    path = lay(tmp_path, INSTRUCTIONS, {}, parquet=False)
    (tmp_path / "DC.json").write_text(text)
    with pytest.raises(UserError, match=r"DC\.json is damaged at byte"):
        records(container_of(path))


def test_files_that_lack_something_are_named(tmp_path):
    path = lay(tmp_path, INSTRUCTIONS, {})
    pq.write_table(pa.table({"x": [1]}), tmp_path / "DC.parquet")
    with pytest.raises(UserError, match=r"DC\.parquet has the columns 'x'; expected base64"):
        records(container_of(path))
    (tmp_path / "DC.parquet").unlink()
    with pytest.raises(UserError, match=r"no pictures beside it; put DC\.parquet"):
        container_of(path)
    lay(tmp_path, INSTRUCTIONS, {}, parquet=False)
    for text, said in (('{"meta": {"a": 1}}', "data is null"), ('{"data": {"a"', "is no JSON")):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            records(container_of(path))
