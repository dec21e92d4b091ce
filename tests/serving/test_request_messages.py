"""The dialogue of a request: in any spelling, in one form; its pictures, and nothing of ours."""

import io
import struct
import zlib

import pytest
from PIL import Image

from tests.serving.bodies import base64_of, data_url, image_url, picture
from tuninglab.data.sample import Sample
from tuninglab.serving import picture_urls, request_messages
from tuninglab.serving.request_messages import MOST_LETTERS, read_messages

RED, BLUE = picture(), picture("JPEG", "blue")
TEXT = {"type": "text", "text": "A?"}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def said(messages):
    """Roles with their texts, `[]` where a picture is."""
    return [
        (message["role"], "".join(part.get("text", "[]") for part in message["content"]))
        for message in read_messages(messages)[0]
    ]


def turn(role, content):
    return {"role": role, "content": content}


def test_the_reader_of_files_reads_requests():
    dialogue = [
        turn("system", "Be brief."),
        turn("user", [image_url(data_url(RED)), TEXT]),
        turn("assistant", "Red."),
        turn("user", [TEXT]),
    ]
    messages, pictures = read_messages(dialogue)
    learned = [
        turn("system", [{"type": "text", "text": "Be brief."}]),
        turn("user", [{"type": "image"}, TEXT]),
        turn("assistant", [{"type": "text", "text": "Red."}]),
        turn("user", [TEXT]),
        turn("assistant", "An answer."),
    ]
    assert messages == Sample(learned, [RED]).messages[:-1]
    assert pictures == (RED,)


SPELLINGS = {
    "openai": image_url(data_url(RED)),
    "openai, short": {"type": "image_url", "image_url": data_url(RED)},
    "responses": {"type": "input_image", "image_url": data_url(RED), "detail": "auto"},
    "anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64_of(RED)},
        "cache_control": {"type": "ephemeral"},
    },
    "anthropic, url": {"type": "image", "source": {"type": "url", "url": data_url(RED)}},
    "langchain": {"type": "image", "base64": base64_of(RED), "mime_type": "image/png"},
    "transformers": {"type": "image", "url": data_url(RED)},
    "datasets": {"type": "image", "image": {"bytes": base64_of(RED), "path": None}},
    "capitals": image_url(data_url(RED).replace("data:", "DATA:")),
}


@pytest.mark.parametrize("part", SPELLINGS.values(), ids=SPELLINGS)
def test_a_picture_is_read_in_any_spelling(part):
    messages, pictures = read_messages(user(TEXT, part))
    assert pictures == (RED,)
    assert messages == user(TEXT, {"type": "image"})


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_a_text_is_read_in_any_spelling(kind):
    assert said(user({"type": kind, "text": "A?", "annotations": []})) == [("user", "A?")]


def test_pictures_keep_their_order():
    dialogue = [
        *user(image_url(data_url(RED)), TEXT, image_url(data_url(BLUE))),
        turn("system", "Be brief."),
        *user(image_url(data_url(RED))),
    ]
    messages, pictures = read_messages(dialogue)
    assert pictures == (RED, BLUE, RED)
    assert said(dialogue) == [("system", "Be brief."), ("user", "[]A?[]\n[]")]
    assert sum(part["type"] == "image" for m in messages for part in m["content"]) == 3


def test_system_messages_are_joined_into_the_first_and_neighbours_into_one():
    dialogue = [
        turn("system", "One."),
        turn("user", "a"),
        turn("developer", "Two."),
        turn("user", [{"type": "text", "text": "b"}]),
        turn("assistant", "c"),
        turn("assistant", "d"),
        turn("system", "Three."),
        turn("user", "e"),
    ]
    assert said(dialogue) == [
        ("system", "One.\nTwo.\nThree."),
        ("user", "a\nb"),
        ("assistant", "c\nd"),
        ("user", "e"),
    ]


def test_messages_that_say_nothing_are_left_out():
    missing = {"role": "assistant", "refusal": None, "tool_calls": None}
    dialogue = [
        turn("system", ""),
        turn("user", "a"),
        turn("assistant", None),
        missing,
        turn("user", [{"type": "text", "text": ""}, TEXT]),
    ]
    assert said(dialogue) == [("user", "a\nA?")]


@pytest.mark.parametrize("content", ["<image> and <image>", [{"type": "text", "text": "<image>"}]])
def test_marks_of_a_client_are_text(content):
    messages, pictures = read_messages([turn("user", content)])
    assert pictures == ()
    assert [part["type"] for part in messages[0]["content"]] == ["text"]


