import pytest

from tests.data.reading.released import (
    CLEVR,
    GQA,
    NLVR2,
    NLVR2_BLIP,
    SNLI_VE,
    read_documents,
    read_records,
    sample,
)
from tuninglab.data.reading.found import Reading

DOGS = [f"train-10171-0-img{number}.png" for number in (0, 1)]


def test_gqa_learns_the_short_answer():
    assert read_documents(GQA) == (
        [
            sample(
                ["2354786.jpg"],
                "Is the sky dark?",
                "yes",
                "set.json, question '02930152'",
                kind="verify",
                id="02930152",
                answers=("yes",),
            )
        ],
        [],
    )


def test_clevr_has_its_pictures_in_folders_and_kinds_by_the_last_step():
    assert read_documents(CLEVR) == (
        [
            sample(
                ["images/train/CLEVR_train_000000.png"],
                "Are there more big green things than cubes?",
                "yes",
                "set.json, question 1",
                kind="greater_than",
                id=0,
                answers=("yes",),
            )
        ],
        [],
    )


def test_nlvr2_shows_two_pictures_and_keeps_the_directory():
    samples, problems = read_records(NLVR2, NLVR2_BLIP, NLVR2_BLIP | {"label": False})
    jar, at = NLVR2_BLIP["images"], "set.json, record"
    assert samples == [
        sample(
            DOGS,
            "There are two dogs.",
            "False",
            f"{at} 1",
            kind="37",
            id="train-10171-0-0",
            answers=("False",),
        ),
        sample(jar, "One jar is open.", "True", f"{at} 2", answers=("True",)),
        sample(jar, "One jar is open.", "False", f"{at} 3", answers=("False",)),
    ]
    assert problems == []
    assert [part["type"] for part in samples[0].messages[0]["content"]] == ["image"] * 2 + ["text"]


def test_snli_ve_leaves_out_what_nobody_agreed_on():
    reading = Reading()
    samples, problems = read_records(SNLI_VE, SNLI_VE | {"gold_label": "-"}, reading=reading)
    assert samples == [
        sample(
            ["4705552913.jpg"],
            "The men are fighting outside a deli.",
            "contradiction",
            "set.json, record 1",
            id="4705552913.jpg#2r1c",
            answers=("contradiction",),
        )
    ]
    assert problems == []
    assert reading.notes == {'SNLI-VE sentences that nobody agreed on (label "-"), left out': 1}


@pytest.mark.parametrize(
    ("read", "given", "places"),
    [
        (read_documents, GQA, ["images/2354786.jpg"]),
        (read_documents, CLEVR, ["train/CLEVR_train_000000.png"]),
        (read_documents, CLEVR, ["CLEVR_train_000000.png"]),
        (read_records, NLVR2, DOGS),
        (read_records, NLVR2, [f"train/{name}" for name in DOGS]),
        (read_records, NLVR2, [f"images/train/37/{name}" for name in DOGS]),
        (read_records, SNLI_VE, ["flickr30k_images/4705552913.jpg"]),
    ],
)
def test_pictures_may_lie_where_the_release_puts_them(tmp_path, read, given, places):
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / place).touch()
    ((found,), _) = read(given, reading=Reading(root=tmp_path))
    assert found.images == places


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"imageId": None}, "the imageId is missing; expected a whole number"),
        ({"answer": None}, "there is no answer; questions of a test split have none"),
        ({"question": []}, "the question is a list of 0; expected a text"),
        ({"types": {"structural": {}}}, '"kind" is an object'),
    ],
)
def test_a_broken_question_of_gqa_is_named(change, problem):
    (item,) = GQA.values()
    samples, (line,) = read_documents({"1": item, "2": item | change, **GQA})
    assert len(samples) == 2 and line.startswith(f"set.json, question '2': {problem}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"split": None}, "the split is missing; expected a text"),
        ({"image_filename": 7}, "the image_filename is 7; expected a text"),
        ({"answer": True}, "an answer is True; expected a text"),
    ],
)
def test_a_broken_question_of_clevr_is_named(change, problem):
    (item,) = CLEVR["questions"]
    samples, (line,) = read_documents({"questions": [item, item | change, item]})
    assert len(samples) == 2 and line == f"set.json, question 2: {problem}"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (NLVR2 | {"label": 1}, 'the label is 1; expected "True" or "False"'),
        (NLVR2 | {"label": ["True"]}, 'the label is a list of 1; expected "True" or "False"'),
        (NLVR2 | {"identifier": "train"}, "the identifier is 'train'; expected split-set-pair-num"),
        (NLVR2 | {"identifier": 5}, "the identifier is 5; expected a text"),
        (NLVR2 | {"directory": {}}, "the directory is an object of 0; expected a whole number"),
        (NLVR2_BLIP | {"images": ["a.png"]}, "the record has 1 pictures; a statement is about two"),
        (NLVR2_BLIP | {"images": ["a.png", 4]}, "a picture is named by 4; expected a path"),
        (NLVR2_BLIP | {"sentence": " "}, "the sentence is empty"),
        (SNLI_VE | {"gold_label": "maybe"}, "the gold_label is 'maybe'; expected one of entail"),
        (SNLI_VE | {"gold_label": None}, "the gold_label is null; expected one of entailment"),
        (SNLI_VE | {"Flickr30K_ID": 2.5}, "the Flickr30K_ID is 2.5; expected a whole number"),
        (SNLI_VE | {"sentence2": 3}, "the sentence2 is 3; expected a text"),
        (SNLI_VE | {"audio": "a.wav"}, 'the record has "audio", but sound cannot be read'),
    ],
)
def test_a_broken_record_is_named(record, problem):
    samples, (line,) = read_records(record)
    assert samples == [] and line.startswith(f"set.json, record 1: {problem}")
