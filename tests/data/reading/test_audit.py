import json
import statistics
import unicodedata
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuninglab.config.data import DataPart
from tuninglab.data.reading.audit import (
    ASKED_OFTEN,
    SHOWN_LETTERS,
    Frequent,
    Tally,
    blind_figures,
    by_powers,
    contradicting,
    frequent_figures,
    guessed,
    repeated,
    script_figures,
    token_figures,
    turn_figures,
)
from tuninglab.data.reading.audited_pictures import (
    first_uses,
    middle,
    picture_figures,
    shared_pictures,
    used_contents,
    wrong_pictures,
)
from tuninglab.data.reading.opening import Wishes, open_stored
from tuninglab.data.reading.scripts import script_of, scripts_of
from tuninglab.data.sample import Sample

WORDS = st.sampled_from(["a", "b", "c"])
ROWS = st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=40)


def sample(question, answer, *more, system=None):
    texts = [question, answer, *more]
    roles = ["user", "assistant"] * (len(texts) // 2)
    turns = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    return Sample(([{"role": "system", "content": system}] if system else []) + turns, [])


def tally_of(rows):
    """A tally of (question, answer, picture)."""
    tally = Tally()
    for question, answer, picture in rows:
        tally.take(sample(question, answer), [picture.encode() * 32], 4, 2, 0)
    return tally


@given(st.lists(st.integers(0, 30)))
def test_few_things_are_counted_exactly(things):
    found = Frequent(most=31)
    for thing in things:
        found.add(thing)
    assert found.exact and found.counts == Counter(things) and found.total == len(things)
    shares = [found.share(count) for count in found.counts.values()]
    assert sum(shares) == pytest.approx(1.0 if things else 0.0)


@given(st.lists(st.integers(0, 300), min_size=60))
def test_of_many_things_counts_are_what_there_is_at_least(things):
    found, true = Frequent(most=20), Counter()
    # What makes up half of all is never among the rarer half.
    for thing in chain.from_iterable((thing, -1) for thing in things):
        found.add(thing)
        true[thing] += 1
        assert len(found.counts) <= 20
    assert found.exact == (len(true) <= 20)
    assert all(count <= true[thing] for thing, count in found.counts.items())
    assert found.counts[-1] == true[-1] == len(things)


@given(st.lists(st.integers(1, 5000)))
def test_lengths_by_powers_of_two(numbers):
    bins = by_powers(np.array(numbers, np.int32))
    assert sum(one["samples"] for one in bins) == len(numbers)
    for one in bins:
        assert one["samples"] == sum(one["from"] <= n <= one["to"] for n in numbers)
        assert one["to"] == 2 * one["from"] - 1
    if bins:
        assert bins[0]["samples"] and bins[-1]["samples"]
        assert all(b["from"] == a["to"] + 1 for a, b in zip(bins, bins[1:], strict=False))


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1))
def test_tokens_against_counting(lengths):
    tally = Tally()
    for tokens, trained in lengths:
        tally.take(sample("q", "a"), [], tokens, min(trained, tokens), 1)
    figures, ordered = token_figures(tally), sorted(tokens for tokens, _ in lengths)
    assert figures["total"] == sum(ordered) and figures["longest"] == ordered[-1]
    assert figures["trained"] == sum(min(pair) for pair in lengths)
    assert figures["share"] == figures["trained"] / figures["total"]
    assert figures["unknown"] == len(lengths)
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
        # The least length that so many do not exceed.
        fits = [n for n in ordered if sum(m <= n for m in ordered) >= share * len(ordered) - 1e-9]
        assert figures[name] == fits[0]


def test_figures_of_nothing():
    tally = Tally()
    assert token_figures(tally) | {"histogram": 0} == {
        **dict.fromkeys(("total", "trained", "unknown", "longest", "median", "p90", "p99"), 0),
        "share": 0.0,
        "histogram": 0,
    }
    assert blind_figures(tally) == {"most_frequent": 0.0, "by_question": 0.0, "exact": True}
    assert script_figures(tally) == [] and len(repeated(tally.contents)) == 0
    assert len(contradicting(tally)) == 0 and guessed(tally, tally) == 0


@given(ROWS)
def test_duplicates_and_contradictions_against_comparing(rows):
    tally = tally_of(rows)
    assert repeated(tally.contents).tolist() == [n for n, r in enumerate(rows) if r in rows[:n]]
    others = []
    for number, (question, answer, picture) in enumerate(rows):
        earlier = [r[1] for r in rows[:number] if (r[0], r[2]) == (question, picture)]
        others += [number] if earlier and earlier[0] != answer else []
    assert contradicting(tally).tolist() == others


def test_what_makes_records_alike():
    tally = Tally()
    for texts, pictures, system in (
        (("q", "a", "r", "b"), [b"1"], None),
        (("q", "a", "r", "b"), [b"1"], None),
        (("q", "a", "r", "b"), [b"2"], None),
        (("q", "a", "r", "b"), [b"1"], "s"),
        (("q", "a", "r", "c"), [b"1"], None),
        (("q", "a"), [b"1"], None),
    ):
        tally.take(sample(*texts, system=system), pictures, 9, 2, 0)
    assert repeated(tally.contents).tolist() == [1]
    assert contradicting(tally).tolist() == [4]
    expected = [{"answers": 1, "samples": 1}, {"answers": 2, "samples": 5}]
    assert turn_figures(tally) == {"answers": expected, "system": 1}


