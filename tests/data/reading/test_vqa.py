import pytest

from tests.data.reading.released import (
    BLIP_VQA,
    VIZWIZ,
    VQA_ANNOTATIONS,
    VQA_QUESTIONS,
    answers,
    kind_of_document,
    read_documents,
    read_records,
    sample,
)
from tuninglab.data.reading.found import Reading
from tuninglab.errors import UserError

COLOURS = ("pink", "red", "red", "", "rose", "pink", "", "", "", "a")


def test_questions_and_annotations_are_joined_by_their_ids():
    # Annotations in another order; of two equally frequent answers the first, none that is blank.
    expected = [
        sample(
            ["COCO_train2014_000000458752.jpg"],
            "What colour is it?",
            "pink",
            "set.json, question 1",
            kind="what colour is",
            id=458752000,
            answers=COLOURS,
        ),
        sample(
            ["COCO_train2014_000000000009.jpg"],
            "Is it food?",
            "yes",
            "set.json, question 2",
            kind="is it",
            id=9001,
            answers=(*["yes"] * 9, "no"),
        ),
    ]
    assert read_documents(VQA_QUESTIONS, VQA_ANNOTATIONS) == (expected, [])
    assert read_documents(VQA_ANNOTATIONS, VQA_QUESTIONS) == (expected, [])
    assert read_documents(VQA_QUESTIONS | VQA_ANNOTATIONS) == (expected, [])


def questions(split=None, **item):
    row = {"question_id": 1, "question": "What?", "image_id": 5} | item
    return {"questions": [row]} | ({} if split is None else {"data_subtype": split})


def annotations(**item):
    return {"annotations": [{"question_id": 1, "answers": answers("x")} | item]}


@pytest.mark.parametrize(
    ("split", "file", "image_id", "name"),
    [
        ("val2014", "a.json+b.json", 5, "COCO_val2014_000000000005.jpg"),
        ("test-dev2015", "a.json", 262144, "COCO_test2015_000000262144.jpg"),
        # The document is believed more than its name, the name more than its folder.
        ("val2014", "q_train2014.json", 5, "COCO_val2014_000000000005.jpg"),
        (None, "val2014/v2_train2014_q.json+v2_train2014_a.json", 5, "COCO_train2014_000000000005"),
        ("val", "a.json", "VizWiz_val_00000028.jpg", "VizWiz_val_00000028.jpg"),
        (None, "a.json", "0054c91397f2fe05", "0054c91397f2fe05.jpg"),
    ],
)
def test_names_of_pictures_follow_the_set(split, file, image_id, name):
    parts = questions(split, image_id=image_id), annotations()
    ((found,), problems) = read_documents(*parts, file=file)
    assert problems == [] and found.images[0].removesuffix(".jpg") == name.removesuffix(".jpg")


@pytest.mark.parametrize(
    ("place", "image_id"),
    [
        ("train2014/COCO_train2014_000000000005.jpg", 5),
        ("train2014/VizWiz_1.png", "VizWiz_1.png"),
        ("train_images/abc.jpg", "abc"),
    ],
)
def test_pictures_may_lie_in_the_folder_of_their_split(tmp_path, place, image_id):
    (tmp_path / place).parent.mkdir()
    (tmp_path / place).touch()
    parts = questions("train2014", image_id=image_id), annotations()
    ((found,), _) = read_documents(*parts, reading=Reading(root=tmp_path))
    assert found.images == [place]


def test_vizwiz_answers_need_no_ids_and_types_may_be_answer_types():
    parts = (
        questions("val", image_id="VizWiz_val_00000028.jpg"),
        annotations(answers=answers("basil", "unanswerable", "basil", ids=False), answer_type="x"),
    )
    ((found,), problems) = read_documents(*parts)
    assert problems == []
    assert found.answers == ("basil", "unanswerable", "basil") and found.kind == "x"
    assert found.messages[1]["content"] == [{"type": "text", "text": "basil"}]


def test_the_answer_of_multiple_choice_stands_in_for_all_answers():
    ((found,), _) = read_documents(
        questions("val2014"), annotations(answers=None, multiple_choice_answer="net")
    )
    assert found.answers == ("net",)


def test_one_file_alone_says_what_is_missing():
    together = "give both together: --data questions.json\\+annotations.json"
    with pytest.raises(UserError, match=f"^q.json holds questions without .*{together}"):
        read_documents(VQA_QUESTIONS, file="q.json")
    with pytest.raises(UserError, match=f"^a.json holds annotations without .*{together}"):
        read_documents(VQA_ANNOTATIONS, file="a.json")


