"""lmms-eval's requests against plain rules and single answers; lmms-eval itself where installed."""

import importlib
import json
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tiny import COLOURS
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.evaluation.answers import generate_answers
from tuninglab.evaluation.lmms import MOST_NEW_TOKENS, Asked, Settings, user_turn
from tuninglab.evaluation.lmms_answers import answers_to, losses_of
from tuninglab.models.build import load_flamingo

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = find_spec("lmms_eval") is not None
RED, BLUE = (Image.new("RGB", (16, 16), COLOURS[name]) for name in ("red", "blue"))


def parts(*contents):
    """A user message of texts and pictures, as lmms-eval writes it."""
    kinds = [
        {"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "url": c}
        for c in contents
    ]
    return [{"role": "user", "content": kinds}]


def asking(*contents, **fields):
    return Asked(lambda: parts(*contents), "task t, test 3", **fields)


@pytest.fixture(scope="module")
def opened(model_directory):
    return load_flamingo(model_directory)


@pytest.fixture
def classes(monkeypatch):
    """The module of the classes, on lmms-eval itself or on stand-ins for the two it imports."""
    name = "tuninglab.evaluation.lmms_model"
    if not INSTALLED:

        class Base:
            def __init__(self):
                self._rank, self._world_size, self.task_dict = 0, 1, {}

        model, instance = ModuleType("lmms_eval.api.model"), ModuleType("lmms_eval.api.instance")
        model.lmms, instance.GenerationResult = Base, SimpleNamespace
        for module in (ModuleType("lmms_eval"), ModuleType("lmms_eval.api"), model, instance):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, found)
    return found


def request(*arguments):
    return SimpleNamespace(args=arguments)


# Settings


def test_the_settings_that_most_tasks_have_are_greedy():
    given = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1}
    given |= {"do_sample": False, "until": ["\n\n"], "image_aspect_ratio": "original"}
    assert Settings.of(given) == Settings(16, ("\n\n",), (("num_beams", 1),))
    assert Settings.of({"until": ["\n\n"], "do_sample": False}).max_new_tokens == MOST_NEW_TOKENS
    assert Settings.of({"temperature": None, "until": None}) == Settings()


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"do_sample": True}, {"do_sample": True, "temperature": 1.0}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"temperature": 0.7, "do_sample": False, "top_p": 0.5}, {}),
        ({"temperature": 0, "do_sample": True, "top_k": 1}, {}),
        (
            {"temperature": 0.2, "top_p": 0.9, "top_k": 5},
            {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": 5},
        ),
        ({"repetition_penalty": 1.2, "num_beams": 3}, {"repetition_penalty": 1.2, "num_beams": 3}),
    ],
)
def test_sampling_needs_a_temperature_and_nobody_who_forbids_it(given, expected):
    assert dict(Settings.of(given).options) == expected


