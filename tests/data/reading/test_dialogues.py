import base64
import json
import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tuninglab.data import images
from tuninglab.data.images import load_image
from tuninglab.data.reading.opening import read_samples
from tuninglab.data.sources import picture_digest
from tuninglab.errors import DataError, UserError

GOOD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def pics(tmp_path):
    root = tmp_path / "pics"
    (root / "子 目录").mkdir(parents=True)
    for name in ("a.png", "b c.JPG", "子 目录/猫.webp"):
        Image.new("RGB", (4, 3), "red").save(root / name)
    return root


def write(tmp_path, records, name="my.json"):
    path = tmp_path / name
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records))
    return path


def text(value):
    return {"type": "text", "text": value}


def problem(tmp_path, record, root=None):
    """The text about a single bad record among good ones."""
    path = write(tmp_path, [{"messages": GOOD}, record, {"messages": GOOD}])
    with pytest.raises(DataError) as raised:
        read_samples(path, root)
    (line,) = raised.value.problems
    assert line.startswith(f"{path}, record 2: ")
    assert "--skip_bad_records" in str(raised.value)
    left = read_samples(path, root, skip_bad_records=True)
    assert len(left) == 2 and left.problems == [line]
    return line


def test_llava_records_become_samples(tmp_path, pics):
    record = {
        "id": "7",
        "image": "子 目录/猫.webp",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "颜色?"},
            {"from": "gpt", "value": "红"},
        ],
    }
    several = {
        "image": ["a.png", "b c.JPG"],
        "conversations": [
            {"from": "human", "value": "<image> and <image>: same?"},
            {"from": "gpt", "value": "no"},
        ],
    }
    mixed = {"messages": [{"role": "human", "content": "hi"}, GOOD[1]]}
    none = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}
    path = write(tmp_path, [record, several, none | {"image": None}, mixed])
    first, second, third, fourth = list(read_samples(path, pics))
    assert first.messages == [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [{"type": "image"}, text("\nWhat is it?")]},
        {"role": "assistant", "content": [text("A cat.")]},
        {"role": "user", "content": [text("颜色?")]},
        {"role": "assistant", "content": [text("红")]},
    ]
    assert first.images == [pics / "子 目录/猫.webp"]
    assert first.origin == f"{path}, record 1"
    image = {"type": "image"}
    assert second.messages[0]["content"] == [image, text(" and "), image, text(": same?")]
    assert second.images == [pics / "a.png", pics / "b c.JPG"]
    assert third.images == []
    assert third.messages == fourth.messages


@pytest.mark.parametrize("name", ["my.json", "my.jsonl", "my.txt"])
@pytest.mark.parametrize("key", ["image", "path", "url", None])
def test_messages_records_become_samples(tmp_path, pics, name, key):
    part = {"type": "image", "text": None} | ({key: "a.png"} if key else {})
    record = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": [part, text("what is <image>?")]},
            {"role": "assistant", "content": [text("a red square")]},
        ]
    }
    if key is None:
        record["images"] = ["a.png"]
    (sample,) = read_samples(write(tmp_path, [record], name), pics)
    assert sample.images == [pics / "a.png"]
    # In a text part the mark is text.
    assert sample.messages[1]["content"] == [{"type": "image"}, text("what is <image>?")]


def test_the_image_root_is_the_data_files_folder_by_default(tmp_path, pics):
    record = {"messages": [{"role": "user", "content": "<image>"}, GOOD[1]], "images": ["a.png"]}
    assert read_samples(write(pics, [record]))[0].images == [pics / "a.png"]


def user(content):
    return {"role": "user", "content": content}


