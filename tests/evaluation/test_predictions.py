"""The predictions of several processes, and those that others bring: whole, bounded, by name."""

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.data.sample import Sample
from tuninglab.errors import UserError, WorkError
from tuninglab.evaluation.predictions import (
    NAME,
    Answered,
    PredictionsFile,
    answered_of,
    line_of,
    prompt_sha,
    read_predictions,
)
from tuninglab.evaluation.questions import question_of

SHA = "ab" * 32
# JSON has no halves of letters, and Python's texts have.
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def asked(*ids):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "it"}]
    return [question_of(Sample(turns, []), name) for name in ids]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_the_sha_is_of_four_little_bytes_a_token(ids):
    data = b"".join(struct.pack("<I", token) for token in ids)
    assert prompt_sha(ids) == hashlib.sha256(data).hexdigest()


@given(st.dictionaries(st.sampled_from(["asked", "blank", "x"]), WORDS, min_size=3), st.data())
def test_a_line_says_what_was_answered(texts, data):
    count = data.draw(st.integers(0, 3))
    row = st.lists(st.floats(0, 1), min_size=count, max_size=count)
    ranked = {name: data.draw(row) for name in texts} if count else {}
    answered = Answered(SHA, texts, ranked)
    line = line_of(asked("a")[0], answered, {"score": 0.5, "kind": "k"})
    assert list(line)[:6] == ["id", "prompt_sha", "prediction", "answers", "score", "kind"]
    stored = json.loads(json.dumps(line))
    assert answered_of(stored, SHA, texts, count) == answered
    for wrong in (count + 1, 0 if count else 2):
        assert answered_of(stored, SHA, texts, wrong) is None
    assert answered_of(stored, SHA[::-1], texts, count) is None
    assert answered_of(stored, SHA, [*texts, "further"], count) is None


def lines_of(words):
    return [{"id": str(number), "prediction": word} for number, word in enumerate(words)]


@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6), st.integers(0, 60), st.binary())
def test_what_is_whole_is_read_back_whatever_follows(tmp_path_factory, one, two, cut, junk):
    folder = tmp_path_factory.mktemp("predictions")
    first, second = PredictionsFile(folder), PredictionsFile(folder, 1)
    first.append(lines_of(one))
    second.append(lines_of(two))
    assert first.read() == second.read() == lines_of(one) + lines_of(two)
    path = folder / "predictions.rank-1.jsonl"
    data = path.read_bytes()
    kept = data[: max(0, len(data) - cut)]
    # After a cut line no other follows; whoever goes on writes the file anew first.
    path.write_bytes(kept)
    found = first.read()[len(one) :]
    # A whole line needs no line end.
    ends = kept.count(b"\n") + (kept[-1:] == b"}" and data[len(kept) : len(kept) + 1] == b"\n")
    assert found == lines_of(two)[: len(found)] and len(found) == ends
    path.write_bytes(data + b"\n" + junk)
    assert first.read()[: len(one) + len(two)] == lines_of(one) + lines_of(two)
    first.write(lines_of(two))
    assert [file.name for file in folder.iterdir()] == [NAME]
    assert PredictionsFile(folder).read() == lines_of(two)
    assert [json.loads(line) for line in (folder / NAME).read_text().splitlines()] == lines_of(two)


def test_nothing_is_there_at_first_and_a_full_disk_is_said(tmp_path):
    file = PredictionsFile(tmp_path / "new")
    assert file.read() == []
    (tmp_path / "new" / NAME).mkdir(parents=True)
    with pytest.raises(WorkError, match="could not be written"):
        file.append([{}])


def write(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


@given(st.permutations(["a", "7", "c c"]), st.booleans(), st.integers(0, 2))
def test_others_answers_come_in_the_order_of_the_questions(tmp_path_factory, order, lines, form):
    path = tmp_path_factory.mktemp("theirs") / "answers"
    name = ("id", "question_id", "image_id")[form]
    said = ("prediction", "answer", "caption")[form]
    # Numbers and texts are one id; a model may say nothing.
    ids = [7 if i == "7" else i for i in order]
    texts = {"a": "x", "7": "", "c c": "é\n"}
    records = [{name: i, said: texts[str(i)], "answers": ["?"], "score": None} for i in ids]
    write(path, *records) if lines else write(path, records)
    assert read_predictions(path, asked("a", "7", "c c")) == ["x", "", "é\n"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": "a", "prediction": "x"}, "{broken"], r"line 2: "),
        ([{"id": "a", "prediction": "x"}, '"text"'], r"line 2: 'text' is no object"),
        ([{"prediction": "x"}], r"line 1: the id is missing"),
        ([{"id": 1.5, "prediction": "x"}], r"line 1: the id is 1.5; expected a whole number"),
        ([{"id": True, "prediction": "x"}], r"line 1: the id is True"),
        ([{"id": " ", "prediction": "x"}], r"line 1: the id is empty"),
        ([{"id": "a", "text": "x"}], r"line 1: the prediction is missing"),
        ([{"id": "a", "prediction": None}], r"line 1: the prediction is null; expected a text"),
        ([{"question_id": 5, "answer": ["x"]}], r"line 1: the answer is a list of 1"),
        ([{"id": "a", "prediction": "x"}] * 2, r"line 2: the id 'a' is there twice"),
        ([{"id": "a", "prediction": "x"}], r"lacks an answer to 1 of 2 .* 'b'\. Did it stop"),
        ([{"id": "z", "prediction": "x"}], r"lacks .* 2 of 2 .* 'a'.*another data"),
        (
            [{"id": i, "prediction": "x"} for i in "abcd"],
            r"answers 2 questions that the data does not ask, one is 'c'.*another data file\?",
        ),
        ([""], "is empty"),
        ([{"a": {"prediction": "x"}}], r"the id is missing"),
        ([[]], "empty list"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, records, message):
    path = write(tmp_path / "theirs.jsonl", *records)
    with pytest.raises(UserError, match=message) as refused:
        read_predictions(path, asked("a", "b"))
    assert "theirs.jsonl" in str(refused.value)


def test_no_file_is_no_traceback(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError):
            read_predictions(path, asked("a"))
    (tmp_path / "deep").write_text("[" * 10**5)
    with pytest.raises(UserError):
        read_predictions(tmp_path / "deep", asked("a"))


@given(st.binary(max_size=60))
def test_any_bytes_are_answers_or_a_message(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError):
        read_predictions(path, asked("a"))
