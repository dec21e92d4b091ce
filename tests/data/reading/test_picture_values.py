import base64
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tuninglab.data.images import FORMATS
from tuninglab.data.reading import picture_values
from tuninglab.data.reading.picture_values import decoded, picture_value
from tuninglab.data.reading.slices import Slice


def file_of(kind):
    file = io.BytesIO()
    Image.effect_noise((40, 30), 90).convert("RGB").save(file, kind)
    return file.getvalue()


FILES = {kind: file_of(kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_base64_of_every_kind_is_told_from_a_path(kind):
    for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes):
        text = encode(FILES[kind]).decode()
        for written in (text, text.rstrip().rstrip("="), f"data:image/{kind};base64,{text}"):
            assert picture_value(written) == FILES[kind]


@pytest.mark.parametrize(
    "url",
    [
        "data:;base64,{}",
        "DATA:image/png;charset=utf-8;name=a.png;BASE64,{}",
        # The kind is not believed.
        "data:text/plain;base64,{}",
        "data:image/png; base64, {}\n",
    ],
)
def test_data_urls_may_have_parameters(url):
    data = FILES["PNG"]
    assert picture_value(url.format(base64.b64encode(data).decode())) == data


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "iVBORw0KGgo.png",
        "iVBORw0KGgo",
        "9j/4AAQSkZJRgABAQAAAQABAAD",  # of a JPEG, but for its first letter
        "R0lGOD",
        "Qk12/Qk12/Qk12/Qk12/Qk12/Qk12",
        "train/2017/000000000001",
        "a b/ä/猫.webp",
        "x" * 3000,
        "file:///a.png",  # told later, with all that lies outside of the root
        "C:\\a.png",
    ],
)
def test_paths_stay_as_they_are(name):
    assert picture_value(name) == name


def test_what_is_a_picture_stays_one(tmp_path):
    stored = Slice(tmp_path / "a.tar", 0, 5, "a.png")
    image = Image.new("RGB", (1, 1))
    assert picture_value(stored) is stored
    assert picture_value(image) is image
    assert picture_value(b"abc") == b"abc"
    assert picture_value({"bytes": stored, "path": "a.png"}) is stored
    assert picture_value({"bytes": b"abc", "path": None}) == b"abc"
    assert picture_value({"path": "a.png"}) == "a.png"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "named by ''"),
        (None, "named by null"),
        (5, "named by 5"),
        ({}, "named by an object of 0"),
        ({"url": "a.png"}, "named by an object of 1"),
        ({"bytes": None, "path": None}, "named by null"),
        ({"bytes": 5}, "named by 5"),
        ({"bytes": "§"}, "which is not base64"),
        (["a.png"], "named by a list of 1"),
        ("https://example.com/a.png", "is a URL; download it first and give its path"),
        ("data:image/svg+xml,%3Csvg/%3E", "data: URL without base64"),
        ("data:image/svg+xml;utf8,<svg>", "data: URL without base64"),
        ("data:", "data: URL without base64"),
        ("data:image/png;base64,A", "which is not base64"),
        ("data:image/png;base64,AA=A", "which is not base64"),
        ("data:image/png;base64,ÄÄÄÄ", "which is not base64"),
        ("\ud800", "surrogate"),
        ("data:image/png;base64,\ud800", "which is not base64"),
    ],
)
def test_what_is_no_picture_is_refused(value, words):
    with pytest.raises(ValueError) as raised:
        picture_value(value)
    assert words in str(raised.value)
    str(raised.value).encode()


def test_pictures_written_out_are_bounded(monkeypatch):
    monkeypatch.setattr(picture_values, "MAX_INLINE", 3000)
    for size, fits in ((3000, True), (3001, False)):
        data = (FILES["PNG"] + bytes(3001))[:size]
        text = base64.b64encode(data).decode()
        for value in (text, f"data:;base64,{text}", {"bytes": text}):
            if fits:
                assert picture_value(value) == data
                continue
            with pytest.raises(ValueError, match="has more than 0 MiB; make it smaller"):
                picture_value(value)
    # Spaces do not count.
    assert decoded(" \n" * 5000 + "AAAA") == bytes(3)


def test_long_runs_of_spaces_take_no_time():
    head = base64.b64encode(FILES["PNG"][:60]).decode()
    # Quadratic, this would be a matter of hours.
    text = head + " " * 10**6 + "!"
    assert picture_value(text) == text
    assert picture_value(text[:-1]) == FILES["PNG"][:60]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60), space=st.sampled_from(["", " ", "\n"]))
def test_any_bytes_come_back(data, space):
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = space.join(encode(data).decode())
        assert decoded(text) == data
        assert picture_value(f"data:image/png;base64,{text}") == data


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.text(max_size=40)
    | st.text("iVBORw0KGgoAAR0lGODUklQk/9j+-_= \n", min_size=20, max_size=60).map(
        lambda text: "iVBORw0KGgo" + text
    )
)
def test_any_text_is_a_path_or_bytes_or_refused(text):
    try:
        value = picture_value(text)
    except ValueError as error:
        str(error).encode()
    else:
        assert value == text or isinstance(value, bytes)