SURROGATE = "\ud800"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "the record is a list of 0; expected an object"),
        ({}, "no known format has the keys (none); nearest"),
        ({"messages": None}, "no known format has the keys 'messages'; nearest"),
        ({"conversations": [{"from": "human"}]}, "the content is missing"),
        ({"messages": GOOD, "conversations": []}, 'has both "messages" and "conversations"'),
        ({"messages": [GOOD[0], {"role": "assistant", "content": " "}]}, "the answer is empty"),
        ({"conversations": {}}, "the dialogue is an object of 0; expected a list"),
        ({"conversations": [{"from": "cat", "value": "a"}]}, "role is 'cat'; known: system"),
        ({"messages": GOOD, "image": "a.png"}, "0 <image> marks in the messages but 1 images"),
        ({"messages": GOOD, "image": "a.png", "images": ["a.png"]}, 'both "image" and "images"'),
        ({"messages": GOOD, "images": [5]}, "named by 5"),
        ({"messages": GOOD, "images": {"a": 1}}, "named by an object of 1"),
        ({"messages": GOOD, "images": [""]}, "named by ''"),
        ({"messages": GOOD, "images": [SURROGATE]}, "surrogate"),
        (
            {"messages": [user([{"type": "image", "path": "a.png"}]), GOOD[1]], "image": "a.png"},
            "keep one of the two",
        ),
        (
            {"messages": [user([{"type": "image", "path": "a"}, {"type": "image"}]), GOOD[1]]},
            "1 of 2 image parts name a picture",
        ),
        (
            {"messages": [user([{"type": "image", "path": "a", "url": "b"}]), GOOD[1]]},
            "names 2 pictures",
        ),
    ],
)
def test_bad_records_are_named(tmp_path, record, words):
    assert words in problem(tmp_path, record)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", "does not exist"),
        ("/etc/hostname", "leads out of the image root"),
        ("../secret.png", "leads out of the image root"),
        ("子 目录/../../secret.png", "leads out of the image root"),
        ("link.png", "leads out of the image root"),
        ("linked/secret.png", "leads out of the image root"),
        ("loop", "does not exist|no usable path|cannot be read"),
        ("https://example.com/a.png", "is a URL; download it first"),
        ("file:///a.png", "is a URL"),
        ("data:image/png;base64,AAAA", "given in the record' is not a picture of a known kind"),
        ("data:image/png;base64,!", "is not base64"),
        ("子 目录", "no regular file"),
        (".", "no regular file"),
        ("a.png/", "no regular file"),
        ("a.png/.", "no regular file"),
        ("pipe", "no regular file"),
        ("text.png", "or drop the record"),
        ("cut.png", "; replace it with a whole picture file"),
        ("a\0.png", "no usable path|cannot be read"),
        ("n" * 3000, "cannot be read|no usable path|does not exist"),
    ],
)
def test_bad_pictures_are_named(tmp_path, pics, name, words):
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    (pics / "link.png").symlink_to(tmp_path / "secret.png")
    (pics / "linked").symlink_to(tmp_path)
    (pics / "loop").symlink_to(pics / "loop")
    os.mkfifo(pics / "pipe")
    (pics / "text.png").write_text("hello")
    whole = Image.effect_noise((60, 60), 90)
    whole.save(pics / "whole.png")
    (pics / "cut.png").write_bytes((pics / "whole.png").read_bytes()[:1500])
    record = {"messages": [user("<image>?"), GOOD[1]], "images": [name]}
    line = problem(tmp_path, record, pics)
    assert any(word in line for word in words.split("|")), line
    assert len(line) < 1000  # a long name is not repeated in full


def test_links_and_dots_that_stay_inside_are_followed(tmp_path, pics):
    (pics / "inside.png").symlink_to("a.png")
    (tmp_path / "root").symlink_to(pics)
    names = ["inside.png", "子 目录/../a.png", "./a.png"]
    record = {"messages": [user("<image>" * 3), GOOD[1]], "images": names}
    (sample,) = read_samples(write(tmp_path, [record]), tmp_path / "root")
    assert sample.images == [pics / "a.png"] * 3


@pytest.mark.parametrize("what", ["file", "folder", "pipe"])
def test_what_takes_a_pictures_place_after_the_check_is_not_read(tmp_path, what):
    inside, outside = tmp_path / "root" / "in", tmp_path / "out"
    for folder, colour in ((inside, "blue"), (outside, "red")):
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 3), colour).save(folder / "a.png")
    record = {"messages": [user("<image>?"), GOOD[1]], "images": ["in/a.png"]}
    (sample,) = read_samples(write(tmp_path, [record]), tmp_path / "root")
    (picture,) = sample.images
    # As it comes to a worker process.
    picture = pickle.loads(pickle.dumps(picture))
    assert load_image(picture).getpixel((0, 0)) == (0, 0, 255)
    digest = picture_digest(picture)
    if what == "folder":
        inside.rename(tmp_path / "moved")
        inside.symlink_to(outside)
    else:
        (inside / "a.png").unlink()
    if what == "file":
        (inside / "a.png").symlink_to(outside / "a.png")
    elif what == "pipe":
        os.mkfifo(inside / "a.png")
    for read in (load_image, picture_digest):
        with pytest.raises(UserError, match="a.png' (cannot be read|is no regular file)"):
            read(picture)
    # What the user names is the user's affair, links included.
    if what != "pipe":
        assert load_image(str(picture)).getpixel((0, 0)) == (255, 0, 0)
        assert picture_digest(str(picture)) != digest


