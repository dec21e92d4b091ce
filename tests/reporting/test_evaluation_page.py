import base64
import hashlib
import json
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reporting.evaluations import least, picture, row, score, whole
from tests.reporting.test_report import Checker
from tuninglab.reporting import evaluation_cards
from tuninglab.reporting.evaluation_cards import MOST_CARDS, choose, gallery, state
from tuninglab.reporting.evaluation_page import confusion_rows, page, write_evaluation

NASTY = "</script><script>alert('x')</script> & \"quotes\" {{ 7 * 7 }} \x1b[31m \u202e \ud800"
SEEN = "</script><script>alert('x')</script> & \"quotes\" {{ 7 * 7 }} \\x1b[31m \\u202e \\ud800"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Page(Checker):
    """Elements with their attributes, in order; tags are balanced."""

    VOID = {"meta", "img", "input"}

    def __init__(self, text):
        super().__init__()
        self.elements, self.labelled, self.script = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if "label" in self.open:
            self.labelled.append(tag)

    def handle_data(self, data):
        super().handle_data(data)
        if "script" in self.open:
            self.script += data

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def cards(self):
        return [one for one in self.of("figure") if "data-is" in one]

    @property
    def words(self):
        return re.sub(r"\s+", " ", self.text)


@pytest.fixture
def made():
    answers = [row(1), row(2, 0.0), row(3, 0.5), row(4)]
    answers[0]["images"], answers[1]["images"] = [picture()], [picture()] * 3
    answers[1]["against"] = "red"
    return Page(page(whole(), answers))


def test_the_page_shows_figures_controls_parts_and_answers(made):
    for said in (
        *("75.0 %", "70.0–80.0", "exact match, 4 questions of test.jsonl"),
        *("looking is worth 35.0 points (+20.0 to +50.0)", "ANLS", "Against embedded: 1 gained"),
        *("By type of question", "By group", "By answer", "What was answered instead"),
        *("train.json", "1 record was left out", "nested.beams", "12.5", "1 min 15 s"),
        *("✗ wrong", "✓ right", "◐ 0.50", "All 4 answers"),
    ):
        assert said in made.words
    # What was wrong comes first, the question and what was said without looking beside it.
    assert [one["data-is"] for one in made.cards] == [
        *("wrong changed lost", "partly same", "right same gained", "right changed"),
    ]
    first = made.words.partition("All 4 answers")[2]
    parts = ("Which colour?", "blue", "✗ wrong", "Right", "red", "Blank", "grey", "Shuffled")
    assert re.search(".*?".join(map(re.escape, parts)), first)
    assert len(made.of("img")) == 4


def test_foreign_texts_stay_texts():
    content = page(whole(NASTY), [row(1, 0.0, NASTY, against=NASTY), row(2, 1.0, NASTY)])
    made = Page(content)
    # One script, the page's own, and none of the elements that a text might have opened.
    assert made.tags.count("script") == 1 and "alert" not in made.script
    assert not {"b", "iframe", "link", "object"} & set(made.tags)
    assert made.text.count(SEEN) >= 30
    for hidden in ("\x1b", "\u202e", "\ud800", "49"):
        assert hidden not in content
    # Where keys are read by the script, and in styles, nothing foreign stands.
    for _, attrs in made.elements:
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("style", "class", "id", "href", "value") or name.startswith("data-"):
                assert re.fullmatch(r"[#\w .:;%-]*", value or ""), (name, value)


