"""OpenFlamingo's way to ask, against its rules written out by hand."""

import re
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.conftest import TOKENIZERS, wrapped
from tests.data.reading.released import read_documents, read_records
from tests.tiny import processor_of, tiny_tokenizer
from tuninglab.config.evaluate import Task
from tuninglab.data.reading.memes import HATEFUL_MEMES
from tuninglab.data.reading.vqa import VQA
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.evaluation import openflamingo
from tuninglab.evaluation.openflamingo import BENCHMARKS, OpenFlamingo, benchmark_named
from tuninglab.evaluation.questions import question_of
from tuninglab.evaluation.shots import Drawn, FewShot, Pool
from tuninglab.evaluation.stemming import okvqa_stemmer

PROCESSOR = processor_of(tiny_tokenizer())
WORDS = PROCESSOR.tokenizer
VQA_TASKS = ("vqa", "okvqa", "vizwiz", "textvqa")
CAPTION_TASKS = ("caption", "flickr30k")


def record(number, question, answer, *answers, options=()):
    content = [{"type": "image"}] + ([{"type": "text", "text": question}] if question else [])
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    picture = Image.new("RGB", (4, 4), (number, 1, 2))
    known = {"id": str(number), "answers": answers, "options": options}
    return Sample(messages, [picture], f"set.json, record {number}", **known)


MEME = "is an image with: 'meme {}' written on it. Is it hateful?"
DATA = {
    # The most frequent answer is learned, the first one is shown; blanks stay.
    **{t: [record(n, f"What {n}? ", "b", "a", "b", "b") for n in range(4)] for t in VQA_TASKS},
    **{t: [record(n, "", f" A dog {n}. ") for n in range(4)] for t in CAPTION_TASKS},
    "hateful_memes": [
        record(n, MEME.format(n), ("no", "yes")[n % 2], options=("yes", "no")) for n in range(4)
    ],
    "imagenet": [record(n, "", f"class {n}") for n in range(4)],
}


def by_hand(task, number, shown, answered=True):
    """A question, or an example, as open_flamingo 2.0.1 writes it."""
    mark, end = ("<image>" if shown else ""), "<|endofchunk|>"
    if task in VQA_TASKS:
        text = f"{mark}Question:What {number}?  Short answer:"
        return text + (f"a{end}\n" if answered else "")
    if task in CAPTION_TASKS:
        return f"{mark}Output:" + (f"A dog {number}.{end}\n" if answered else "")
    if task == "imagenet":
        return f"{mark}Output:" + (f"class {number}{end}" if answered else "")
    ocr = f"'meme {number}'"
    text = f"{mark}is an image with: {ocr} written on it. Is it hateful? Answer:"
    return text + (f"{('no', 'yes')[number % 2]}{end}" if answered else "")


def asking(task, shots, data=None, processor=PROCESSOR):
    examples = Drawn(Pool(DATA[task] if data is None else data), 0)
    return OpenFlamingo(processor, benchmark_named(task), examples, shots)


def query(task, number=3):
    return question_of(DATA[task][number], str(number))


def test_each_task_of_the_settings_is_a_benchmark():
    assert set(get_args(Task)) == set(DATA)
    assert sorted(one.name for one in BENCHMARKS) == sorted(get_args(Task))


@pytest.mark.parametrize("shots", [0, 2, 3])
@pytest.mark.parametrize("task", get_args(Task))
def test_prompts_are_those_of_the_rule(task, shots):
    ours, question = asking(task, shots), query(task)
    examples = [int(one.id) for one in ours.examples.of(question, shots or 2)]
    assert len(set(examples)) == (shots or 2) and 3 not in examples
    text = "".join(by_hand(task, number, shown=shots > 0) for number in examples)
    text += by_hand(task, 3, shown=True, answered=False)
    # Whole, as its tokenizer does; this one adds nothing in front.
    assert ours.ids(question) == WORDS(text)["input_ids"]
    pictures = [image.tobytes() for image in ours.images(question, question.sample.images)]
    wanted = [DATA[task][n].images[0].tobytes() for n in (*(examples if shots else []), 3)]
    assert pictures == wanted
    assert ours.images(question, ["blank"])[-1] == "blank"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokenizer_adds_what_it_adds_to_any_text(kind):
    make, special, bos = TOKENIZERS[kind]
    tokenizer = wrapped(make(), special, bos)
    processor = SimpleNamespace(tokenizer=tokenizer)
    ours, question = asking("vqa", 1, processor=processor), query("vqa")
    assert ours.ids(question) == tokenizer(ours.text(question))["input_ids"]


