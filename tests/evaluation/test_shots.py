"""Examples before a question: which stand there, in which order, and the prompt that shows them."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import decoders

from tests.tiny import byte_tokenizer, processor_of
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.evaluation.asking import Dialogue
from tuninglab.evaluation.questions import question_of
from tuninglab.evaluation.shots import Drawn, FewShot, Pool, query_set


def readable_tokenizer():
    """One token a byte, and back."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = readable_tokenizer()


def picture(number):
    return Image.new("RGB", (4, 4), (number // 250, number % 250, 7))


def sample(question, answer, *pictures, system=None, **known):
    content = [{"type": "image"} for _ in pictures]
    content += [{"type": "text", "text": question}] if question else []
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": content}]
    messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    images = [picture(one) for one in pictures]
    return Sample(messages, images, f"set.json, record {known.get('id')}", **known)


def asked(number, question="colour?", *pictures):
    name = str(number)
    return question_of(sample(question, "red", *(pictures or [number]), id=name), name)


TRAIN = [sample(f"colour {n}?", f"answer {n}", n) for n in range(40)]


def processor(prompt="tuninglab"):
    made = processor_of(BYTES)
    made.use_prompt(prompt)
    return made


def origins(examples):
    return [example.text for example in examples]


def test_the_text_of_openflamingo_in_its_prompts():
    pool = Pool([sample("Who?", "a man", 1), sample("Where?", "here", 2)])
    question = asked(9, "What is it?")
    few = FewShot(processor("openflamingo-vqa"), Drawn(pool, 0), 2)
    texts = {
        "Who?": "<image>Question:Who? Short answer:a man<|endofchunk|>\n",
        "Where?": "<image>Question:Where? Short answer:here<|endofchunk|>\n",
    }
    order = origins(few.examples.of(question, 2))
    wanted = "".join(texts[one] for one in order) + "<image>Question:What is it? Short answer:"
    assert sorted(order) == sorted(texts)
    assert BYTES.decode(few.ids(question)) == "<s>" + wanted

    pool = Pool([sample("", "a man", 1), sample("", "a tree", 2)])
    question = asked(9, "")
    few = FewShot(processor("openflamingo-caption"), Drawn(pool, 0), 2)
    said = [one.answers[0] for one in few.examples.of(question, 2)]
    wanted = "".join(f"<image>Output:{one}<|endofchunk|>\n" for one in said)
    assert BYTES.decode(few.ids(question)) == f"<s>{wanted}<image>Output:"


def test_pictures_stand_in_the_order_of_their_marks():
    pool = Pool([sample("two?", "yes", 1, 2), sample("one?", "no", 3)])
    question = asked(9)
    few = FewShot(processor(), Drawn(pool, 3), 2)
    own = [picture(9)]
    wanted = [image for one in few.examples.of(question, 2) for image in one.sample.images]
    assert few.images(question, own) == [*wanted, *own] and len(wanted) == 3
    # What stands in for the question's own picture does not change those of its examples.
    other = [picture(100)]
    assert few.images(question, other) == [*wanted, *other]
    assert few.ids(question).count(BYTES.convert_tokens_to_ids("<image>")) == 4


def test_no_shots_are_the_dialogue_itself():
    few, question = FewShot(processor(), Drawn(Pool(TRAIN), 0), 0), asked(50)
    assert few.ids(question) == Dialogue(processor()).ids(question)
    assert few.images(question, ["own"]) == ["own"]


@given(order=st.permutations(range(8)), parts=st.integers(1, 4))
def test_neither_order_nor_processes_change_what_stands_before(order, parts):
    questions = [asked(100 + n) for n in range(8)]
    alone = [origins(Drawn(query_set(TRAIN, 5, 20), 5).of(q, 3)) for q in questions]
    found = {}
    for rank in range(parts):
        # Another process has examples of its own, and is asked a share in another order.
        examples = Drawn(query_set(TRAIN, 5, 20), 5)
        for number in order[rank::parts]:
            found[number] = origins(examples.of(questions[number], 3))
    assert [found[number] for number in range(8)] == alone


def test_draws_depend_on_seed_and_question_and_are_even():
    pool = Pool(TRAIN)
    seen = Counter()
    for number in range(400):
        seen.update(origins(Drawn(pool, 1).of(asked(100 + number), 4)))
    # Each of 40 records is drawn 40 times on average, with a standard deviation of 6.
    assert len(seen) == 40 and 16 < min(seen.values()) and max(seen.values()) < 64
    draws = {tuple(origins(Drawn(pool, seed).of(asked(1000), 4))) for seed in range(20)}
    assert len(draws) == 20


def test_fewer_shots_are_the_end_of_more():
    examples, question = Drawn(Pool(TRAIN), 0), asked(100)
    more = origins(Drawn(Pool(TRAIN), 0).of(question, 8))
    assert origins(examples.of(question, 2)) == more[-2:]
    assert origins(examples.of(question, 8)) == more


def test_the_query_set_is_drawn_by_the_seed_from_all_rows():
    data = [sample("?", "a", id=str(n)) for n in range(5000)]
    rows = query_set(data, 3).rows
    assert list(rows) == query_set(data, 3).rows and len(set(rows)) == 2048
    assert rows == sorted(rows) and rows[0] < 50 and rows[-1] > 4950
    assert list(query_set(data, 4).rows) != list(rows)
    assert len(query_set(data[:7], 3)) == 7


def test_the_own_picture_never_stands_before_whatever_it_is_called(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "c.png")

    def shows(name, question):
        made = sample(question, "red", 1)
        made.images = [tmp_path / name if isinstance(name, str) else name]
        return made

    content = (tmp_path / "a.png").read_bytes()
    pool = Pool([shows("b.png", "one?"), shows(content, "two?"), shows("c.png", "three?")])
    question = question_of(shows("a.png", "four?"), "1")
    for seed in range(8):
        assert origins(Drawn(pool, seed).of(question, 1)) == ["three?"]


def test_the_very_same_question_never_stands_before_without_pictures_too():
    data = [sample(f"{n} + {n}?", str(2 * n)) for n in range(3)]
    # Written by somebody else, it is the same all the same.
    data.append(sample("1 + 1?", "two"))
    question = question_of(data[1], "other")
    for seed in range(8):
        assert sorted(origins(Drawn(Pool(data), seed).of(question, 2))) == ["0 + 0?", "2 + 2?"]


def test_captions_of_one_picture_are_one_example():
    data = [sample("", f"caption {n} {k}", n) for n in range(4) for k in range(5)]
    for seed in range(8):
        found = Drawn(Pool(data), seed).of(asked(9, ""), 4)
        assert len({one.answers[0].split()[1] for one in found}) == 4
    # Different questions about one picture are different examples.
    data = [sample(f"{k}?", "a", 1) for k in range(4)]
    assert len(Drawn(Pool(data), 0).of(asked(9), 4)) == 4


def test_too_few_examples_are_told_by_name():
    question = asked(3)
    with pytest.raises(UserError, match=r"^set.json, record 3: 40 examples .* only 39 may: "):
        Drawn(Pool(TRAIN), 0).of(question, 40)
    few = FewShot(processor(), Drawn(Pool(TRAIN), 0), 40)
    with pytest.raises(UserError, match="more --shots_data, or fewer --shots"):
        few.ids(question)


def test_a_system_message_stands_once_and_others_are_refused():
    data = [sample(f"{n}?", "a", n, system="Be brief.") for n in range(3)]
    question = question_of(sample("q?", "b", 9, system="Be brief.", id="q"), "q")
    few = FewShot(processor(), Drawn(Pool(data), 0), 2)
    said = few.turns(question)
    assert [turn["role"] for turn in said] == ["system", *["user", "assistant"] * 2, "user"]
    for other in (asked(8), question_of(sample("q?", "b", 9, system="Shout.", id="8"), "8")):
        with pytest.raises(UserError, match="record 8: its system message is not that of its ex"):
            few.ids(other)


def test_records_are_made_when_they_are_asked_for():
    class Counting(list):
        read = 0

        def __getitem__(self, index):
            Counting.read += 1
            return super().__getitem__(index)

    data = Counting(TRAIN * 100)
    examples = Drawn(query_set(data, 0), 0)
    examples.of(asked(random.Random(0).randrange(10**6)), 4)
    assert Counting.read <= 40


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("tuninglab", "{}<|endofchunk|>"),
        ("openflamingo-vqa", "{}<|endofchunk|>"),
        ("multimodal_gpt", "{}</s>"),
        # Otter's answers begin with a blank.
        ("otter", " {}<|endofchunk|>"),
    ],
)
def test_candidates_are_what_training_would_learn(prompt, wanted):
    tokenizer = readable_tokenizer()
    tokenizer.add_tokens(["<answer>"], special_tokens=True)
    made = processor_of(tokenizer)
    made.use_prompt(prompt)
    question = asked(1)
    for asking in (Dialogue(made), FewShot(made, Drawn(Pool(TRAIN), 0), 3)):
        found = asking.candidates(question, ["red", "dark red"])
        assert [tokenizer.decode(ids) for ids in found] == [
            wanted.format("red"),
            wanted.format("dark red"),
        ]


def test_candidates_of_a_dialogue_leave_its_earlier_answers_out():
    first = sample("one?", "first", 1)
    long = sample("two?", "second")
    long.messages = first.messages + long.messages
    long.images = first.images
    (ids,) = Dialogue(processor()).candidates(question_of(long, "1"), ["red"])
    assert BYTES.decode(ids) == "red<|endofchunk|>"