@pytest.mark.parametrize("figures", [whole(), whole(NASTY)])
def test_nothing_is_fetched_and_no_other_script_can_run(figures):
    content = page(figures, [row(1, images=[picture()])])
    made = Page(content)
    assert all(one.startswith(("#", "data:image/jpeg;base64,")) for one in made.sources)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|innerHTML", content)
    (policy,) = [one["content"] for one in made.of("meta") if "http-equiv" in one]
    value = base64.b64encode(hashlib.sha256(made.script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{value}'"
    )


def test_what_is_missing_is_left_out():
    made = Page(page(least(), []))
    assert "75.0 %" in made.words and "nothing tells whether it looks" in made.words
    for absent in ("By type", "By answer", "Against", "Answers", "Settings", "Automatic"):
        assert absent not in made.words
    assert "script" not in made.tags


def test_an_answer_needs_no_more_than_itself():
    answers = [{"id": 7, "question": "", "answers": [], "prediction": "", "score": None}]
    made = Page(page(least(), answers))
    assert "(nothing)" in made.words and [one["data-is"] for one in made.cards] == [""]


def test_the_page_can_be_used_without_seeing_and_without_a_mouse(made):
    assert all(one.get("alt") for one in made.of("img"))
    fields = [tag for tag in made.tags if tag in ("input", "select")]
    assert len(fields) >= 6
    assert [tag for tag in made.labelled if tag in ("input", "select")] == fields
    ids = [attrs["id"] for _, attrs in made.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    links = [one["href"] for one in made.of("a")]
    assert len(links) == 7 and {one[1:] for one in links} <= set(ids)
    # Tables that are wider than a phone are moved by the arrow keys.
    regions = [one for one in made.of("div") if one.get("role") == "region"]
    assert len(regions) == 7
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in regions)


def test_without_a_script_all_cards_are_there_and_no_dead_filter(made):
    assert not [one for one in made.cards if "hidden" in one]
    assert [("hidden" in one) for one in made.of("form")] == [True]


def test_a_large_evaluation_has_a_small_page():
    text = "a very long text " * 1000
    answers = [row(n, float(n % 2), question=text, prediction=text) for n in range(3000)]
    content = page(least(), answers)
    assert len(Page(content).cards) == MOST_CARDS
    assert "300 of 3,000 answers: 200 of 1,500 that are not right, then 100 of 1,500" in content
    assert len(content) < 1_000_000


def test_pictures_have_their_room(monkeypatch):
    answers = [row(n, 0.0, images=[picture()]) for n in range(10)]
    small = len(gallery(least(), answers).cards[0]["pictures"][0])
    monkeypatch.setattr(evaluation_cards, "MOST_THUMBNAILS", 3 * small)
    cards = gallery(least(), answers).cards
    assert [len(card["pictures"]) for card in cards] == [1, 1, 1] + [0] * 7
    assert [card["more"] for card in cards] == [0, 0, 0] + [1] * 7


def test_a_picture_that_is_gone_is_said():
    made = Page(page(least(), [row(1, 0.0, images=["/nowhere/a.png"])]))
    assert "This picture can no longer be read." in made.words and not made.of("img")


def test_equal_answers_are_told_once():
    answers = ["red"] * 3 + ["crimson"] + [f"shade {n}" for n in range(9)]
    (card,) = gallery(least(), [row(1, answers=answers)]).cards
    assert card["answers"][:2] == ["red ×3", "crimson"] and card["answers"][-1] == "and 5 more"


@given(
    st.lists(st.sampled_from([None, 0.0, 0.3, 0.6, 1.0, 1 - 1e-12]), max_size=900),
    st.sets(st.integers(0, 900)),
)
def test_what_is_chosen(scores, moved):
    answers = [row(n, one) for n, one in enumerate(scores)]
    chosen = choose(answers, 1.0, {f"q{n}" for n in moved})
    ids = [one["id"] for one in chosen]
    assert len(ids) == len(set(ids)) == min(len(answers), MOST_CARDS)
    right = [one["score"] is not None and one["score"] > 0.99 for one in chosen]
    assert right == sorted(right)
    worst = [one["score"] or 0.0 for one in chosen if state(one, 1.0) != "right"]
    assert worst == sorted(worst)
    # Right ones have their share, and what either leaves is the other's.
    there = sum(one is not None and one > 0.99 for one in scores)
    assert sum(right) == min(there, max(100, MOST_CARDS - (len(scores) - there)))


def test_of_many_those_that_moved_are_chosen_and_all_types():
    # Sorted by type, as data often is.
    answers = [row(n, 0.0, type=f"type {n // 100}") for n in range(1000)]
    chosen = choose(answers, 1.0, {f"q{n}" for n in (5, 17, 999)})
    assert {"q5", "q17", "q999"} <= {one["id"] for one in chosen}
    assert {one["type"] for one in chosen} == {f"type {n}" for n in range(10)}


def test_half_of_the_cards_are_kept_for_what_did_not_move():
    answers = [row(n, 0.0) for n in range(1000)]
    chosen = choose(answers, 1.0, {f"q{n}" for n in range(500)})
    assert sum(int(one["id"][1:]) < 500 for one in chosen) >= MOST_CARDS // 2
    assert sum(int(one["id"][1:]) >= 500 for one in chosen) >= MOST_CARDS // 4


def test_captions_are_partly_right():
    scores = [0.0, 0.4, 3.7, 10.0]
    assert [state({"score": one}, 10.0) for one in scores] == ["wrong", "partly", "partly", "right"]


def test_heat_is_the_share_of_the_right_answer():
    made = confusion_rows({"answers": ["a", "b"], "counts": [[3, 0, 1], [0, 0, 0]]})
    assert made is not None and made["heads"] == ["a", "b", "other"]
    assert made["lines"] == [
        ("a", [(3, 0.75, True), (0, 0.0, False), (1, 0.25, False)]),
        ("b", [(0, 0.0, False), (0, 0.0, True), (0, 0.0, False)]),
    ]


def test_both_files_are_written(tmp_path):
    figures = whole(NASTY)
    written = write_evaluation(tmp_path, figures, [row(1, text=NASTY)])
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == figures
    Page(written.read_text("utf-8"))
    first = written.read_bytes()
    write_evaluation(tmp_path, figures, [row(1, text=NASTY)])
    assert written.read_bytes() == first
    assert sorted(one.name for one in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_no_number_no_file(tmp_path):
    figures = least() | {"metrics": {"exact_match": score(float("nan"))}}
    with pytest.raises(ValueError):
        write_evaluation(tmp_path, figures, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to run the page's script")
@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("", {"q1", "q2", "q3", "q4"}),
        ("show=wrong", {"q2"}),
        ("show=right", {"q1", "q4"}),
        ("show=changed", {"q2", "q4"}),
        ("show=same", {"q1", "q3"}),
        ("show=lost", {"q2"}),
        ("show=gained", {"q1"}),
        ("kind=1", {"q4"}),
        ("text=BLUE+grey", {"q2"}),
        ("show=right&text=sh%C3%A1pe", {"q4"}),
        ("text=nowhere", set()),
        # What is no filter changes nothing.
        ("show=none&text=&no=1", {"q1", "q2", "q3", "q4"}),
    ],
)
def test_the_filter_shows_what_is_asked(asked, shown, tmp_path):
    answers = [row(1), row(2, 0.0), row(3, 0.5), row(4, type="sháp€")]
    answers[3]["question"] = "Which SHÁPE?"
    path = write_evaluation(tmp_path, whole(), answers)
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", f"{path.as_uri()}#{asked}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    made = Page(done.stdout)
    places = [n for n, one in enumerate(made.cards) if "hidden" not in one]
    order = ["q2", "q3", "q1", "q4"]
    assert {order[place] for place in places} == shown
    assert "hidden" not in made.of("form")[0]
    said = f"{len(shown)} of 4 shown" if shown else "Nothing fits"
    assert said in made.words