@pytest.mark.parametrize(
    "given, said",
    [
        ({"visual_cot": True}, "'visual_cot' cannot be honoured; known are max_new_tokens"),
        ({"stop_sequences": ["a"]}, "'stop_sequences'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number >= 1"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 1.5}, "top_p is 1.5; expected a number from 0 to 1"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; expected true or false"),
        ({"num_beams": 1.5}, "num_beams is 1.5"),
        ({"until": [3]}, "until is a list of 1; expected a text"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad'; expected original"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(given, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        Settings.of(given)


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", max_size=2), max_size=3))
def test_an_answer_ends_at_the_first_of_its_ends(answer, until):
    # By the plain rule: the longest beginning that holds none of the ends.
    kept = next(
        (k for k in range(len(answer)) if any(t and answer.startswith(t, k) for t in until)),
        len(answer),
    )
    assert Settings.of({"until": until}).cut(answer) == answer[:kept]


# Dialogues


def test_pictures_stand_where_the_task_puts_them():
    sample = asking("one <image> of", RED, "and", BLUE, "?").sample()
    assert [part["type"] for part in sample.messages[0]["content"]] == [
        *("text", "image", "text", "image", "text")
    ]
    # What looks like a mark is text: there is no third picture.
    assert sample.messages[0]["content"][0]["text"] == "one <image> of"
    assert sample.images == [RED, BLUE] and sample.origin == "task t, test 3"
    assert Asked(lambda: user_turn([RED, BLUE], "both?"), "t").sample().images == [RED, BLUE]
    assert Asked(lambda: user_turn(None, "text only"), "t").sample().images == []


def test_a_system_message_and_earlier_turns_are_kept():
    shown = [{"role": "user", "content": [{"type": "text", "text": "a?"}]}]
    shown += [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    said = [{"role": "system", "content": "Be short."}, *shown, *parts(RED, "c?")]
    sample = Asked(lambda: said, "t").sample()
    assert [m["role"] for m in sample.messages[:-1]] == ["system", "user", "assistant", "user"]
    assert sample.messages[0]["content"] == [{"type": "text", "text": "Be short."}]


@pytest.mark.parametrize(
    "messages, said",
    [
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "'video'.*no video"),
        ([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "'audio'"),
        ([{"role": "user", "content": [{"type": "image", "url": {"p": 1}}]}], "a picture is dict"),
        ([{"role": "user", "content": ["text"]}], "a message holds null"),
        (parts("a") + parts("b"), "follows another user"),
        ([{"role": "user", "content": []}], "the question is empty"),
        ([{"role": "tool", "content": "x"}], "role"),
        ("What?", "expected a list of messages"),
        ([], "doc_to_messages gave|stands first"),
    ],
)
def test_what_is_no_question_about_pictures_is_refused_by_task_and_record(messages, said):
    with pytest.raises(UserError, match=f"lmms-eval, task t, test 3: .*({said})"):
        Asked(lambda: messages, "task t, test 3").sample()


# Answers

QUESTIONS = [
    ("What is the colour?", RED),
    ("x",),
    (RED, "and", BLUE, "differ?"),
    (BLUE, "?"),
    ("a longer question without any picture at all",),
]


def alone(opened, contents, tokens):
    """The greedy answer to one question, by the function that all evaluation uses."""
    content = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image"}
               for c in contents]  # fmt: skip
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
    pictures = [c for c in contents if not isinstance(c, str)]
    return generate_answers(*opened, [Sample(messages, pictures)], max_new_tokens=tokens)[0]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_answers_are_those_to_each_question_alone_in_the_order_asked(opened, batch_size):
    lengths = [5, 9, 5, 5, 9]
    asked = [
        asking(*contents, length=len(contents), settings=Settings(tokens))
        for contents, tokens in zip(QUESTIONS, lengths, strict=True)
    ]
    expected = [alone(opened, *pair) for pair in zip(QUESTIONS, lengths, strict=True)]
    assert answers_to(*opened, asked, batch_size) == expected
    assert len(set(expected)) > 1


def test_an_answer_is_cut_and_beams_are_what_transformers_makes_of_them(opened):
    model, processor = opened
    whole = alone(opened, QUESTIONS[0], 9)
    end = whole[3]
    (cut,) = answers_to(*opened, [asking(*QUESTIONS[0], settings=Settings(9, (end,)))])
    assert cut == whole[: whole.index(end)] != whole
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}], add_generation_prompt=True
    )
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    made = model.generate(input_ids=ids, num_beams=3, max_new_tokens=6, do_sample=False)
    said = processor.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
    beams = Settings(6, (), (("num_beams", 3),))
    assert answers_to(*opened, [asking("x", settings=beams)]) == [said]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_prompt_leaves_the_room_that_the_model_has(opened, batch_size):
    model, processor = opened
    room = {}
    for count in (20, 140):
        sample = asking("y" * count).sample()
        text = processor.apply_chat_template(sample.messages[:-1], add_generation_prompt=True)
        prompt = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        room[count] = model.config.text_config.max_position_embeddings - len(prompt)
    assert room[140] < room[20] < MOST_NEW_TOKENS
    asked = [asking("y" * count) for count in (20, 140, 20)]
    expected = [alone(opened, ("y" * count,), room[count]) for count in (20, 140, 20)]
    assert answers_to(*opened, asked, batch_size) == expected
    with pytest.raises(UserError, match="task t, test 3: the question has .* at most 200"):
        answers_to(*opened, [asking("y" * 300)])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_losses_are_those_of_the_continuation_read_token_by_token(opened, batch_size):
    model, processor = opened
    texts = ["red", " blue\n", "r"]
    asked = [asking(RED, "colour?", continuation=text) for text in texts]
    found = losses_of(model, processor, asked, batch_size)
    prompt = processor.apply_chat_template(
        asked[0].sample().messages[:-1], add_generation_prompt=True
    )
    for text, (loss, greedy) in zip(texts, found, strict=True):
        whole = processor(text=[prompt + text.strip()], images=[[RED]])
        own = len(processor.tokenizer(text.strip(), add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(**whole).logits[0, -own - 1 : -1].log_softmax(-1)
        tokens = whole["input_ids"][0, -own:]
        assert loss == pytest.approx(-logits[range(own), tokens].mean().item(), rel=1e-4)
        assert greedy == bool((logits.argmax(-1) == tokens).all())


def test_what_greedy_generation_writes_is_told_to_be_greedy():
    # The embedded base, whose answers are words: what a random model writes is no text.
    base = load_flamingo("embedded")
    for question in ("What is a?", "What is b?"):
        asked = asking(RED, question, settings=Settings(3))
        (said,) = answers_to(*base, [asked])
        texts = [said, said + " zebra", "zebra"]
        scored = losses_of(*base, [asked._replace(continuation=text) for text in texts])
        assert said and [greedy for _, greedy in scored] == [True, False, False]


def test_a_continuation_that_cannot_be_scored_is_refused(opened):
    with pytest.raises(UserError, match="a continuation to be scored is empty"):
        losses_of(*opened, [asking("x", continuation=" ")])
    with pytest.raises(UserError, match="has 190 tokens and the model has room for"):
        losses_of(*opened, [asking("x", continuation="z" * 190)])


# The class


def docs(*questions):
    return {"colours": {"test": [{"picture": p, "text": t} for t, p in questions]}}


def messages_of(doc):
    return parts(doc["picture"], doc["text"])


def test_requests_of_six_arguments_are_answered_by_their_document(classes, model_directory, opened):
    chat = classes.Chat(str(model_directory), batch_size="2")
    assert not chat.is_simple and chat.batch_size == 2 and chat.device.type == "cpu"
    assert chat.rank == 0 if INSTALLED else True
    chat.task_dict = docs(("a?", RED), ("b?", BLUE))
    given = {"max_new_tokens": 4, "until": ["\n\n"]}
    requests = [request("b?", messages_of, given, k, "colours", "test") for k in (1, 0)]
    expected = [alone(opened, (p, t), 4) for t, p in (("b?", BLUE), ("a?", RED))]
    assert chat.generate_until(requests) == expected
    with pytest.raises(UserError, match="has 5 arguments, expected 6"):
        chat.generate_until([request("b?", messages_of, given, 1, "colours")])
    simple = classes.Simple(str(model_directory))
    assert simple.is_simple
    simple.task_dict = chat.task_dict
    seen = [request(t, given, lambda d: [d["picture"]], k, "colours", "test")
            for k, t in ((1, "b?"), (0, "a?"))]  # fmt: skip
    assert simple.generate_until(seen) == expected
    with pytest.raises(UserError, match="without --force_simple"):
        simple.generate_until_multi_round([])


def test_choices_are_scored_by_loss_in_the_form_that_lmms_eval_keeps(
    classes, model_directory, opened
):
    simple = classes.Simple(str(model_directory), batch_size=3)
    simple.task_dict = docs(("a?", RED))
    fixed = ("a?", lambda doc: [doc["picture"]], 0, "colours", "test")
    requests = [request(fixed[0], text, *fixed[1:]) for text in (" red", " blue")]
    requests.append(request(fixed[0], lambda doc: doc["text"], *fixed[1:]))
    expected = losses_of(
        *opened, [asking(RED, "a?", continuation=text) for text in ("red", "blue", "a?")]
    )
    found = [result.text for result in simple.loglikelihood(requests)]
    for (loss, greedy), (own, same) in zip(found, expected, strict=True):
        assert loss == pytest.approx(own, rel=1e-4) and greedy == same


def test_rounds_go_on_until_the_task_ends_them(classes, model_directory, opened):
    chat = classes.Chat(str(model_directory), batch_size=8)
    chat.task_dict = docs(("a?", RED), ("b?", BLUE))
    told = []

    def rounds(doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return messages_of(doc)
        told.append((doc["text"], round_idx, list(previous_output), previous_round_info))
        over = round_idx == (2 if doc["text"] == "a?" else 1)
        return parts(doc["picture"], f"again {round_idx}"), over, previous_output, round_idx * 10

    settings = {"max_new_tokens": 4}
    requests = [request("", rounds, settings, k, "colours", "test") for k in (0, 1)]
    first = [alone(opened, (p, t), 4) for t, p in (("a?", RED), ("b?", BLUE))]
    second = alone(opened, (RED, "again 1"), 4)
    assert chat.generate_until_multi_round(requests) == [[first[0], second], [first[1]]]
    assert told == [
        ("a?", 1, [first[0]], None),
        ("b?", 1, [first[1]], None),
        ("a?", 2, [first[0], second], 10),
    ]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({}, "no model is named"),
        ({"pretrained": "x", "dtype": "fp16"}, "'dtype' is unknown; known are pretrained"),
        ({"pretrained": "x", "batch_size": "auto"}, "batch size is 'auto'"),
        ({"pretrained": "x", "batch_size": 0}, "batch size is 0"),
        ({"pretrained": "x", "max_batch_size": 4}, "not found automatically"),
        ({"pretrained": "no_such_model"}, "no_such_model"),
    ],
)
def test_model_arguments_that_cannot_be_honoured_are_refused(classes, arguments, said):
    with pytest.raises(UserError, match=said):
        classes.Chat(**arguments)


def test_another_device_than_the_best_is_refused(classes, model_directory):
    with pytest.raises(UserError, match="--device 'meta', but the model opened on cpu"):
        classes.Chat(str(model_directory), device="meta")
    assert classes.Chat(str(model_directory), device="cpu").device.type == "cpu"


def test_the_entry_point_is_there_and_costs_a_start_of_lmms_eval_little():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["lmms_eval.models"] == {
        "tuninglab": "tuninglab.evaluation.lmms:manifest"
    }
    named = [text for group in project["optional-dependencies"].values() for text in group]
    assert not any("lmms" in text for text in project["dependencies"] + named)
    code = "import sys, tuninglab.evaluation.lmms as door; assert callable(door.manifest); "
    code += (
        "print([name for name in ('torch', 'transformers', 'lmms_eval') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# lmms-eval itself

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output}
doc_to_visual: !function task_functions.pictures
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  top_p: 1.0
  num_beams: 1
  do_sample: false
process_results: !function task_functions.said
metric_list:
  - metric: said
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """
from PIL import Image
def pictures(doc):
    return [Image.open(path) for path in doc["pictures"]]
def said(doc, results):
    return {"said": float(results[0] == doc["answer"])}
def which(doc, results):
    losses = [loss for loss, _ in results]
    return {"said": float(doc["choices"][losses.index(min(losses))] == doc["answer"])}
"""


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed; docs/evaluation_suites.md")
@pytest.mark.parametrize("output", ["generate_until", "multiple_choice"])
def test_lmms_eval_scores_a_task_of_ones_own(output, model_directory, opened, tmp_path):
    from lmms_eval import evaluator
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    rows, right = [], 0
    for number in range(5):
        shown = [RED, BLUE][: number % 3]
        paths = [str(tmp_path / f"{number}{k}.png") for k in range(len(shown))]
        for picture, path in zip(shown, paths, strict=True):
            picture.save(path)
        question, choices = f"colour {number}?", ["red", "blue", "x"]
        if output == "generate_until":
            truth = alone(opened, (*shown, question), 4).strip() if number else "no such answer"
            right += bool(number)
        else:
            asked = [asking(*shown, question, continuation=text) for text in choices]
            losses = [loss for loss, _ in losses_of(*opened, asked)]
            best = choices[losses.index(min(losses))]
            truth, right = ("red", right + (best == "red"))
        rows.append({"pictures": paths, "question": question, "answer": truth, "choices": choices})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task_functions.py").write_text(FUNCTIONS)
    text = TASK.format(name="own_colours", data=tmp_path / "data.jsonl", output=output)
    if output == "multiple_choice":
        head, _, rest = text.partition("generation_kwargs")
        text = head + "doc_to_choice: choices\n" + rest[rest.index("process_results") :]
        text = text.replace("functions.said", "functions.which")
    (tmp_path / "own_colours.yaml").write_text(text)
    simple = output == "multiple_choice"
    # By the entry point, as the command finds it.
    model = get_model("tuninglab", force_simple=simple)
    results = evaluator.simple_evaluate(
        model=model.create_from_arg_string(f"pretrained={model_directory},batch_size=2"),
        tasks=["own_colours"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        force_simple=simple,
        cli_args=SimpleNamespace(process_with_media=True, output_path=None),
    )
    assert results["results"]["own_colours"]["said,none"] == pytest.approx(right / len(rows))