def test_files_that_do_not_belong_together_are_refused_with_counts():
    fewer = VQA_ANNOTATIONS | {"annotations": VQA_ANNOTATIONS["annotations"][:1]}
    with pytest.raises(UserError, match=r"1 questions have no annotation.*question_id '458752000'"):
        read_documents(VQA_QUESTIONS, fewer)
    fewer = VQA_QUESTIONS | {"questions": VQA_QUESTIONS["questions"][:1]}
    with pytest.raises(UserError, match=r"1 annotations have no question.*question_id '9001'"):
        read_documents(fewer, VQA_ANNOTATIONS)
    with pytest.raises(UserError, match=r"set.json, questions: 2 have the question_id of an earl"):
        read_documents(VQA_QUESTIONS, VQA_QUESTIONS, VQA_ANNOTATIONS)
    with pytest.raises(UserError, match=r"annotation 3: the question_id is missing; expected"):
        rows = [*VQA_ANNOTATIONS["annotations"], {"answers": []}]
        read_documents(VQA_QUESTIONS, VQA_ANNOTATIONS | {"annotations": rows})
    with pytest.raises(UserError, match='"annotations" is an object of 1; expected a list'):
        read_documents(VQA_QUESTIONS | {"annotations": {"9001": "yes"}})


@pytest.mark.parametrize(
    ("question", "annotation", "problem"),
    [
        ({"question": None}, {}, "the question is missing; expected a text"),
        ({"question": "  "}, {}, "the question is empty; write one or drop the record"),
        ({"image_id": True}, {}, "the image_id is True; expected a whole number"),
        ({"image_id": -1}, {}, "the image_id is -1; expected a whole number"),
        ({"image_id": 2**64}, {}, "the image_id is a huge number; expected a whole number"),
        ({}, {"image_id": 6}, "its picture is '5', that of its annotation 6"),
        ({}, {"answers": []}, "there is no answer; questions of a test split have none"),
        ({}, {"answers": [{"answer": [3]}]}, "an answer is a list of 1; expected a text"),
        ({}, {"answers": answers("", " ")}, "the answer is empty; write one"),
        ({}, {"question_type": [8]}, '"kind" is a list of 1'),
    ],
)
def test_a_broken_question_is_named(question, annotation, problem):
    samples, (line,) = read_documents(questions("val2014", **question), annotations(**annotation))
    assert samples == [] and line.startswith(f"set.json, question 1: {problem}")


def test_pictures_of_coco_have_no_name_without_a_split():
    for split in (None, "val"):
        _, (line,) = read_documents(questions(split), annotations())
        assert "image_id 5" in line and "says train2014, val2014 or test2015" in line


def test_other_documents_are_not_taken_for_questions():
    for other in (
        {},
        {"questions": []},
        {"questions": {"a": 1}},
        [],
        None,
        "x",
        {"annotations": 1},
    ):
        assert kind_of_document([other]) is None
        assert kind_of_document([VQA_QUESTIONS, other]) is None
    assert kind_of_document([]) is None


def test_flat_lists_hold_all_answers_in_the_record():
    samples, problems = read_records(BLIP_VQA, VIZWIZ, VIZWIZ | {"answer": "basil leaves"})
    all_of_vizwiz = ("basil leaves", "basil", "basil")
    question = "What's the name of this product?"
    assert samples == [
        sample(
            ["val2014/COCO_val2014_000000262148.jpg"],
            "Where is he looking?",
            "down",
            "set.json, record 1",
            id=262148000,
            answers=("down", "up", "down", "skateboard"),
        ),
        sample(
            ["VizWiz_train_00000000.jpg"],
            question,
            "basil",
            "set.json, record 2",
            kind="other",
            answers=all_of_vizwiz,
        ),
        # The set's own choice among the answers.
        sample(
            ["VizWiz_train_00000000.jpg"],
            question,
            "basil leaves",
            "set.json, record 3",
            kind="other",
            answers=all_of_vizwiz,
        ),
    ]
    assert problems == []


def test_what_is_said_before_a_question_is_kept():
    ((found,), _) = read_records(BLIP_VQA | {"system": "Be brief.", "history": [["a", "b"]]})
    assert [message["role"] for message in found.messages] == ["system", *["user", "assistant"] * 2]
    assert found.images == [BLIP_VQA["image"]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer": None}, '"answer" is empty; write one or drop the record'),
        ({"question_id": [1]}, '"question_id" is a list of 1'),
        ({"image": {"url": "x"}}, "a picture is named by an object of 1; expected a path"),
        ({"images": ["a.jpg"]}, 'the record has both "image" and "images"'),
        ({"rejected_answer": "up"}, 'the record has "rejected_answer", but learning from'),
        ({"question": "<image> Where? <image>"}, "2 <image> marks in the messages but 1 images"),
    ],
)
def test_a_broken_row_is_named(change, problem):
    samples, (line,) = read_records(BLIP_VQA | change)
    assert samples == [] and line.startswith(f"set.json, record 1: {problem}")
