import base64
import json
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tuninglab import cli
from tuninglab.errors import UserError
from tuninglab.reporting.loss_picture import draw_curves
from tuninglab.reporting.report import write_report
from tuninglab.reporting.run_files import read_final
from tuninglab.reporting.tables import fact, looking

NASTY = "<script>alert('x')</script> & \"quotes\""


def score(share, **more):
    return {"exact_match": share, "by_type": {"colour": share, "count": share}, "count": 40, **more}


def figures(before=0.1, after=0.9, **more):
    controls = {"blank": score(0.3), "shuffled": score(0.35), "prior": score(0.4)}
    evaluation = {"before": score(before), "after": score(after), "controls": controls}
    train = {"steps": 3, "first_loss": 2.5, "last_loss": 0.5, "trainable_parameters": 12345}
    return {"run_name": "demo", "train": train, "evaluation": evaluation, **more}


@pytest.fixture
def run(tmp_path):
    """A run folder as the demo leaves it, with names that would break unescaped HTML."""
    folder = tmp_path / "demo"
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "pictures" / "000.png")
    (folder / "report.json").write_text(json.dumps(figures(task=NASTY, adapter_bytes=54321)))
    steps = [{"step": i, "loss": 2.5 / i, "learning_rate": 1e-3} for i in (1, 2, 3)]
    lines = [json.dumps(step) for step in steps] + ['{"step": 3, "val_loss": 1.0}', ""]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "config.yaml").write_text("seed: 3\ntuning_config: {r: 16, modules_to_save: []}\n")
    choice = {"choice": "precision", "value": "bf16", "reason": f"this CPU has it {NASTY}"}
    (folder / "environment.json").write_text(
        json.dumps({"versions": {"torch": "2.13.0"}, "command": ["a", NASTY], "choices": [choice]})
    )
    rows = [{"module": "lang_encoder.*.q_proj", "dtype": "float32", "parameters": 4096}]
    (folder / "trainable.json").write_text(json.dumps(rows))
    card = {"picture": "pictures/000.png", "question": NASTY, "type": "colour", "group": NASTY}
    answers = {"truth": "红色", "before": NASTY, "after": "红色"}
    (folder / "answers.json").write_text(json.dumps([card | answers]))
    return folder


