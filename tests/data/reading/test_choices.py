import pytest

from tests.data.reading.released import (
    AI2D,
    AI2D_ROW,
    AOKVQA,
    SCIENCEQA,
    read_documents,
    read_records,
    sample,
)
from tuninglab.data.reading.choices import AI2D_ROWS, AOKVQA_DIRECT
from tuninglab.data.reading.found import Reading
from tuninglab.errors import UserError

BAGS = "What is the man by the bags awaiting?"


def test_aokvqa_asks_with_letters_and_accepts_letter_and_text():
    samples, problems = read_records(AOKVQA)
    assert samples == [
        sample(
            ["train2017/000000299207.jpg"],
            f"{BAGS}\nA. skateboarder\nB. train\nC. delivery\nD. cab",
            "D",
            "set.json, record 1",
            id="22MexNkBPpdZGX6sxbxVBH",
            answers=("D", "cab"),
            options=("skateboarder", "train", "delivery", "cab"),
        )
    ]
    assert problems == []


def test_direct_answers_of_aokvqa_are_read_by_name_without_the_difficult_ones():
    reading = Reading()
    difficult = AOKVQA | {"difficult_direct_answer": True}
    samples, problems = read_records(AOKVQA, difficult, reading=reading, format=AOKVQA_DIRECT)
    assert samples == [
        sample(
            ["train2017/000000299207.jpg"],
            BAGS,
            "ride",  # two of "ride", two of "taxi": the first
            "set.json, record 1",
            id="22MexNkBPpdZGX6sxbxVBH",
            answers=tuple(AOKVQA["direct_answers"]),
        )
    ]
    assert problems == []
    assert reading.notes == {"A-OKVQA questions without a usual direct answer, left out": 1}


def test_the_test_split_of_aokvqa_has_no_answers():
    kept = ("split", "image_id", "question_id", "question", "choices")
    hidden = {key: AOKVQA[key] for key in kept} | {"split": "test"}
    for format in (None, AOKVQA_DIRECT):
        samples, (line,) = read_records(hidden, format=format)
        assert samples == []
        assert line.startswith("set.json, record 1: there is no answer; questions of a test split")


def test_pictures_of_aokvqa_lie_in_a_folder_or_in_the_record(tmp_path):
    (tmp_path / "000000299207.jpg").touch()
    ((found,), _) = read_records(AOKVQA, reading=Reading(root=tmp_path))
    assert found.images == ["000000299207.jpg"]
    ((found,), _) = read_records(AOKVQA | {"image": {"bytes": b"GIF8", "path": "a.gif"}})
    assert found.images == [b"GIF8"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"correct_choice_idx": 4}, "the answer is option 4, counted from 0, of 4"),
        ({"correct_choice_idx": -1}, "correct_choice_idx is -1; expected a whole number"),
        ({"correct_choice_idx": True}, "correct_choice_idx is True; expected a whole number"),
        ({"correct_choice_idx": "3"}, "correct_choice_idx is '3'; expected a whole number"),
        ({"choices": "train"}, "\"choices\" is 'train'; expected a list of texts"),
        ({"choices": ["a", "b", None, "d"]}, 'number 3 of "choices" is null, not a text'),
        ({"choices": ["a"] * 27}, "the question has 27 options; at most 26 have letters"),
        ({"choices": ["a", "b", "c", " "]}, "the text of the right option is empty"),
        ({"image_id": "299207"}, "the image_id is '299207'; expected a whole number"),
        ({"question": None}, "the question is missing; expected a text"),
        ({"tools": [{}]}, 'the record has "tools", but calls of tools cannot be learned'),
    ],
)
def test_a_broken_record_of_aokvqa_is_named(change, problem):
    samples, (line,) = read_records(AOKVQA | change)
    assert samples == [] and line.startswith(f"set.json, record 1: {problem}")


STATES = "Which of these states is farthest north?\nA. West Virginia\nB. Louisiana"
COUNTS = "Context: It counts to three.\nWhat does the text say?\nA. one\nB. two\nC. three"


def test_scienceqa_has_problems_with_and_without_a_picture():
    reading = Reading()
    samples, problems = read_documents(SCIENCEQA, reading=reading)
    assert samples == [
        sample(
            ["train/1/image.png"],
            STATES,
            "A",
            "set.json, problem '1'",
            kind="social science",
            id="1",
            options=("West Virginia", "Louisiana"),
            answers=("A", "West Virginia"),
        ),
        sample(
            [],
            COUNTS,
            "C",
            "set.json, problem '2'",
            kind="language science",
            id="2",
            options=("one", "two", "three"),
            answers=("C", "three"),
        ),
    ]
    assert problems == []
    left_out = "of other splits than train, left out (PATH:SPLIT reads them)"
    assert reading.notes == {left_out: 1}