def test_files_larger_than_any_picture_are_not_read(tmp_path, pics):
    with (pics / "huge.png").open("wb") as file:
        file.truncate(2**40)
    record = {"messages": [user("<image>?"), GOOD[1]], "images": ["huge.png"]}
    assert "huge.png' is too large: files of at most 512 MiB" in problem(tmp_path, record, pics)


def test_too_large_pictures_are_refused(tmp_path, pics, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 11)
    record = {"messages": [user("<image>?"), GOOD[1]], "images": ["a.png"]}
    with pytest.raises(UserError, match=f"a.png' has 4x3 pixels, {images.TOO_LARGE}"):
        read_samples(write(tmp_path, [record]), pics)


def test_all_problems_are_collected_in_the_files_order(tmp_path, pics, capsys):
    missing = {"messages": [user("<image><image>"), GOOD[1]], "images": ["x.png", "y.png"]}
    records = [missing, {"messages": []}, {"messages": GOOD}, *[{}] * 30]
    path = write(tmp_path, records)
    with pytest.raises(DataError) as raised:
        read_samples(path, pics)
    assert len(raised.value.problems) == 33
    assert [line.split(": ")[0][-2:] for line in raised.value.problems[:4]] == [
        " 1",
        " 1",
        " 2",
        " 4",
    ]
    assert "... and 13 more" in str(raised.value)
    left = read_samples(path, pics, skip_bad_records=True)
    assert len(left) == 1 and len(left.problems) == 33 and left.skipped == 32
    said = capsys.readouterr().err
    assert "32 of 33 records left out" in said and "... and 13 more" in said


def test_a_broken_json_line_is_skipped_like_any_bad_record(tmp_path):
    path = tmp_path / "my.jsonl"
    line = json.dumps({"messages": GOOD})
    path.write_text(f"{line}\n{{broken\n{line}")
    with pytest.raises(DataError, match="line 2: broken JSON at column 2"):
        read_samples(path)
    assert len(list(read_samples(path, skip_bad_records=True))) == 2


def test_nothing_left_is_an_error_also_when_skipping(tmp_path):
    with pytest.raises(UserError, match="No usable record is left"):
        read_samples(write(tmp_path, [{}]), skip_bad_records=True)


def test_a_bad_image_root_is_named(tmp_path):
    path = write(tmp_path, [{"messages": GOOD}])
    for root in (tmp_path / "none", path, "a\0b"):
        with pytest.raises(UserError, match="image root"):
            read_samples(path, root)


LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5)
WORDS = st.sampled_from(
    ["user", "human", "gpt", "assistant", "system", "<image>", "a", "text", "image"]
)
KEYS = st.sampled_from(
    "messages conversations role content from value type text image images path url".split()
)
VALUES = st.recursive(
    LEAVES | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(records=st.lists(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, max_size=4))
def test_any_json_gives_samples_or_a_user_error(tmp_path_factory, records):
    path = write(tmp_path_factory.getbasetemp(), records)
    try:
        assert list(read_samples(path))
    except UserError as error:
        assert str(path) in str(error)
        str(error).encode()


def test_pictures_written_out_in_the_record_are_read(tmp_path, pics, capsys):
    data = (pics / "a.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    turns = [{"from": "human", "value": "what?\n<image>"}, {"from": "gpt", "value": "red"}]
    records = [{"image": name, "conversations": turns} for name in (url, "a.png", url)]
    samples = read_samples(write(tmp_path, records), pics)
    assert [sample.images[0].read() for sample in samples[::2]] == [data] * 2
    assert samples[1].images == [pics / "a.png"]
    # What was done to the records is said, once.
    said = capsys.readouterr().err
    assert said.count("moved to the front") == 1 and "(--keep_marks leaves it): 3" in said


def test_an_absolute_path_below_the_image_root_is_read(tmp_path, pics):
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "red"}]
    record = {"image": str(pics / "a.png"), "conversations": turns}
    (sample,) = read_samples(write(tmp_path, [record]), pics)
    assert sample.images == [pics / "a.png"]
