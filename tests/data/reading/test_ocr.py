import pytest

from tests.data.reading.released import (
    CHARTQA,
    DOCVQA,
    OCRVQA,
    TEXTVQA,
    read_documents,
    read_records,
    sample,
)
from tuninglab.data.reading.found import Reading


def test_textvqa_in_its_own_form():
    assert read_documents(TEXTVQA) == (
        [
            sample(
                ["0054c91397f2fe05.jpg"],
                "What is the brand of this camera?",
                "dakota digital",
                "set.json, question 1",
                id=0,
                answers=("nous les gosses", "dakota", *["dakota digital"] * 8),
            )
        ],
        [],
    )


def test_docvqa_learns_the_first_of_equally_frequent_answers():
    assert read_documents(DOCVQA) == (
        [
            sample(
                ["documents/pybv0228_81.png"],
                "What is the name?",
                "University of California",
                "set.json, question 1",
                kind="handwritten",
                id=49153,
                answers=("University of California", "UCSF"),
            )
        ],
        [],
    )


def test_each_question_about_a_book_is_a_sample():
    reading = Reading()
    samples, problems = read_documents(OCRVQA, reading=reading)
    name, at = ["0816022399.jpg"], "set.json, entry '0816022399'"
    title, fiction = OCRVQA["0816022399"]["questions"]
    assert samples == [
        sample(name, title, "Leaving Home", at, id="0816022399-1", answers=("Leaving Home",)),
        sample(name, fiction, "No", at, id="0816022399-2", answers=("No",)),
    ]
    assert problems == []
    left_out = "of other splits than train, left out (PATH:SPLIT reads them)"
    assert reading.notes == {left_out: 1}
    samples, _ = read_documents(OCRVQA, reading=Reading(split="test"))
    assert [one.id for one in samples] == ["761183272-1"]


def test_chartqa():
    samples, problems = read_records(CHARTQA, CHARTQA | {"label": ["14", "15"]})
    image, question = ["41699051005347.png"], "How many food items are shown?"
    assert samples == [
        sample(image, question, "14", "set.json, record 1", answers=("14",)),
        sample(image, question, "14", "set.json, record 2", answers=("14", "15")),
    ]
    assert problems == []
    table = {"query": "Q?", "label": ["1"], "image": {"bytes": b"PNG"}, "human_or_machine": 0}
    ((found,), _) = read_records(table)
    assert found.images == [b"PNG"]


@pytest.mark.parametrize(
    ("read", "given", "place"),
    [
        (read_documents, TEXTVQA, "train_images/0054c91397f2fe05.jpg"),
        (read_documents, TEXTVQA, "test_images/0054c91397f2fe05.jpg"),
        (read_documents, DOCVQA, "pybv0228_81.png"),
        (read_documents, OCRVQA, "0816022399.gif"),
        (read_documents, OCRVQA, "images/0816022399.gif"),
        (read_documents, OCRVQA, "images/0816022399.jpg"),
        (read_records, CHARTQA, "png/41699051005347.png"),
    ],
)
def test_pictures_may_lie_where_the_release_puts_them(tmp_path, read, given, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    samples, _ = read(given, reading=Reading(root=tmp_path))
    assert samples[0].images == [place]


@pytest.mark.parametrize(
    ("document", "change", "problem"),
    [
        (TEXTVQA, {"image_id": 1.5}, "the image_id is 1.5; expected a whole number"),
        (TEXTVQA, {"answers": None}, "there is no answer; questions of a test split have none"),
        (TEXTVQA, {"question": 4}, "the question is 4; expected a text"),
        (TEXTVQA, {"question_id": [1]}, '"question_id" is a list of 1'),
        (DOCVQA, {"image": None}, "the image is missing; expected a text"),
        (DOCVQA, {"answers": [[]]}, "an answer is a list of 0; expected a text"),
        (DOCVQA, {"question_types": [{}]}, '"kind" is an object of 0'),
    ],
)
def test_a_broken_question_is_named(document, change, problem):
    (item,) = document["data"]
    samples, (line,) = read_documents(document | {"data": [item, item | change]})
    assert len(samples) == 1 and line.startswith(f"set.json, question 2: {problem}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answers": ["Leaving Home"]}, "2 questions but 1 answers"),
        ({"answers": ["Leaving Home", 4]}, 'number 2 of "answers" is 4, not a text'),
        ({"imageURL": None}, "the imageURL is missing; expected a text"),
        ({"split": 4}, "the split is 4; expected 1, 2 or 3"),
        ({"split": "1"}, "the split is '1'; expected 1, 2 or 3"),
    ],
)
def test_a_broken_book_is_named(change, problem):
    number = "0816022399"
    samples, problems = read_documents({number: OCRVQA[number] | change, "1": OCRVQA[number]})
    assert len(samples) == 2 and problems == [f"set.json, entry '{number}': {problem}"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"imgname": None}, "the question is about no picture"),
        ({"label": {}}, "an answer is an object of 0; expected a text"),
        ({"label": []}, "there is no answer"),
        ({"query": ""}, "the query is empty"),
    ],
)
def test_a_broken_chart_is_named(change, problem):
    samples, (line,) = read_records(CHARTQA | change)
    assert samples == [] and line.startswith(f"set.json, record 1: {problem}")