class Checker(HTMLParser):
    """Collects text, and whether every element that must be closed is, in order."""

    VOID = {"meta", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.sources = [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(run):
    checker = Checker()
    checker.feed(write_report(run).read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


def test_the_page_shows_figures_answers_settings_and_reasons(run):
    text = re.sub(r"\s+", " ", parsed(run).text)
    for part in (
        *("10.0 %", "90.0 %", "40.0 %", "30.0 %", "35.0 %", "colour", "Prior", "Blank", "Shuffled"),
        *("12,345", "53 KiB", "lang_encoder.*.q_proj", "4,096", "tuning_config.r", "2.13.0"),
        *("precision", "this CPU has it", "红色", "✓ right", "✗ wrong"),
    ):
        assert part in text


def test_every_value_is_escaped(run):
    page = parsed(run)
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 5


def test_the_page_stands_alone_with_its_picture_inside(run):
    page = parsed(run)
    assert len(page.sources) == 1
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    inside = base64.b64decode(page.sources[0].partition(",")[2])
    assert inside == (run / "pictures" / "000.png").read_bytes()


def test_it_is_the_same_every_time(run):
    first = (write_report(run).read_bytes(), (run / "loss.png").read_bytes())
    assert (write_report(run).read_bytes(), (run / "loss.png").read_bytes()) == first


@pytest.mark.parametrize(
    ("before", "after", "said", "unsaid"),
    [
        (0.1, 0.9, "Exactly right", "Little moved"),
        (0.5, 0.515, "Little moved", "got worse"),
        (0.5, 0.3, "got worse", "Little moved"),
    ],
)
def test_the_headline_says_how_far_it_moved(run, before, after, said, unsaid):
    report = figures(before, after)
    report["evaluation"]["controls"] = {}
    (run / "report.json").write_text(json.dumps(report))
    text = parsed(run).text
    assert said in text
    assert unsaid not in text


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (0.9, "90.0 % exactly right, 40.0 % without looking (prior): looking is worth 50.0 points"),
        (0.4, "it did not learn to look"),
    ],
)
def test_the_headline_says_what_looking_is_worth(run, after, said):
    (run / "report.json").write_text(json.dumps(figures(0.1, after)))
    assert said in parsed(run).text


@pytest.mark.parametrize(
    ("after", "questions", "doubt"),
    [(0.333, 6, True), (0.8, 6, True), (1.0, 6, False), (0.5, 1000, False), (0.5, None, False)],
)
def test_few_questions_can_be_right_by_chance(after, questions, doubt):
    said = looking(after, {"blank": 0.167, "prior": 0.4 if after > 0.4 else 0.1}, questions)
    assert "looking is worth" in said
    assert ("can be chance" in said) == doubt


def test_losses_stand_beside_those_of_guessing(run):
    report = figures(0.1, 0.9)
    for name, loss in (("before", 14.6), ("after", 1.3), ("prior", 0.4), ("chance", 6.9)):
        report["evaluation"].setdefault(name, {})["val_loss"] = loss
    (run / "report.json").write_text(json.dumps(report))
    text = parsed(run).text
    for row in (
        "validation loss after 1.300",
        "loss of blind guessing 6.900",
        "loss of knowing how frequent the answers are 0.400",
    ):
        name, value = row.rsplit(" ", 1)
        assert re.search(rf"{name}\s*{re.escape(value)}", text), row


def test_own_data_shows_the_validation_loss(run):
    evaluation = {"before": {"val_loss": 3.0}, "after": {"val_loss": 1.5}, "controls": {}}
    (run / "report.json").write_text(json.dumps({"evaluation": evaluation}))
    text = parsed(run).text
    assert "3.000" in text and "1.500" in text
    assert "Validation loss" in text
    assert "No questions were answered" in text


def test_of_several_starts_the_last_is_shown(run):
    def environment(content):
        (run / "environment.json").write_text(json.dumps(content))
        return re.sub(r"\s+", " ", parsed(run).text)

    first, last = (
        {"versions": {"torch": "2.12.0"}},
        {"versions": {"torch": "2.13.0"}, "choices": []},
    )
    text = environment([first, first, last])
    assert "2.13.0" in text and "2.12.0" not in text and "started 3 times" in text
    # One start needs no words, and runs of the first versions kept one without a list.
    assert environment([last]) == environment(last)
    assert "started" not in environment(last)
    for nothing in ([], {}, 3):
        assert "Environment" not in environment(nothing)


def test_without_held_out_data_it_says_so(run):
    (run / "report.json").write_text(json.dumps(figures(evaluation={})))
    text = parsed(run).text
    assert "2.500" in text and "0.500" in text
    assert "--val_split" in text


def test_counts_by_type_and_groups_are_shown_where_known(run):
    after = score(0.9, count_by_type={"colour": 13}, by_group={"unseen": {"exact_match": 0.77}})
    (run / "report.json").write_text(json.dumps({"evaluation": {"before": after, "after": after}}))
    text = parsed(run).text
    assert "13" in text and "unseen" in text and "77.0 %" in text


def test_the_best_validation_is_said_and_any_right_answer_counts(run):
    best = {"step": 5, "metric": "exact_match", "value": 0.5}
    stopped = {"step": 8, "reason": "no exact_match better"}
    (run / "report.json").write_text(
        json.dumps({"train": {"best": best, "stopped_early": stopped}})
    )
    card = {"question": "Colour?", "truth": "red", "also_right": ["crimson"], "before": "blue"}
    cards = [card | {"after": after} for after in ("crimson", "red", "pink")]
    (run / "answers.json").write_text(json.dumps(cards))
    text = parsed(run).text
    assert "step 5, metric exact_match, value 0.5" in text and "best validation" in text
    assert "step 8, reason no exact_match better" in text
    assert text.count("✓ right") == 2 and text.count("✗ wrong") == 4


def test_the_least_run_folder_is_enough(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    assert "No figures" in parsed(tmp_path).text


def test_values_of_the_wrong_kind_are_left_out(run):
    odd = {"train": [1], "evaluation": {"after": 3, "before": {"exact_match": "x"}}}
    (run / "report.json").write_text(json.dumps(odd))
    (run / "metrics.jsonl").write_text('{"step": "x", "loss": NaN}\n{"loss": 1' + "0" * 400 + "}\n")
    assert "No figures" in parsed(run).text


def test_pictures_outside_the_run_are_not_taken_in(run):
    Image.new("RGB", (4, 4)).save(run.parent / "secret.png")
    cards = [{"picture": name} for name in ("../secret.png", str(run.parent / "secret.png"), "x")]
    (run / "answers.json").write_text(json.dumps(cards))
    page = parsed(run)
    assert page.sources == []
    assert page.text.count("is missing") == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", "{"),
        ("report.json", "[]"),
        ("report.json", "[" * 100_000),
        ("metrics.jsonl", '{"step": 1}\n{"st'),
        ("metrics.jsonl", "3\n"),
        ("answers.json", "{}"),
        ("answers.json", "[3]"),
        ("environment.json", "{"),
        ("config.yaml", "a: [1"),
        ("trainable.json", b"\xff\xfe"),
    ],
)
def test_a_broken_file_is_named(run, name, content):
    data = content if isinstance(content, bytes) else content.encode()
    (run / name).write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(run / name))):
        write_report(run)


