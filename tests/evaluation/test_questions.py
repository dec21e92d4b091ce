"""What a data set asks, by the names that it gives."""

import json

import pytest
from PIL import Image

from tuninglab.config.data import DataPart
from tuninglab.data.reading.opening import Wishes
from tuninglab.data.sample import Sample
from tuninglab.errors import DataError, UserError
from tuninglab.evaluation.asked_data import check_ids, drawn, read_questions
from tuninglab.evaluation.questions import asked_once, question_of


def sample(question: str = "What?", answer: str = "red", **known) -> Sample:
    turns = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return Sample(turns, [], **known)


def written(folder, *records, name="set.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return DataPart(str(path))


def ids(*parts, limit=None, **wishes):
    return [q.id for q in read_questions(parts, Wishes(**wishes), limit).questions]


def test_the_last_turn_is_asked_and_its_answer_is_right_where_no_others_are_named():
    turns = ["One?", "1", "Two?", " 2 "]
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    question = question_of(Sample(messages, []), 7)
    assert (question.id, question.text, question.answers) == (7, "Two?", ("2",))
    several = question_of(sample(answers=["red", "rose"], id="a"), 7)
    assert (several.id, several.answers) == ("a", ("red", "rose"))


@pytest.mark.parametrize(
    ("options", "answers", "lettered"),
    [
        (["cat", "dog"], ["B", "dog"], True),
        # A letter may be what an option says: AI2D's labels.
        (["A", "D", "C", "B"], ["B", "D"], True),
        (["yes", "no"], [], False),
        (["A", "B"], ["A"], False),
        ([], ["B", "dog"], False),
    ],
)
def test_options_have_letters_where_letter_and_text_are_right(options, answers, lettered):
    asked = question_of(sample(answer="B", options=options, answers=answers), 1)
    assert asked.lettered is lettered


def test_captions_of_a_picture_are_one_question_wherever_they_stand():
    def caption(text, number, **known):
        shown = [{"role": "user", "content": [{"type": "image"}]}]
        said = [{"role": "assistant", "content": text}]
        return Sample([*shown, *said], [f"{number}.png"], answers=("a", "b"), **known)

    samples = [caption("a", 1), caption("a", 2), caption("b", 1), caption("b", 2)]
    asked = asked_once(question_of(one, k) for k, one in enumerate(samples))
    assert [(q.id, q.answers) for q in asked] == [(0, ("a", "b")), (1, ("a", "b"))]
    # Two records that ask the same are two questions if the data has two names for them.
    apart = [caption("a", 1, id="x"), caption("a", 1, id="y")]
    assert len(asked_once(question_of(one, 0) for one in apart)) == 2
    # Or if there is one answer each: nothing says that they are one.
    twice = [question_of(sample(), 1), question_of(sample(), 2)]
    assert len(asked_once(twice)) == 2


def test_ids_are_the_datas_own_or_numbers_of_records(tmp_path):
    first = {"question": "Red?", "answer": "yes", "id": 17}
    other = {"question": "Blue?", "answer": "no"}
    part = written(tmp_path, first, other, {"question": "Green?", "answer": "no", "id": "x"})
    assert ids(part) == [17, 2, "x"]
    second = written(tmp_path, other, name="b.jsonl")
    assert ids(part, second) == [17, "set.jsonl:2", "x", "b.jsonl:1"]


def test_an_id_that_is_there_twice_is_named_with_both_places(tmp_path):
    record = {"question": "Red?", "answer": "yes", "id": 2}
    part = written(tmp_path, record | {"id": "2"}, record | {"question": "Blue?"})
    with pytest.raises(UserError, match=r"set.jsonl, line 2: its id 2 is that of .*line 1 too"):
        ids(part)


def test_no_question_at_all_is_said():
    with pytest.raises(UserError, match="no question to score"):
        check_ids([])


def test_what_is_wrong_with_records_is_told_as_in_a_training(tmp_path):
    part = written(tmp_path, {"question": "Red?"}, {"question": "Blue?", "answer": "no"})
    with pytest.raises(DataError, match="set.jsonl, line 1"):
        ids(part)
    assert ids(part, skip_bad_records=True) == [2]


def test_a_limit_draws_by_the_seed_and_keeps_the_order():
    questions = [question_of(sample(), number) for number in range(50)]
    some = drawn(questions, 10, 3)
    assert [q.id for q in some] == sorted(q.id for q in some) and len(some) == 10
    assert some == drawn(questions, 10, 3) != drawn(questions, 10, 4)
    assert drawn(questions, 50, 0) is questions and drawn(questions, None, 0) is questions


def test_pictures_are_counted(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    part = written(tmp_path, {"question": "Red?", "answer": "yes", "image": "a.png"})
    (question,) = read_questions([part], Wishes(), None).questions
    assert question.pictures == 1