def test_our_own_prompts_give_the_same_text():
    for task, prompt in (("vqa", "openflamingo-vqa"), ("caption", "openflamingo-caption")):
        # Without what differs: the answer that is shown, and blanks around.
        data = [record(n, "Who?" if task == "vqa" else "", "me") for n in range(4)]
        processor = processor_of(tiny_tokenizer())
        processor.use_prompt(benchmark_named(task).prompt)
        assert benchmark_named(task).prompt == prompt
        few = FewShot(processor, Drawn(Pool(data), 0), 2)
        question = question_of(data[3], "3")
        text = processor.prompt.text(few.turns(question), ask=True)
        assert text == asking(task, 2, data).text(question)


def test_settings_of_the_benchmarks():
    longest = {one.name: one.max_new_tokens for one in BENCHMARKS if not one.ranked}
    assert longest == dict.fromkeys(CAPTION_TASKS, 20) | dict.fromkeys(VQA_TASKS[:3], 5) | {
        "textvqa": 10
    }
    assert [one.name for one in BENCHMARKS if one.ranked] == ["hateful_memes", "imagenet"]
    assert (OpenFlamingo.beams, OpenFlamingo.length_penalty) == (3, 0.0)


def test_candidates_of_the_benchmarks():
    questions = [query("imagenet", n) for n in (2, 0, 3)]
    names = ("class 0", "class 2", "class 3")
    assert benchmark_named("imagenet").candidates(questions) == names
    memes = benchmark_named("hateful_memes")
    assert memes.candidates([query("hateful_memes", 0)]) == ("yes", "no")
    with pytest.raises(UserError, match="all questions have the same. .*--candidates"):
        benchmark_named("imagenet").candidates(questions[:1])
    found = asking("imagenet", 1).candidates(questions[0], names)
    # Apart from the prompt, without an end.
    assert found == [WORDS(name, add_special_tokens=False)["input_ids"] for name in names]
    assert [WORDS.decode(ids) for ids in found] == list(names)


def clipped(task, text):
    """The code's rules, written out again."""
    if task in CAPTION_TASKS:
        return text.split("Output", 1)[0].replace('"', "")
    return re.split(", ", re.split("Question|Answer|Short", text, maxsplit=1)[0], maxsplit=1)[0]


PARTS = st.lists(
    st.sampled_from(["Output", "Question", "Answer", "Short", ", ", ",", '"', "red", " ", "\n"]),
    max_size=8,
).map("".join)


@given(text=PARTS)
def test_answers_are_clipped_as_in_the_code(text):
    for task in ("vqa", "textvqa", "caption"):
        # Metrics see no blanks around an answer.
        assert asking(task, 0).said(text) == clipped(task, text).strip()


def test_ranked_answers_are_left_as_they_are():
    assert asking("imagenet", 0).said("tiger shark, Output") == "tiger shark, Output"


def test_zero_shots_need_examples():
    with pytest.raises(UserError, match="two examples without their pictures .*--shots_data"):
        OpenFlamingo(PROCESSOR, benchmark_named("vqa"), None, 0)


@pytest.mark.parametrize("where", ["question", "answer"])
@pytest.mark.parametrize("token", ["<image>", "<|endofchunk|>"])
def test_what_would_become_a_token_is_refused(token, where):
    data = [record(n, "Who?", "me", "me") for n in range(3)]
    odd = [f"Who {token}?", "me"] if where == "question" else ["Who?", f"me {token}"]
    messages = record(9, "Who?", "me").messages
    messages[0]["content"][1]["text"] = odd[0]
    data[0].messages, data[0].answers = messages, (odd[1],)
    question = question_of(data[1], "1")
    with pytest.raises(UserError, match=r"^set.json, record 1: <.*> stands in its text or"):
        asking("vqa", 2, data).ids(question)