@given(ROWS, ROWS)
def test_answers_without_looking_against_counting(train, val):
    first, second = tally_of(train), tally_of(val)
    usual = Counter(answer for _, answer, _ in train).most_common(1)[0]
    figures = blind_figures(first)
    assert figures["most_frequent"] == usual[1] / len(train)
    right = 0
    for question in {row[0] for row in train}:
        answers = Counter(row[1] for row in train if row[0] == question)
        often = answers.total() >= ASKED_OFTEN
        right += max(answers.values()) if often else answers[usual[0]]
    assert figures["by_question"] == pytest.approx(right / len(train))
    hits = 0
    for question, answer, _ in val:
        answers = Counter(row[1] for row in train if row[0] == question)
        hits += (answers.most_common(1) or [usual])[0][0] == answer
    assert guessed(first, second) == pytest.approx(hits / len(val))
    shares = [row["share"] for row in frequent_figures(first.answers, 20)]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)


def test_long_answers_are_told_apart_by_all_they_say():
    tally, start = Tally(), "x" * 500
    for end in ("1", "2", "2"):
        tally.take(sample("q", start + end), [], 1, 1, 0)
    rows = frequent_figures(tally.answers, 20)
    assert [row["count"] for row in rows] == [2, 1]
    assert all(len(row["text"]) == SHOWN_LETTERS and row["text"][-1] == "…" for row in rows)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("aéß", "Latin"),
        ("Ａｂ", "Latin"),
        ("Жя", "Cyrillic"),
        ("猫々𠀀", "Han"),
        ("ひ", "Hiragana"),
        ("カｱ", "Katakana"),
        ("한", "Hangul"),
        ("अ", "Devanagari"),
        ("ع", "Arabic"),
        ("α", "Greek"),
        ("ก", "Thai"),
        ("1 .!\u0301\n\ud800😀", ""),
    ],
)
def test_scripts_of_letters(text, script):
    assert {script_of(character) for character in text} == {script}


@given(st.text())
def test_shares_of_scripts_sum_to_one(text):
    letters = [c for c in text if unicodedata.category(c).startswith("L")]
    assert sum(count for _, count in scripts_of(Counter(text))) == len(letters)
    tally = Tally()
    tally.characters.update(text)
    assert sum(row["share"] for row in script_figures(tally)) == pytest.approx(
        1.0 if letters else 0.0
    )


@given(st.lists(st.integers(0, 10**6)))
def test_the_middle(values):
    found = middle(np.array(values, np.int64))
    if not values:
        assert found is None
        return
    assert found == {
        "min": min(values),
        "median": statistics.median_low(values),
        "max": max(values),
    }


@pytest.fixture
def opened(tmp_path):
    """A function (name, rows of picture names) -> the samples of a file of them."""
    sizes = {"a.png": (4, 3), "b.png": (9, 5), "same as a.png": (4, 3), "c.png": (1, 20)}
    for name, size in sizes.items():
        Image.new("RGB", size, "red").save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])

    def open_rows(name, rows):
        lines = []
        for number, names in enumerate(rows):
            turns = [("user", "<image>" * len(names) + f"q{number}"), ("assistant", "yes")]
            messages = [{"role": role, "content": text} for role, text in turns]
            lines.append(json.dumps({"messages": messages, "images": names}))
        path = tmp_path / name
        path.write_text("\n".join(lines))
        return open_stored(DataPart(str(path)), Wishes())[0]

    return open_rows


def test_pictures_are_counted_by_content(opened, tmp_path):
    rows = [["a.png"], ["b.png", "a.png"], [], ["same as a.png"], ["nope.png"], ["cut.png"]]
    stored = opened("all.jsonl", [*rows, ["../out.png"], ["c.png", "nope.png"]])
    figures = picture_figures([stored])
    # The pictures of records that are left out are no uses.
    assert (figures["uses"], figures["unique"], figures["measured"]) == (4, 2, 3)
    assert figures["width"] == {"min": 4, "median": 4, "max": 9}
    assert figures["height"] == {"min": 3, "median": 3, "max": 5}
    files = sorted((tmp_path / n).stat().st_size for n in ("a.png", "same as a.png", "b.png"))
    assert list(figures["bytes"].values()) == files
    assert wrong_pictures(stored) == {"missing": 1, "corrupt": 1, "refused": 1}
    assert first_uses(stored) == [(0, 0), (1, 0), (3, 0)]
    assert picture_figures([stored], most=2)["measured"] == 2


def test_pictures_of_both_sides(opened):
    train = opened("train.jsonl", [["a.png"], ["b.png"], []])
    val = opened("val.jsonl", [["c.png"], ["same as a.png"], ["c.png", "a.png"], []])
    shared = shared_pictures([train], [val])
    assert (shared["pictures"], shared["samples"]) == (1, 2)
    assert [origin[-6:] for origin in shared["examples"]] == ["line 2", "line 3"]
    assert len(used_contents([[train, val]])[0]) == 3
    assert shared_pictures([train], [])["samples"] == 0


def test_captions_of_a_picture_do_not_contradict_each_other():
    tally = Tally()
    for caption in ("a cat", "a dog", "a cat"):
        shown = [{"role": "user", "content": [{"type": "image"}]}]
        said = {"role": "assistant", "content": caption}
        tally.take(Sample([*shown, said], ["a.png"]), [b"1"], 4, 2, 0)
    assert contradicting(tally).tolist() == [] and repeated(tally.contents).tolist() == [2]