def test_what_files_say_of_learning_is_not_looked_at():
    dialogue = [*user(TEXT), turn("assistant", "b") | {"weight": 7, "name": 3}, *user(TEXT)]
    assert read_messages(dialogue)[0][1] == turn("assistant", [{"type": "text", "text": "b"}])


REFUSED = [
    ([1], "message 1 is 1"),
    ([{}], "message 1: the role is missing"),
    ([turn("user", "a"), turn("narrator", "b")], "message 2: the role is 'narrator'"),
    ([turn([], "a")], "message 1: the role is a list"),
    ([turn("tool", "a")], 'message 1: the role "tool" is not read'),
    ([turn("function", "a")], 'the role "function"'),
    ([turn("assistant", "") | {"tool_calls": [{}]}, *user(TEXT)], 'message 1: "tool_calls"'),
    ([turn("user", "a") | {"images": ["/etc/passwd"]}], '"images"'),
    ([turn("user", 5)], "message 1: the content is 5"),
    ([turn("user", {"type": "text"})], "the content is an object"),
    (user("A?"), "a part is 'A\\?'"),
    (user({"text": "A?"}), "a part is missing"),
    (user({"type": ["text"]}), "a part is a list"),
    (user({"type": "input_audio", "input_audio": {}}), "of type 'input_audio'"),
    (user({"type": "video_url"}), "of type 'video_url'"),
    (user({"type": "file", "file": {"file_id": "1"}}), "of type 'file'"),
    (user({"type": "text"}), "the text of a part is missing"),
    (user({"type": "text", "text": None}), "the text of a part is null"),
    (user({"type": "text", "text": "\ud83d"}), "half of a surrogate pair"),
    ([turn("user", "\ud83d")], "half of a surrogate pair"),
    ([*user(TEXT), turn("assistant", "b")], "the last message is from the assistant"),
    ([*user(TEXT), turn("system", "b")], "the last message is from the system"),
    ([*user(TEXT), turn("user", " ")], "the last message says nothing"),
    ([turn("user", None)], "the last message says nothing"),
    ([turn("system", [image_url(data_url(RED))]), *user(TEXT)], "message 1: pictures belong to"),
    ([turn("assistant", [image_url(data_url(RED))]), *user(TEXT)], "message 1: pictures belong"),
    (user(TEXT) * 101, "101 messages; at most 100"),
    (user(*[image_url(data_url(RED))] * 33), "33 pictures; at most 32"),
    (user(image_url("x")) * 33, "33 pictures; at most 32"),
    ([turn("user", "a" * (MOST_LETTERS + 1))], "1,048,577 letters; at most"),
]


