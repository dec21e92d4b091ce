import pytest

from tests.data.reading.released import MEME, read_records, sample
from tuninglab.data.reading.found import Reading

ASKED = "is an image with: 'its their character' written on it. Is it hateful?"


def expected(answer, origin, image="img/42953.png"):
    known = {"id": "42953", "answers": (answer,), "options": ("yes", "no")}
    return sample([image], ASKED, answer, f"set.json, record {origin}", **known)


def test_memes_ask_what_openflamingo_asks():
    samples, problems = read_records(MEME, MEME | {"label": 1}, MEME | {"label": True})
    assert samples == [expected("no", 1), expected("yes", 2), expected("yes", 3)]
    assert problems == []


@pytest.mark.parametrize("place", ["img/42953.png", "42953.png"])
def test_pictures_lie_in_img_or_beside_the_file(place, tmp_path):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    for name in ("img/42953.png", "data/img/42953.png", "42953.png"):
        ((found,), _) = read_records(MEME | {"img": name}, reading=Reading(root=tmp_path))
        assert found.images == [place]


def test_rows_of_a_table_bring_their_picture():
    ((found,), problems) = read_records(MEME | {"img": {"bytes": b"PNG", "path": "a.png"}})
    assert (found, problems) == (expected("no", 1, b"PNG"), [])


def test_memes_of_the_test_split_have_no_labels():
    hidden = {key: value for key, value in MEME.items() if key != "label"}
    for record in (hidden, hidden | {"label": None}):
        samples, (line,) = read_records(record)
        assert samples == []
        assert line.startswith("set.json, record 1: there is no label; memes of a test split")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": 2}, "the label is 2; expected 1 (hateful) or 0"),
        ({"label": "hateful"}, "the label is 'hateful'; expected 1 (hateful) or 0"),
        ({"label": 0.5}, "the label is 0.5; expected 1 (hateful) or 0"),
        ({"img": None}, "the record has 0 pictures; a meme is one (img)"),
        ({"img": ["a.png", "b.png"]}, "the record has 2 pictures; a meme is one (img)"),
        ({"text": ""}, "the text is empty"),
        ({"text": 3}, "the text is 3; expected a text"),
        ({"video": "a.mp4"}, 'the record has "video", but videos cannot be read'),
    ],
)
def test_a_broken_meme_is_named(change, problem):
    samples, (line,) = read_records(MEME | change)
    assert samples == [] and line.startswith(f"set.json, record 1: {problem}")
