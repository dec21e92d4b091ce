import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from PIL import Image

from tuninglab import cli
from tuninglab.config import FinetuneConfig
from tuninglab.config.flags import parse
from tuninglab.data.prompt import IGNORED, encode_dialogue, make_prompt
from tuninglab.data.reading.opening import read_samples
from tuninglab.models.build import add_flamingo_tokens, load_flamingo
from tuninglab.reporting import data_text
from tuninglab.reporting.data_reader import open_reader
from tuninglab.reporting.data_shown import shown, some_of
from tuninglab.reporting.tables import MOST_LETTERS, visible

NASTY = "<script>alert('x')</script> & \"quotes\" \x1b[31m \u202e"
WHOLE = ("records", "usable", "bad", "samples", "duplicates", "contradictions")


def record(question, answer, *pictures, **more):
    content = "<image>" * len(pictures) + question
    turns = [("user", content), ("assistant", answer)]
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"messages": messages, "images": list(pictures), **more}


GOOD = [record("Which colour?", "red", "a.png"), record("Which colour?", "blue", "b.png")]


@pytest.fixture(scope="module")
def model(tiny_bases):
    return str(tiny_bases["plain"])


@pytest.fixture
def write(tmp_path):
    """A function (records or lines, name) -> the path of a file of them, pictures beside it."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    Image.new("RGB", (9, 6), "blue").save(tmp_path / "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])

    def write(rows, name="my data.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    return write


@pytest.fixture
def look(capsys, model):
    """A function (words, code) -> what the verb prints: JSON as figures, and standard error."""

    def look(*words, code=0):
        named = [] if "--model" in words else ["--model", model]
        assert cli.main(["data", *map(str, words), *named]) == code
        said = capsys.readouterr()
        look.said = said.err
        return json.loads(said.out) if "--json" in words and said.out else said.out

    return look


BROKEN = {
    "missing picture": (record("q", "a", "nope.png"), "does not exist"),
    "corrupt picture": (record("q", "a", "cut.png"), "damaged"),
    "picture elsewhere": (record("q", "a", "/etc/hostname"), "leads out of the image root"),
    "broken line": ('{"messages": [}', "broken JSON at column 15"),
    "empty answer": (record("q", " "), "message 2: the answer is empty"),
    "marks disagree": (record("<image>q", "a"), "1 <image> marks in the messages but 0 images"),
    "too long": (record("q", "a" * 300), "tokens, at most 256 (what the language model can read"),
    "wrong roles": ({"messages": [{"role": "robot", "content": "x"}]}, "the role is 'robot'"),
    "unknown key": ({"dialog": "x"}, "no known format has the keys 'dialog'"),
    "no object": ("3", "the record is 3; expected an object"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_named_as_finetune_names_it(kind, write, look):
    row, text = BROKEN[kind]
    path = write([*GOOD, row])
    figures = look(path, "--json", code=2)
    (problem,) = figures["problems"]
    assert problem["origin"] == f"{path}, line 3" and text in problem["text"]
    assert f"{path}, line 3: {problem['text']}" in look.said
    assert "--skip_bad_records" in look.said and "Traceback" not in look.said
    assert (figures["records"], figures["usable"], figures["bad"]) == (3, 2, 1)
    wrong = [figures["pictures"][key] for key in ("missing", "corrupt", "refused")]
    assert wrong == [kind == "missing picture", kind == "corrupt picture", "elsewhere" in kind]
    assert figures["tokens"]["overlong"] == (kind == "too long")
    left = look(path, "--json", "--skip_bad_records", code=0)
    changed = ("problems", "command")
    assert {k: v for k, v in left.items() if k not in changed} == {
        k: v for k, v in figures.items() if k not in changed
    }
    assert "--skip_bad_records" in shlex.split(figures["command"])


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b'{"messages": "\xff"}\n', "UTF-8"), (b"[{]", "JSON")],
)
def test_a_file_that_cannot_be_read_prints_no_figures(content, text, tmp_path, look):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert text in look(path, "--json", code=2) or text in look.said


def test_without_a_usable_record_nothing_can_be_left_out(write, look):
    path = write([record("q", "")])
    figures = look(path, "--json", "--skip_bad_records", code=2)
    assert (figures["records"], figures["usable"], figures["samples"]) == (1, 0, 0)
    assert "No usable record is left" in look.said
    assert look(path, "--show", 2, code=2).strip() == "data: 1 record, 0 usable, 1 with problems"


def test_the_first_twenty_mistakes_are_said_and_all_are_in_the_figures(write, look):
    path = write([*GOOD, *[record("q", "") for _ in range(30)]])
    figures = look(path, "--json", code=2)
    assert len(figures["problems"]) == figures["bad"] == 30
    assert look.said.count("the answer is empty") == 20 and "and 10 more" in look.said


def test_figures_of_hand_made_data(write, look):
    rows = [*GOOD, GOOD[0], record("Which colour?", "green", "b.png"), record("Hm?", "猫")]
    figures = look(write(rows), "--json")
    assert all(type(figures[name]) is int for name in WHOLE)
    assert [figures[name] for name in WHOLE] == [5, 5, 0, 5, 1, 1]
    assert isinstance(figures["format"], str) and figures["problems"] == []
    pictures = figures["pictures"]
    assert (pictures["uses"], pictures["unique"]) == (4, 2)
    assert pictures["width"] == {"min": 8, "median": 8, "max": 9}
    assert {row["text"]: row["share"] for row in figures["answers"]} == {
        "red": 0.4,
        "blue": 0.2,
        "green": 0.2,
        "猫": 0.2,
    }
    assert figures["blind"] == {"most_frequent": 0.4, "by_question": 0.4, "exact": True}
    assert [row["text"] for row in figures["scripts"]] == ["Latin", "Han"]
    assert figures["example"]["answer"] == "red" and figures["example"]["pictures"] == ["a.png"]
    assert figures["validation"] is None and figures["shown"] == []


def test_tokens_are_those_of_training(write, look, model):
    path = write([*GOOD, record("Hm?", "猫 a longer one")])
    tokenizer = load_flamingo(model)[1].tokenizer
    rows = [encode_dialogue(s.messages, tokenizer) for s in read_samples(path)]
    figures = look(path, "--json")["tokens"]
    assert figures["total"] == sum(len(row.input_ids) for row in rows)
    assert figures["longest"] == max(len(row.input_ids) for row in rows)
    assert figures["trained"] == sum(label != IGNORED for row in rows for label in row.labels)
    assert figures["longest_origin"] == f"{path}, line 3"
    assert (figures["tokenizer"], figures["most"]) == (model, 256)
    assert look(path, "--max_tokens", 5, "--json", code=2)["tokens"]["most"] == 5


def test_the_prompt_of_the_training_reads_the_records(write, look, model, tmp_path):
    path = write([*GOOD, record("Hm?", "猫 a longer one")])
    tokenizer = load_flamingo(model)[1].tokenizer
    otter = make_prompt("otter", tokenizer)
    rows = [encode_dialogue(s.messages, tokenizer, otter) for s in read_samples(path)]
    for _ in range(2):  # counted, and then remembered
        figures = look(path, "--prompt", "otter", "--show", 1, "--json")
        tokens = figures["tokens"]
        assert tokens["total"] == sum(len(row.input_ids) for row in rows)
        assert tokens["trained"] == sum(label != IGNORED for row in rows for label in row.labels)
    assert "".join(span["text"] for span in figures["shown"][0]["spans"]) == tokenizer.decode(
        rows[0].input_ids
    )
    words = shlex.split(figures["command"])
    assert words[words.index("--prompt") + 1] == "otter"
    bad = write([{**GOOD[0], "system": "Be brief."}], "bad.jsonl")
    assert look(bad, "--prompt", "multimodal_gpt", code=2) == ""
    assert f"{bad}, line 1: " in look.said and "system message" in look.said
    look(path, "--prompt", "ottr", code=2)
    assert "Did you mean otter?" in look.said


def test_validation_data_is_compared(write, look):
    train = write([*GOOD, record("Hm?", "no")])
    val = write([GOOD[1], record("Other?", "red", "a.png"), record("Hm?", "no")], "val.jsonl")
    found = look(train, "--val_data", val, "--json")["validation"]
    assert (found["records"], found["usable"], found["duplicates"]) == (3, 3, 2)
    shared = found["shared"]
    assert (shared["pictures"], shared["samples"]) == (2, 2)
    assert shared["examples"] == [f"{val}, line 1", f"{val}, line 2"]
    # Of "Which colour?" red came first; another question is answered as all are most often.
    assert found["guessed"] == pytest.approx(2 / 3)
    broken = write([record("q", "")], "val.jsonl")
    figures = look(train, "--val_data", broken, "--json", "--skip_bad_records", code=2)
    assert figures["problems"][0]["origin"] == f"{broken}, line 1" and figures["bad"] == 0


def test_a_mixture_says_how_often_an_epoch_goes_through_each_set(write, look, tmp_path):
    one, two = write([*GOOD] * 5), write([*GOOD], "two.jsonl")
    recipe = tmp_path / "mix.yaml"
    sets = [{"path": str(one), "weight": 1}, {"path": str(two), "weight": 3}]
    recipe.write_text(json.dumps({"data": sets, "mix": {"epoch_rows": 40}}))
    figures = look("--config", recipe, "--json")
    assert [(s["rows"], s["share"], s["passes"]) for s in figures["sets"]] == [
        (10, 0.25, 1.0),
        (30, 0.75, 15.0),
    ]
    assert figures["records"] == 12
    words = shlex.split(figures["command"])
    assert "--data" not in words and words[words.index("--config") + 1] == str(recipe)
    assert "An epoch:" in look("--config", recipe)
    part = look(f"{one}#3", "--json")
    assert (part["records"], part["samples"], part["usable"]) == (10, 3, 3)


def test_the_command_at_the_end_is_one_that_finetune_takes(write, look, tmp_path, model):
    path = write([*GOOD, record("q", "a" * 300)])
    root = tmp_path
    given = ["--image_root", root, "--keep_marks", "--check", "headers", "--json"]
    command = look(path, *given, "--skip_bad_records")["command"]
    config = parse("finetune", FinetuneConfig, shlex.split(command.partition("finetune ")[2]))
    assert (config.data, config.model, config.image_root) == (str(path), model, str(root))
    assert (config.keep_marks, config.check, config.val_split) == (True, "headers", 0.1)
    assert (config.skip_bad_records, config.max_tokens) == (True, 256)
    command = look(path, "--val_data", path, "--json", code=2)["command"]
    config = parse("finetune", FinetuneConfig, shlex.split(command.partition("finetune ")[2]))
    assert (config.val_data, config.val_split) == (str(path), 0.0)
    # One picture in all records: nothing can be held out.
    assert "--val_split" not in look(write([GOOD[0]] * 5), "--json")["command"]


def test_records_are_shown_as_the_model_reads_them(write, look, model):
    path = write([*GOOD, record("Hm?", "猫")])
    tokenizer = load_flamingo(model)[1].tokenizer
    figures = look(path, "--show", 3, "--json")
    text = look(path, "--show", 3)
    samples = read_samples(path)
    assert [one["origin"] for one in figures["shown"]] == [s.origin for s in samples]
    for one, sample in zip(figures["shown"], samples, strict=True):
        ids, labels = encode_dialogue(sample.messages, tokenizer)
        assert "".join(span["text"] for span in one["spans"]) == tokenizer.decode(ids)
        learned = [span["text"] for span in one["spans"] if span["trained"]]
        answer = tokenizer.decode([label for label in labels if label != IGNORED])
        assert learned == [answer] and f"⟦{answer}⟧" in text
        names = [span["picture"] for span in one["spans"] if span["picture"]]
        assert names == [path.name for path in sample.images]
    assert "<image>(a.png)Which colour?" in text and "### Instruction:" in text


def test_on_a_terminal_what_is_learned_is_coloured(write, look, monkeypatch):
    path = write(GOOD)
    plain = look(path, "--show", 2)
    monkeypatch.setattr(data_text, "shows_colours", lambda: True)
    coloured = look(path, "--show", 2)
    assert re.search("\x1b\\[1;32mred<\\|endofchunk\\|>\x1b\\[0m", coloured)
    bare = re.sub("\x1b\\[[0-9;]*m", "", coloured).replace("in colour", "in ⟦ ⟧")
    assert bare == plain.replace("⟦red<|endofchunk|>⟧", "red<|endofchunk|>").replace(
        "⟦blue<|endofchunk|>⟧", "blue<|endofchunk|>"
    )


def test_texts_of_strangers_do_not_move_the_cursor(write, look):
    path = write([record(NASTY, NASTY, id=NASTY), *GOOD])
    text = look(path, "--show", 3)
    assert "\x1b" not in text and "\u202e" not in text
    assert "\\x1b[31m \\u202e" in text
    assert visible("a\u200db\u200c\n\t猫\x07\ud800") == "a\u200db\u200c\n\t猫\\x07\\ud800"


def test_several_pictures_and_very_long_pieces(write, model):
    long = record("q", "a" * 9000, "a.png", "b.png")
    (sample,) = read_samples(write([long]))
    found = shown(sample, open_reader(model).tokenizer)
    assert [span.picture for span in found.spans[1:3]] == ["a.png", "b.png"]
    printed = data_text.record_text(found, coloured=False)
    assert "letters more" in printed and len(printed) < MOST_LETTERS + 300


def test_some_samples_from_all_over(write):
    sources = [read_samples(write([record("q", str(n)) for n in range(10)]))] * 2
    answers = [s.messages[1]["content"][0]["text"] for s in some_of(sources, 3)]
    assert answers == ["0", "0", "9"] or answers == ["0", "9", "9"]
    assert len(some_of(sources, 100)) == 20 and some_of(sources, 0) == some_of([], 5) == []


class Checker(HTMLParser):
    """Collects tags, texts and sources; every element that must be closed is, in order."""

    VOID = {"meta", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.sources, self.marked = [], [], "", [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.marked += data if self.open and self.open[-1] == "mark" else ""


def test_the_page_is_whole_and_escaped(write, look, tmp_path):
    bad = record("q", "", id=NASTY)
    path = write([record(NASTY, NASTY, "a.png"), *GOOD, bad], "<b>my & data.jsonl")
    page = tmp_path / "page.html"
    look(path, "--html", page, code=2)
    checker = Checker()
    content = page.read_text(encoding="utf-8")
    checker.feed(content)
    assert checker.open == [] and not {"script", "link", "iframe", "b"} & set(checker.tags)
    assert checker.tags.count("img") == 3 and checker.tags.count("rect") >= 1
    assert all(source.startswith("data:image/jpeg;base64,") for source in checker.sources)
    assert "\x1b" not in content and "\u202e" not in content
    said = visible(NASTY)
    assert f"{said}<|endofchunk|>" in checker.marked and "red<|endofchunk|>" in checker.marked
    assert "the answer is empty" in checker.text and "<b>my & data.jsonl" in checker.text
    # Nothing is fetched, from nowhere.
    assert not re.search(r"https?://|url\(|@import", content)
    assert "prefers-color-scheme: dark" in content


def test_the_page_shows_as_many_records_as_asked(write, look, tmp_path):
    path, page = write([record("q", f"answer {n}") for n in range(20)]), tmp_path / "page.html"
    for words, count in (((), 12), (("--show", 3), 3), (("--show", 0), 0)):
        look(path, "--html", page, *words)
        assert page.read_text().count('class="record"') == count


def test_the_tokenizer_of_a_run_of_a_language_model_and_of_the_embedded_base(
    run_folder, model_directory, tmp_path, take_apart, tiny_flamingo, tiny_bases, write, look
):
    assert open_reader(str(run_folder)).base == str(model_directory)
    lang, _ = take_apart(tiny_flamingo(), tmp_path)
    own = load_flamingo(tiny_bases["plain"])[1].tokenizer
    own.save_pretrained(lang)
    found = open_reader(str(lang))
    assert (found.flamingo, found.longest) == (False, 256)
    messages = read_samples(write(GOOD))[0].messages
    assert encode_dialogue(messages, found.tokenizer) == encode_dialogue(messages, own)
    command = look(write(GOOD), "--model", lang, "--json")["command"]
    assert f"--lang_encoder {lang} --vision_encoder" in command
    embedded, whole = open_reader("embedded"), load_flamingo("embedded")
    assert encode_dialogue(messages, embedded.tokenizer) == encode_dialogue(
        messages, whole[1].tokenizer
    )
    assert embedded.longest == whole[0].config.text_config.max_position_embeddings
    assert (
        embedded.flamingo
        and "--model"
        not in look(write(GOOD), "--model", "embedded", "--json")["command"].split("finetune")[1]
    )
    assert add_flamingo_tokens(embedded.tokenizer) is not None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "No data is named"),
        (["nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["https://x/y.jsonl"], "addresses are not fetched"),
        (["{path}", "--show", "-1"], "--show is -1"),
        (["{path}", "--max_tokens", "0"], "--max_tokens is 0"),
        (["{path}", "--check", "some"], "--check is 'some'"),
        (["{path}", "--html", "{path}"], "expected a name that ends in .html"),
        (["{path}", "--html", "nowhere/page.html"], "there is no folder nowhere"),
        (["{path}", "--model", "nowhere"], "there is no directory nowhere"),
        (["{path}", "--image_root", "nowhere"], "the image root nowhere is no folder"),
    ],
)
def test_wrong_settings(words, text, write, look):
    path = str(write(GOOD))
    assert look(*[word.format(path=path) for word in words], code=2) == ""
    assert text in look.said and "Traceback" not in look.said