def test_records_of_other_kinds_are_refused():
    ours = asking("vqa", 2)
    with pytest.raises(UserError, match="--task vqa expects a question, and the record has none"):
        ours.ids(question_of(record(9, "", "a caption"), "9"))
    with pytest.raises(UserError, match="expects a picture alone, and the record has a question"):
        asking("caption", 2).ids(question_of(record(9, "Who?", "a"), "9"))
    several = record(9, "Who?", "me")
    several.messages = several.messages * 2
    several.images = several.images * 2
    with pytest.raises(UserError, match=r"record 9: 4 messages, 2 pictures; --compat"):
        ours.ids(question_of(several, "9"))


def test_official_files_give_the_prompts():
    questions = {
        "data_subtype": "val2014",
        "questions": [
            {"question_id": n, "image_id": n, "question": f"What {n}? "} for n in range(4)
        ],
    }
    answers = [{"answer": text} for text in ("a", "b", "b")]
    annotations = {
        "annotations": [
            {"question_id": n, "image_id": n, "answers": answers, "question_type": "what"}
            for n in range(4)
        ]
    }
    assert VQA.fits([questions, annotations])
    samples, problems = read_documents(questions, annotations)
    assert problems == []
    for task, found in (("vqa", samples), ("hateful_memes", memes())):
        made = [
            Sample(one.messages, pictured.images, one.origin, id=one.id, answers=one.answers)
            for one, pictured in zip(found, DATA["vqa"], strict=True)
        ]
        question = question_of(made[3], "3")
        wanted = asking(task, 2).text(query(task))
        assert asking(task, 2, made).text(question) == wanted


def memes():
    raw = [{"id": n, "img": f"{n}.png", "text": f"meme {n}", "label": n % 2} for n in range(4)]
    assert HATEFUL_MEMES.fits(raw[0])
    return read_records(*raw)[0]


class Nltk(SimpleNamespace):
    """What nltk knows of some words."""

    def __init__(self, missing=False):
        parts = {"dogs": "NNS", "Smiths": "NNPS", "riding": "VBG", "yes": "UH"}
        verbs = {"riding": "ride", "morning": "morning"}

        class WordNetLemmatizer:
            def lemmatize(self, word, part):
                if missing:
                    raise LookupError("Resource wordnet not found")
                return verbs[word] if part == "v" else word

        super().__init__(
            word_tokenize=str.split,
            pos_tag=lambda words: [(word, parts.get(word, "NN")) for word in words],
            stem=SimpleNamespace(WordNetLemmatizer=WordNetLemmatizer),
        )


def test_okvqa_is_stemmed_where_that_can_be_done(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert okvqa_stemmer() is None
    ours = asking("okvqa", 0)
    assert ours.stem is None and ours.said("riding dogs, Question") == "riding dogs"
    monkeypatch.setitem(sys.modules, "nltk", Nltk(missing=True))
    monkeypatch.setitem(
        sys.modules, "inflection", SimpleNamespace(singularize=lambda word: word.rstrip("s"))
    )
    assert okvqa_stemmer() is None
    monkeypatch.setitem(sys.modules, "nltk", Nltk())
    ours = asking("okvqa", 0)
    assert ours.said("riding dogs, Question") == "ride dog"
    assert ours.said("Smiths yes grass morning") == "Smith yes grass morning"
    assert asking("vqa", 0).said("riding dogs") == "riding dogs"


def test_only_okvqa_looks_for_the_stemmer(monkeypatch):
    monkeypatch.setattr(openflamingo, "okvqa_stemmer", lambda: str.upper)
    assert asking("okvqa", 0).said("a") == "A" and asking("textvqa", 0).stem is None
