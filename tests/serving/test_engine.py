"""Many requests at once, each against transformers' `generate` on it alone."""

import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.adapters.test_saving import tuned
from tests.serving.asking import PATIENCE_S, Answers, answers, asked, generated, picture_file, texts
from tests.tiny import flamingo, flamingo_config, processor_of, speaking, tiny_tokenizer
from tuninglab.adapters.saving import load_adapter, save_adapter
from tuninglab.errors import UserError
from tuninglab.serving import engine as engine_module
from tuninglab.serving.engine import Engine
from tuninglab.serving.exchange import BusyError, ClosedError, Sampling, Text
from tuninglab.serving.reading import LongPromptError, ServedModel

COLOURS = ["red", "green", "blue", "white", "black", "orange"]


def made(family="llama", text=None, **options):
    """A random Flamingo that any text can be asked, and its processor."""
    words = tiny_tokenizer()
    sizes, tokens = speaking(words, **(text or {}))
    model = flamingo(flamingo_config(family, sizes, **options, **tokens), 0.7, 0.4, scale=4)
    return model, processor_of(words)


@pytest.fixture(scope="module")
def tiny():
    return made()


@pytest.fixture
def make_engine():
    """A function (model, processor, **settings) -> engine, which is closed after the test."""
    engines = []

    def make(model, processor, served=None, **settings):
        served = served or {"base": ServedModel(None, processor.prompt)}
        engines.append(Engine(model, processor, served, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        assert engine._thread is None


def several():
    """Requests that differ in length, pictures and longest answer."""
    questions = ["What is it?", "abc", "Is that so, or is it not?", "7 + 5", "Why", "z" * 40, "o?"]
    return [
        asked(question, COLOURS[: number % 4], max_new_tokens=3 + 4 * (number % 3))
        for number, question in enumerate(questions)
    ]


FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "opt", "gpt_neox", "mpt", "gptj", "gpt2"]


@pytest.mark.parametrize("mode", ["previous", "next-v1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_together_are_the_answers_alone(family, mode, make_engine):
    limit = {"opt": "max_position_embeddings", "mpt": "max_seq_len"}.get(family)
    limit = "n_positions" if family in ("gptj", "gpt2") else limit
    model, processor = made(family, {limit: 256} if limit else None, media_mode=mode)
    requests = several()
    alone = [generated(model, processor, request)[0] for request in requests]
    assert len(set(alone)) > 3
    # Fewer rows than requests: some join as others leave.
    engine = make_engine(model, processor, max_rows=3)
    assert texts(engine, *requests) == alone
    # Again, with what is known by now.
    assert texts(engine, *requests) == alone


def test_with_kernels_and_without(kernels, tiny, make_engine):
    model, processor = tiny
    alone = [generated(model, processor, request)[0] for request in several()]
    assert texts(make_engine(model, processor, max_rows=5), *several()) == alone


@pytest.mark.parametrize("family", ["phi4-mini", "falcon_h1"])
def test_rows_that_cannot_be_laid_together_are_decoded_side_by_side(family, make_engine):
    model, processor = made(family)
    # LongRoPE turns positions otherwise beyond 16 tokens: in the middle of the first answer.
    processor.use_prompt("openflamingo-caption")
    requests = [
        asked("", ["red"], max_new_tokens=40),
        asked("", ["red", "blue", "green"], max_new_tokens=40),
    ]
    alone = [generated(model, processor, request)[0] for request in requests]
    engine = make_engine(model, processor)
    assert not engine.reader.plain
    assert texts(engine, *requests) == alone == texts(engine, *requests)


def test_a_turn_reads_what_is_new_alone(tiny, make_engine):
    model, processor = tiny
    engine = make_engine(model, processor)
    first = asked("One?", ["red"], max_new_tokens=6)
    ((said, done),) = answers(engine, first)
    before = [*first.messages, {"role": "assistant", "content": [{"type": "text", "text": said}]}]
    second = asked("Two?", ["blue"], before=before, max_new_tokens=6)
    second = replace(second, pictures=[*first.pictures, *second.pictures])
    ((text, again),) = answers(engine, second)
    assert text == generated(model, processor, second)[0]
    assert done.reused_tokens == 0 and again.reused_tokens >= done.prompt_tokens
    # Another picture in the same place is another dialogue from there on.
    other = type(second)(
        **{**vars(second), "pictures": [picture_file("green"), second.pictures[1]]}
    )
    ((text, changed),) = answers(engine, other)
    assert text == generated(model, processor, other)[0]
    assert changed.reused_tokens < done.prompt_tokens
    assert answers(make_engine(model, processor, prefix_cache=0), other)[0][0] == text


def test_a_token_that_sees_another_picture_now_is_read_again(make_engine):
    # Ahead-looking: what saw nothing in the first turn sees the picture of the second.
    model, processor = made(media_mode="next-v1")
    engine = make_engine(model, processor)
    first = asked("One?", max_new_tokens=4)
    ((said, done),) = answers(engine, first)
    before = [*first.messages, {"role": "assistant", "content": [{"type": "text", "text": said}]}]
    second = asked("Two?", ["blue"], before=before, max_new_tokens=6)
    ((text, again),) = answers(engine, second)
    assert again.reused_tokens == 0 and text == generated(model, processor, second)[0]


def test_a_picture_is_encoded_once(tiny, make_engine, monkeypatch):
    model, processor = tiny
    encoded = []
    original = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda p: encoded.append(p.shape) or original(p))
    engine = make_engine(model, processor, image_cache=2)
    answers(engine, asked("a", ["red"]), asked("b", ["red", "blue"]), asked("c", ["blue"]))
    assert len(encoded) == 2
    answers(engine, asked("a", ["green"]), asked("b", ["blue"]))
    assert len(encoded) == 3
    answers(engine, asked("a", ["red"]))
    assert len(encoded) == 4


@pytest.fixture
def two_adapters(tiny_bases, tiny_flamingo, tmp_path):
    """A model with two adapters, what is served of it, and each alone by its name."""
    settings = {
        "colour": {"r": 2, "lora_target_modules": ["q_proj", "to_q", "ff.1"]},
        "sight": {"r": 3, "lora_target_modules": ["v_proj"], "train": ["perceiver"]},
    }
    model, alone = tiny_flamingo("plain"), {"base": tiny_flamingo("plain")}
    for shift, (name, lora) in enumerate(settings.items(), 1):
        one = tuned(tiny_flamingo("plain"), **lora)
        for key, parameter in one.named_parameters():
            if key.endswith("_gate"):
                parameter.data += shift
        save_adapter(one, tmp_path / name)
        model = load_adapter(model, tmp_path / name, name)
        alone[name] = load_adapter(tiny_flamingo("plain"), tmp_path / name).eval()
    return model.eval(), alone


def test_adapters_and_base_answer_side_by_side(two_adapters, tiny_bases, make_engine):
    from tuninglab.models.processing import FlamingoProcessor

    model, alone = two_adapters
    processor = FlamingoProcessor.from_pretrained(tiny_bases["plain"])
    served = {
        "colour": ServedModel("colour", processor.prompt),
        "sight": ServedModel("sight", processor.prompt, "sight"),
        "base": ServedModel(None, processor.prompt),
    }
    engine = make_engine(model, processor, served)
    requests = [
        asked(f"{number}?", [COLOURS[number % 2]], model=name, max_new_tokens=24)
        for number in range(4)
        for name in served
    ]
    expected = [generated(alone[r.model], processor, r)[0] for r in requests]
    assert len(set(expected)) > 4
    assert texts(engine, *requests) == expected
    assert texts(engine, *reversed(requests)) == expected[::-1]


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        ({"temperature": 1.0}, {"top_k": 0}),
        ({"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8, "top_k": 0}),
        ({"temperature": 1.5, "top_k": 9}, {"temperature": 1.5, "top_k": 9}),
        ({"temperature": 1.0, "repetition_penalty": 1.6}, {"repetition_penalty": 1.6, "top_k": 0}),
    ],
)
def test_chance_is_that_of_transformers(sampling, options, tiny, make_engine):
    model, processor = tiny
    requests = [
        asked("Say it", ["red"], max_new_tokens=20, sampling=Sampling(**sampling, seed=seed))
        for seed in range(3)
    ]
    expected = []
    for request in requests:
        torch.manual_seed(request.sampling.seed)
        expected.append(generated(model, processor, request, do_sample=True, **options)[0])
    assert len(set(expected)) == 3
    engine = make_engine(model, processor)
    # Together, beside others, and each alone.
    assert texts(engine, *requests, asked("b"))[:3] == expected
    assert [texts(engine, request)[0] for request in requests] == expected
    free = [asked("Say it", sampling=Sampling(temperature=2.0), max_new_tokens=20)] * 2
    assert len(set(texts(engine, *free))) == 2


def test_a_penalty_for_repetition_also_holds_without_chance(tiny, make_engine):
    model, processor = tiny
    request = asked("Say", max_new_tokens=20, sampling=Sampling(repetition_penalty=1.7))
    expected, _ = generated(model, processor, request, repetition_penalty=1.7)
    assert texts(make_engine(model, processor), request) == [expected]
    assert expected != generated(model, processor, request)[0]


@pytest.mark.parametrize("penalties", [(1.5, 0.0), (0.0, 2.0), (0.7, 0.4), (-2.0, 0.0)])
def test_penalties_of_openai_step_by_step(penalties, tiny, make_engine):
    model, processor = tiny
    frequency, presence = penalties
    sampling = Sampling(frequency_penalty=frequency, presence_penalty=presence)
    request = asked("Say", max_new_tokens=16, sampling=sampling, logprobs=3)
    collected = Answers(make_engine(model, processor), request)
    ((text, _),) = collected.wait()
    inputs = processor.apply_chat_template(
        [dict(m) for m in request.messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    ids, answer, told = inputs["input_ids"], [], []
    for _ in range(16):
        logits = model(ids).logits[0, -1]
        told.append(logits.log_softmax(-1))
        scores = logits.clone()
        scores[model.config.image_token_id] = -torch.inf
        for token, count in Counter(answer).items():
            scores[token] -= frequency * count + presence
        answer.append(int(scores.argmax()))
        ids = torch.cat([ids, torch.tensor([[answer[-1]]])], dim=1)
    ends = {*model.generation_config.eos_token_id}
    length = next((n for n, token in enumerate(answer) if token in ends), len(answer))
    assert text == processor.tokenizer.decode(answer[:length], skip_special_tokens=True).strip()
    tokens = [
        token for event in collected.told[0] if isinstance(event, Text) for token in event.tokens
    ]
    assert b"".join(token.bytes for token in tokens).decode("utf-8", "replace").strip() == text
    # Of the unchanged logits, whatever was taken off them.
    assert len(tokens) == length
    for token, index, log_probs in zip(tokens, answer, told, strict=False):
        assert token.logprob == pytest.approx(float(log_probs[index]), abs=1e-4)
        best = log_probs.topk(3)
        assert [one.logprob for one in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        expected = processor.tokenizer.convert_ids_to_tokens(best.indices.tolist())
        decoded = [processor.tokenizer.convert_tokens_to_string([word]) for word in expected]
        assert [one.token for one in token.top] == decoded


def test_a_stop_text_ends_an_answer_and_is_not_shown(tiny, make_engine):
    model, processor = tiny
    engine = make_engine(model, processor)
    whole = texts(engine, asked("Say", max_new_tokens=40))[0]
    assert len(whole) > 12
    for stop in ((whole[5:8],), (whole[9:11], whole[3:9]), ("never said",), (whole[:1],)):
        collected = Answers(engine, asked("Say", max_new_tokens=40, stop=stop))
        ((text, done),) = collected.wait()
        found = [whole.find(one) for one in stop if one in whole]
        expected = whole[: min(found)].rstrip() if found else whole
        assert text == expected, stop
        assert done.reason == ("stop" if found else done.reason)
        assert "" not in [event.text for event in collected.told[0] if isinstance(event, Text)]


def is_idle(engine):
    """Whether nothing waits or runs any more: an answer is told a little before its row is gone."""
    with engine._changed:
        return engine._changed.wait_for(lambda: not engine._busy(), PATIENCE_S)


def endless_in(engine):
    """A request whose answer takes as long as a test needs."""
    engine.reader._ends = lambda prompt: frozenset()
    return asked("Say", max_new_tokens=1500)


def test_whoever_leaves_frees_the_place(tiny, make_engine):
    model, processor = tiny
    engine = make_engine(model, processor, max_rows=2, max_queue=1)
    endless = endless_in(engine)
    first, second = Answers(engine, endless), Answers(engine, endless)
    first.next(), second.next()
    waits = Answers(engine, endless)
    with pytest.raises(BusyError) as busy:
        engine.submit([endless], lambda *_: None)
    assert busy.value.retry_after_s >= 1
    # All or none.
    with pytest.raises(BusyError):
        engine.submit([endless, endless], lambda *_: None)
    waits.answering.cancel()
    ((text, done),) = waits.wait()
    assert (text, done.reason) == ("", "cancelled")
    first.answering.cancel()
    ((text, done),) = first.wait()
    assert done.reason == "cancelled" and done.answer_tokens < 1500
    assert answers(engine, asked("a", max_new_tokens=2))[0][1].answer_tokens <= 2
    second.answering.cancel()
    second.wait()
    assert is_idle(engine)


def test_a_mistake_of_one_is_told_to_that_one(tiny, make_engine, monkeypatch):
    model, processor = tiny
    engine = make_engine(model, processor)
    good = asked("a", ["red"], max_new_tokens=4)
    bad = replace(good, pictures=[b"no picture"])
    none = replace(good, pictures=[])
    right, damaged, missing = answers(engine, good, bad, none)
    assert right[0] == generated(model, processor, good)[0]
    assert isinstance(damaged, UserError) and "picture 1" in str(damaged)
    assert isinstance(missing, UserError) and "0 pictures are given for 1 marks" in str(missing)
    monkeypatch.setattr(engine_module.Batch, "step", lambda *_: 1 / 0)
    assert [type(e) for e in answers(engine, good, good)] == [ZeroDivisionError] * 2
    monkeypatch.undo()
    # Also where nothing is computed yet for anybody: nobody waits in vain, and others come after.
    monkeypatch.setattr(engine, "_activate", lambda name: 1 / 0)
    assert [type(e) for e in answers(engine, good, good)] == [ZeroDivisionError] * 2
    monkeypatch.undo()
    monkeypatch.setattr(engine_module.Batch, "join", lambda *_: 1 / 0)
    assert [type(e) for e in answers(engine, good)] == [ZeroDivisionError]
    monkeypatch.undo()
    # What fails for one row fails for it alone.
    strange = replace(good, sampling=Sampling(temperature=1e-300))
    failed, fine = answers(engine, strange, good)
    assert isinstance(failed, RuntimeError) and fine[0] == right[0]
    assert texts(engine, good) == [right[0]] and is_idle(engine)


def test_a_prompt_is_as_long_as_the_model_reads_at_most(make_engine):
    model, processor = made(text={"max_position_embeddings": 64})
    engine = make_engine(model, processor)
    (error,) = answers(engine, asked("x" * 80))
    assert isinstance(error, LongPromptError) and "64" in str(error)
    (told,) = answers(engine, asked("x", sampling=Sampling(temperature=3.0, seed=1)))
    assert told[1].prompt_tokens + told[1].answer_tokens <= 64


def test_where_memory_is_short_requests_wait_for_each_other(tiny, make_engine):
    model, processor = tiny
    requests = several()
    engine = make_engine(model, processor)
    alone = texts(engine, *requests)
    seen = []
    original = engine_module.Batch.join

    def join(self, row, cache):
        original(self, row, cache)
        seen.append(len(self.rows))

    engine.room_bytes = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module.Batch, "join", join)
        assert texts(engine, *requests) == alone
    assert set(seen) == {1}


def test_a_closed_engine_has_told_everybody(tiny, make_engine):
    model, processor = tiny
    engine = make_engine(model, processor, max_rows=1)
    under_way = Answers(engine, asked("Say", max_new_tokens=5))
    under_way.next()
    closing = threading.Thread(target=engine.close, args=(60.0,))
    closing.start()
    ((_, done),) = under_way.wait()
    assert done.reason in ("stop", "length")
    closing.join()
    with pytest.raises(ClosedError):
        engine.submit([asked()], lambda *_: None)
    other = make_engine(model, processor, max_rows=1)
    long = endless_in(other)
    cut, waiting = Answers(other, long), Answers(other, long)
    cut.next()
    other.close()
    assert [a.wait()[0][1].reason for a in (cut, waiting)] == ["cancelled"] * 2


def test_the_thread_goes_when_nothing_is_asked_and_comes_again(tiny, make_engine, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(engine_module, "IDLE_S", 0.05)
    engine = make_engine(model, processor)
    first = texts(engine, asked("a", max_new_tokens=3))
    engine._thread and engine._thread.join()
    assert engine._thread is None
    assert texts(engine, asked("a", max_new_tokens=3)) == first


AT_THE_END = """
import sys
from tuninglab.serving.conversation import Conversation
from tuninglab.serving.open_model import open_model

talk = Conversation(*open_model(sys.argv[1]), max_new_tokens=3)
print(talk.ask("a"))
"""


@pytest.mark.slow
def test_a_program_that_asked_ends_at_once_and_well(model_directory):
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, str(model_directory)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