@pytest.mark.parametrize(("messages", "words"), REFUSED)
def test_what_is_not_read_is_refused_with_its_place(messages, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_messages(messages)
    text = str(caught.value)
    assert "record" not in text and "learned" not in text and len(text) < 300


def test_as_much_as_may_be_is_read():
    assert len(read_messages(user(TEXT) * 100)[0]) == 1
    assert len(read_messages(user(*[image_url(data_url(RED))] * 32))[1]) == 32
    (message,), _ = read_messages([turn("user", "a" * MOST_LETTERS)])
    assert len(message["content"][0]["text"]) == MOST_LETTERS


# --- no file of ours, and no address ---


@pytest.fixture
def shut(monkeypatch):
    """Nothing may be opened or asked while a request is read."""

    def opened(*given, **more):
        raise AssertionError(f"opened {given}")

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("os.open", opened)
    monkeypatch.setattr("socket.getaddrinfo", opened)
    monkeypatch.setattr("socket.socket", opened)


PLACES = ["file:///etc/passwd", "/etc/passwd", "../a.png", "a.png", "~/a.png", "C:\\a.png", "//h/a"]
PLACES += ["FILE:/etc/passwd", " /etc/passwd", "ftp://h/a.png", "\0", "gopher://h", "blob:null/1"]
PLACES += [" http://127.0.0.1/a.png", "http:/a", "\nhttps://h/a", "javascript:1", "s3://b/a.png"]


@pytest.mark.parametrize("place", PLACES)
def test_no_place_is_opened(shut, place):
    named = [
        image_url(place),
        {"type": "image", "path": place},
        {"type": "image", "image": place},
        {"type": "image", "url": place},
        {"type": "image", "image": {"path": place}},
        {"type": "image", "image": {"bytes": None, "path": {"path": place}}},
        {"type": "image", "source": {"type": "url", "url": place}},
        {"type": "input_image", "image_url": place},
    ]
    for part in named:
        with pytest.raises(ValueError, match="picture 1 is given as .* data: URL"):
            read_messages(user(part))


def test_a_picture_that_lies_here_is_not_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(RED)
    for place in (str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri()):
        with pytest.raises(ValueError, match="picture 1 is given as"):
            read_messages(user(image_url(place)), ["h.example"])


ADDRESSES = ["http://127.0.0.1/a", "https://h.example/a", "HTTPS://H.example/a", "http://[::1]/a"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_refused_unless_a_host_is_named(shut, address):
    source = {"type": "image", "source": {"type": "url", "url": address}}
    for part in (image_url(address), {"type": "image", "url": address}, source):
        with pytest.raises(ValueError, match="message 1: pictures are not fetched. Send .* data:"):
            read_messages(user(TEXT, part))
        with pytest.raises(ValueError, match="not fetched from|no address that pictures"):
            read_messages(user(TEXT, part), ["other.example"])


@pytest.fixture
def web(monkeypatch):
    """What a host gives, without a network."""
    asked = []

    def fetched(url, hosts):
        picture_urls.parse_address(url, hosts)
        asked.append(url)
        return b"<html>" if url.endswith("page") else BLUE

    monkeypatch.setattr(request_messages, "fetch_picture", fetched)
    return asked


def test_pictures_of_named_hosts_are_fetched_in_their_places(web):
    parts = [image_url("https://h.example/a"), image_url(data_url(RED))]
    assert read_messages(user(*parts), ["h.example"])[1] == (BLUE, RED)
    assert web == ["https://h.example/a"]


def test_nothing_is_fetched_for_a_request_that_is_refused(web):
    dialogue = [*user(image_url("https://h.example/a")), turn("assistant", "b")]
    with pytest.raises(ValueError, match="the last message"):
        read_messages(dialogue, ["h.example"])
    assert web == []


def test_what_is_fetched_is_looked_at_too(web, monkeypatch):
    with pytest.raises(ValueError, match="picture 1 is not a picture of a known kind"):
        read_messages(user(image_url("https://h.example/page")), ["h.example"])
    monkeypatch.setattr(request_messages, "MOST_BYTES", len(BLUE))
    with pytest.raises(ValueError, match="the pictures have more than"):
        read_messages(user(*[image_url("https://h.example/a")] * 2), ["h.example"])
    assert len(web) == 3


# --- damage ---


def too_many_pixels() -> bytes:
    """A PNG of 20000 x 20000 by its header."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    written = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_pictures_have_a_bound_of_pixels_together():
    """Of one colour, 80 million pixels are a file that fits a body fifty times."""
    large = picture(size=(9_000, 9_000))
    assert len(large) < 400_000
    with pytest.raises(ValueError, match="the pictures have more than .* pixels together"):
        read_messages(user(*[image_url(data_url(large))] * 6))


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def pcx() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PCX")
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "not a picture of a known kind"),
        (b"no picture", "not a picture of a known kind"),
        (RED[:-30], "damaged"),
        (picture("JPEG", size=(200, 200))[:-200], "damaged"),
        (too_many_pixels(), "too large"),
        (svg(), "not a picture of a known kind"),
        (pcx(), "not a picture of a known kind"),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "pixels", "SVG", "PCX"],
)
def test_a_damaged_picture_is_refused_by_its_number(file, words):
    with pytest.raises(ValueError, match=f"picture 2 .*{words}") as caught:
        read_messages(user(image_url(data_url(BLUE)), TEXT, image_url(data_url(file))))
    assert "record" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image"}, "picture 1 is not in its part"),
        ({"type": "image_url", "image_url": {}}, "missing"),
        ({"type": "image_url", "image_url": {"url": None}}, "null"),
        ({"type": "image_url", "image_url": 5}, "5"),
        ({"type": "image_url", "image_url": ""}, "''"),
        (image_url("data:image/png,abc"), "without base64"),
        (image_url("data:image/png;base64,a*b"), "not base64"),
        (image_url("data:;base64"), "without base64"),
        ({"type": "image", "source": {"type": "file", "file_id": "1"}}, "'file'"),
        ({"type": "input_image", "file_id": "f"}, "file_id"),
        (image_url(data_url(RED)) | {"url": "https://h.example/a"}, "names 2 pictures"),
    ],
)
def test_a_part_without_its_picture_is_refused(part, words):
    with pytest.raises(ValueError, match=words):
        read_messages(user(TEXT, part), ["h.example"])