def test_no_run_no_report(tmp_path):
    for place, said in ((tmp_path / "none", "no such folder"), (tmp_path, "not a run folder")):
        with pytest.raises(UserError, match=said):
            write_report(place)


def test_the_verb_prints_the_page_or_the_figures(run, capsys):
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert cli.main(["report", "--json", str(run)]) == 0
    assert json.loads(capsys.readouterr().out) == read_final(run)
    assert cli.main(["report", str(run / "none")]) == 2


def test_what_a_run_cost_is_said_in_words_with_units(run):
    text = write_report(run).read_text()
    assert "adapter bytes" not in text and "wall s" not in text
    assert re.search(r"size of the adapter</th><td>53 KiB<", text)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("wall_s", 0.84, ("time", "0.8 s")),
        ("wall_s", 12.3, ("time", "12 s")),
        ("wall_s", 200.2, ("time", "3 min 20 s")),
        ("wall_s", 7500, ("time", "2 h 5 min")),
        ("peak_memory_mib", 812.3, ("peak memory", "812 MiB")),
        ("peak_memory_mib", 12_345.6, ("peak memory", "12.06 GiB")),
        ("adapter_bytes", 825_331, ("size of the adapter", "806 KiB")),
        ("trainable_parameters", 202_758, ("trainable parameters", "202,758")),
        ("wall_s", None, ("time", "–")),
    ],
)
def test_a_figure_in_words(name, value, said):
    assert fact(name, value) == said


@pytest.mark.parametrize(("last", "scale"), [(0.03, "log"), (3.0, "linear"), (0.0, "linear")])
def test_a_loss_that_falls_far_gets_a_logarithmic_axis(last, scale, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda f, path, **_: drawn.append(f) or path.touch())
    draw_curves([{"step": 1, "loss": 7.0}, {"step": 2, "loss": last}], tmp_path / "loss.png")
    assert drawn[0].axes[0].get_yscale() == scale


def test_the_last_column_stays_in_sight(run):
    text = write_report(run).read_text()
    (row,) = re.findall(r'<tr class="all">.*?</tr>', text, re.S)
    assert re.findall(r'<td class="(\w+) last"', row) == ["after"]
    assert ".accuracy .last { position: sticky; right: 0;" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"step": 1e308, "loss": 1}\n{"step": 2, "loss": 1e308}\n'),
        ("metrics.jsonl", '{"step": -1e308, "loss": -1e308, "val_loss": 1e300}\n'),
        ("environment.json", '[{"choices": 3, "processes": "two"}]'),
        ("answers.json", json.dumps([{"picture": "a\0.png"}])),
        ("answers.json", json.dumps([{"picture": "a" * 5000 + ".png"}])),
        ("answers.json", json.dumps([{"question": "\ud800", "truth": "\udfff"}])),
    ],
)
def test_strange_values_leave_a_page(run, name, content):
    (run / name).write_text(content)
    parsed(run)


@pytest.mark.parametrize(
    "name",
    ["report.json", "metrics.jsonl", "environment.json", "answers.json", "config.yaml"],
)
def test_a_pipe_in_the_place_of_a_file_is_named(run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(UserError, match=re.escape(str(run / name))):
        write_report(run)


def test_a_pipe_in_the_place_of_the_drawing_is_replaced(run):
    (run / "loss.png").unlink(missing_ok=True)
    os.mkfifo(run / "loss.png")
    assert parsed(run) and (run / "loss.png").is_file()


def test_settings_that_unfold_beyond_memory_are_refused(run):
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    pairs = zip(names, names[1:], strict=False)
    lines += [f"{n}: &{n} [{', '.join([f'*{b}'] * 9)}]" for b, n in pairs]
    (run / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="config.yaml.*references"):
        write_report(run)
