import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuninglab.data.reading.json_files import read_records
from tuninglab.errors import UserError

RECORD = {"messages": [{"role": "user", "content": "猫 ?"}]}
LINE = json.dumps(RECORD, ensure_ascii=False)


def write(tmp_path, data):
    path = tmp_path / "我的 data.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"[{LINE}, {LINE}]",
        json.dumps([RECORD, RECORD], indent=0),
        "\ufeff" + json.dumps([RECORD, RECORD], indent=4) + "\n\n",
        f"{LINE}\n{LINE}",
        f"\ufeff\ufeff{LINE}\r\n\r\n  {LINE}  \r\n\r\n\n",
        f"{LINE}\r{LINE}\r",
    ],
)
def test_json_and_json_lines_are_told_apart_by_content(tmp_path, text):
    records = read_records(write(tmp_path, text))
    assert [value for _, value in records] == [RECORD, RECORD]


def test_origins_count_from_one_and_count_blank_lines(tmp_path):
    path = write(tmp_path, f"\n{LINE}\n\n{LINE}\n")
    assert [origin for origin, _ in read_records(path)] == [f"{path}, line 2", f"{path}, line 4"]
    path = write(tmp_path, f"[{LINE},\n{LINE}]")
    origins = [origin for origin, _ in read_records(path)]
    assert origins == [f"{path}, record 1", f"{path}, record 2"]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    line = json.dumps({"messages": "a\u2028b\x85c"}, ensure_ascii=False)
    assert read_records(write(tmp_path, f"{line}\n{line}"))[1][1] == {"messages": "a\u2028b\x85c"}


def test_a_single_record_is_a_data_set_of_one(tmp_path):
    for text in (LINE, json.dumps(RECORD, indent=2)):
        assert [value for _, value in read_records(write(tmp_path, text))] == [RECORD]


def test_a_record_whose_lines_begin_like_records_is_one_record(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    inner = ",\n".join(json.dumps(turn) for turn in turns)
    for start in ('{"messages": [', '{\n"messages":\n[', '{"id": {"a": 1},\n"messages": ['):
        records = read_records(write(tmp_path, start + f"\n{inner}\n" + "]}"))
        assert [value["messages"] for _, value in records] == [turns]
    # The same record broken is a broken document only where no line is meant as a record.
    with pytest.raises(UserError, match="broken JSON"):
        read_records(write(tmp_path, '{\n"messages": [\n"a"'))


@pytest.mark.parametrize(
    "bad",
    [
        "{broken",
        '{"messages": [}',
        '{"a": 1} x',
        '{"a": ' + "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_a_broken_line_is_one_bad_record(tmp_path, bad):
    for lines in ([LINE, bad, LINE], [bad, LINE, LINE]):
        values = [value for _, value in read_records(write(tmp_path, "\n".join(lines)))]
        wrong = values.pop(lines.index(bad))
        # Python before 3.10.7 reads integers of any length.
        assert isinstance(wrong, ValueError) or isinstance(wrong.get("a"), int)
        assert values == [RECORD, RECORD]


@pytest.mark.parametrize("bad", ['{"a": ' + "[" * 100_000, '{"a": tru'])
def test_a_single_broken_line_is_named_with_a_remedy(tmp_path, bad):
    path = write(tmp_path, bad)
    [(origin, error)] = read_records(path)
    assert origin == f"{path}, line 1" and "correct" in str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \r\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"[]", "empty list"),
        (b'[{"a": 1},\n {"b" 2}]', "line 2, column 7"),
        (b'[{"a": 1},\n {"b": 2}', "broken JSON at line 2"),
        (b'"text"', "'text'; expected a JSON list"),
        (b"null", "holds null; expected a JSON list"),
        (b"12", "holds 12; expected a JSON list"),
        (
            b'{\n"annotations": [],\n"info": 1}',
            "an object of 2 with the keys 'annotations', 'info'",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"a":' * 100_000, "nested too deeply to be a record; correct or drop it"),
        (
            b"<html>",
            "at line 1, column 1: Expecting value; expected a JSON list, or one JSON object a line",
        ),
        ("[]".encode("utf-16"), "is UTF-16"),
        ('[{"a": 1}]'.encode("utf-16-le"), "NUL byte"),
        ('[\n{"a": "é"}]'.encode("latin-1"), "line 2: byte 0xe9 (offset 9) is not UTF-8"),
        (b'[{"a": "\xed\xa0\x80"}]', "not UTF-8"),
        (b"\x80\x04\x95\x12\x00", "is no text; expected UTF-8 JSON"),
        (b"PK\x03\x04\xff", "is no text; expected UTF-8 JSON"),
        (
            b"id,text\n1,hi\n",
            "expected a JSON list, or one JSON object a line (.jsonl); correct it",
        ),
        (b'[{"a": "\0"}]', "line 1: a NUL byte"),
    ],
)
def test_unreadable_files_say_what_is_wrong(tmp_path, data, words):
    path = write(tmp_path, data)
    with pytest.raises(UserError) as raised:
        read_records(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer without end
    cases = {"none.json": "does not exist", ".": "is a folder", "pipe": "no regular file"}
    cases |= {"a\0b": "cannot be read|does not exist", "x" * 5000: "cannot be read|does not exist"}
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            read_records(tmp_path / name)


ALPHABET = st.sampled_from(list('[]{}":,\\ \n\r\t0-9eEtrufalsn') + ["\ufeff", "猫", "\x00", "NaN"])
TEXTS = st.lists(ALPHABET).map("".join).map(str.encode)


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), TEXTS))
def test_any_bytes_give_records_or_a_user_error(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp(), data)
    try:
        assert read_records(path)
    except UserError as error:
        assert str(path) in str(error)
