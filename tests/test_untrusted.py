"""The door for files of others: every kind that is no plain small file is refused by its name."""

import json
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.errors import UserError
from tuninglab.untrusted import DEEPEST, SHOWN_LETTERS, check_path, read_bytes, read_json, shown


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def refusal(read, path, limit: int = 1000) -> str:
    with pytest.raises(UserError) as error:
        read(path, limit, "list of things")
    return str(error.value)


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero", "/dev/null", tmp_path):
        text = refusal(read_json, path)
        assert str(path) in text and "no regular file" in text and "list of things" in text


def test_a_missing_file_and_one_that_is_too_large_are_named(tmp_path):
    assert "does not exist" in refusal(read_bytes, tmp_path / "no.json")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**33)
    tracemalloc.start()
    assert "larger than 1,000 bytes" in refusal(read_bytes, large)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_link_to_a_file_is_the_file(tmp_path):
    (tmp_path / "file.json").write_text('{"a": 1}')
    (tmp_path / "link.json").symlink_to(tmp_path / "file.json")
    assert read_json(tmp_path / "link.json", 1000, "thing") == {"a": 1}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{", b"\xef\xbb\xbf{}", b"[1" + b"0" * 5000 + b"]", b'{"a": \x00}'],
    ids=["empty", "not UTF-8", "cut off", "BOM", "5,000 digits", "NUL"],
)
def test_what_is_no_json_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert str(path) in refusal(read_json, path, 10_000)


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 100_000])
def test_json_is_not_nested_deeper_than_libraries_can_copy(tmp_path, depth):
    path = tmp_path / "file.json"
    path.write_text(nested(depth))
    assert "deep" in refusal(read_json, path, 300_000)
    path.write_text(nested(DEEPEST))
    read_json(path, 300_000, "thing")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    assert read_json(path, 10**6, "thing") == value


@pytest.mark.parametrize("name", ["a\0b", "x" * 256, "/".join(["ab"] * 2000), "a\ud800"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(UserError, match="--data"):
        check_path(name, "--data")
    with pytest.raises(UserError, match="thing"):
        read_bytes(name, 10, "thing")


@given(st.text())
def test_what_messages_show_is_printable_and_short(text):
    assert shown(text).isprintable() and len(shown(text)) <= SHOWN_LETTERS + 3