def test_rows_of_scienceqa_from_a_table_bring_their_pictures():
    row = {key: value for key, value in SCIENCEQA["1"].items() if key != "split"}
    ((found,), problems) = read_records(row | {"image": {"bytes": b"PNG", "path": None}})
    expected = sample([b"PNG"], STATES, "A", "set.json, record 1", kind="social science")
    expected.answers = ("A", "West Virginia")
    expected.options = ("West Virginia", "Louisiana")
    assert found == expected and problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer": 2}, "the answer is option 2, counted from 0, of 2"),
        ({"answer": None}, "there is no answer; questions of a test split have none"),
        ({"hint": 3}, "the hint is 3; expected a text"),
        ({"image": {}}, "the image is an object of 0; expected a text"),
        ({"split": None}, "the split is missing; expected a text"),
    ],
)
def test_a_broken_problem_of_scienceqa_is_named(change, problem):
    samples, (line,) = read_documents(SCIENCEQA | {"1": SCIENCEQA["1"] | change})
    assert len(samples) == 1 and line.startswith(f"set.json, problem '1': {problem}")


def test_what_is_no_problem_is_named_and_a_split_that_is_not_there_refused():
    _, problems = read_documents(SCIENCEQA | {"2": None})
    assert problems == ["set.json, problem '2': the record is null; expected an object"]
    with pytest.raises(UserError, match="no split 'val'; it has 'train', 'test'"):
        read_documents(SCIENCEQA, reading=Reading(split="val"))


def test_the_questions_of_ai2d_are_joined_over_files():
    other = {
        "imageName": "4.png",
        "questions": {"Is it?": {"answerTexts": ["no", "yes"], "correctAnswer": 0}},
    }
    assert read_documents(AI2D, other) == (
        [
            sample(
                ["3.png"],
                "Which label is the root?\nA. A\nB. D\nC. C\nD. B",
                "B",
                "set.json, question 'Which label is the root?'",
                id="3.png-0",
                answers=("B", "D"),
                options=("A", "D", "C", "B"),
            ),
            sample(
                ["4.png"],
                "Is it?\nA. no\nB. yes",
                "A",
                "set.json, question 'Is it?'",
                answers=("A", "no"),
                options=("no", "yes"),
            ),
        ],
        [],
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answerTexts": None}, '"choices" is missing; expected a list of texts'),
        ({"correctAnswer": 9}, "the answer is option 9, counted from 0, of 4"),
    ],
)
def test_a_broken_question_of_ai2d_is_named(change, problem):
    ((text, question),) = AI2D["questions"].items()
    broken = AI2D | {"questions": {text: question | change, "b": 7}}
    samples, (first, second) = read_documents(broken)
    assert samples == []
    assert first == f"set.json, question {text!r}: {problem}"
    assert second == "set.json, question 'b': the record is 7; expected an object"


def row(answer, options=("red", "A", "blue")):
    return {"question": "Which?", "options": list(options), "answer": answer}


@pytest.mark.parametrize(
    ("answer", "letter"), [(2, "C"), ("2", "C"), ("C", "C"), ("blue", "C"), ("red", "A")]
)
def test_an_answer_is_a_number_a_letter_or_a_text(answer, letter):
    ((found,), problems) = read_records(row(answer))
    assert problems == [] and found.answers[0] == letter
    assert found.messages[1]["content"] == [{"type": "text", "text": letter}]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (row("A"), "the answer 'A' fits several options"),
        (row("green"), "the answer 'green' is no option"),
        (row("3"), "the answer '3' is no option"),
        (row(""), "the answer '' is no option"),
        (row("x", ["x", "x"]), "the answer 'x' fits several options"),
        (row(1.0), "the answer is 1.0; expected a whole number"),
    ],
)
def test_an_answer_that_may_be_two_options_is_refused(wrong, what):
    samples, (line,) = read_records(wrong)
    assert samples == [] and line.startswith(f"set.json, record 1: {what}")


def test_numbers_as_text_are_read_by_name():
    question = "How many legs?\nA. 2\nB. 4\nC. 1\nD. 3"
    samples, problems = read_records(AI2D_ROW, format=AI2D_ROWS)
    expected = sample([b"\x89PNG..."], question, "C", "set.json, record 1", answers=("C", "1"))
    expected.options = ("2", "4", "1", "3")
    assert samples == [expected] and problems == []
    _, (line,) = read_records(AI2D_ROW)
    assert "the answer '2' fits several options" in line and "--format ai2d_rows" in line
