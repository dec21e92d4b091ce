"""What was found in data, in words: the same for a terminal and for a page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuninglab.data.reading.audit import ASKED_OFTEN
from tuninglab.data.sample import brief
from tuninglab.reporting.tables import percent, plain, size

Figures = Mapping[str, Any]


def headline(figures: Figures) -> str:
    """In one line: what it is, how much of it there is, and how much can be used."""
    kinds = dict.fromkeys(s["what"] for s in figures["sets"] if s["what"])
    what = ", ".join([*kinds, *([figures["format"]] if figures["samples"] else [])])
    words = [
        f"{what or 'data'}: {_many(figures['records'], 'record')}, {figures['usable']:,} usable"
    ]
    if figures["bad"]:
        words.append(f"{figures['bad']:,} with problems")
    return ", ".join(words)


def facts(figures: Figures) -> list[tuple[str, str]]:
    """All that is not a table, as (name, in words)."""
    notes = [("note", f"{note['text']}: {note['records']:,} records") for note in figures["notes"]]
    if not figures["samples"]:
        return notes
    rows = [("for example", _example(figures["example"]))] if figures["example"] else []
    rows.append(("pictures", _pictures(figures["pictures"])))
    if sizes := _sizes(figures["pictures"]):
        rows.append(("sizes", sizes))
    rows.append(("dialogues", _dialogues(figures)))
    rows += _tokens(figures["tokens"])
    rows += _answers(figures)
    rows.append(("written in", _scripts(figures["scripts"])))
    rows += _repetitions(figures)
    if figures["validation"]:
        rows += _validation(figures["validation"])
    return [*rows, *notes]


def answer_rows(figures: Figures, most: int) -> list[tuple[str, str, str]]:
    """The most frequent answers: text, how often, share."""
    rows = figures["answers"][:most]
    return [(row["text"], f"{row['count']:,}", percent(row["share"])) for row in rows]


def length_rows(figures: Figures) -> list[tuple[str, str, float]]:
    """Tokens of the samples: from and to, how many, and that in parts of the most frequent."""
    bins = figures["tokens"]["histogram"]
    most = max((one["samples"] for one in bins), default=0)
    rows = []
    for one in bins:
        ends = (one["from"], one["to"])
        label = f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,}–{ends[1]:,}"
        rows.append((label, f"{one['samples']:,}", one["samples"] / most))
    return rows


def set_rows(figures: Figures) -> list[dict[str, str]]:
    """The sets of a mixture, and how much of each an epoch takes; nothing of a single one."""
    if not figures["samples"] or (len(figures["sets"]) == 1 and figures["sets"][0]["passes"] == 1):
        return []
    return [
        {
            "set": one["path"],
            "records": f"{one['records']:,}",
            "usable": f"{one['usable']:,}",
            "rows of an epoch": f"{one['rows']:,}",
            "share": percent(one["share"]),
            "passes": f"{one['passes']:.2f}",
        }
        for one in figures["sets"]
    ]


def _example(example: Figures) -> str:
    pictures = f" ({', '.join(example['pictures'])})" if example["pictures"] else ""
    said = f"{brief(example['question'])} -> {brief(example['answer'])}"
    return f"{example['origin']}: {said}{pictures}"


def _pictures(pictures: Figures) -> str:
    words = [f"{_many(pictures['uses'], 'use')} of {_many(pictures['unique'], 'picture')}"]
    wrong = [f"{pictures[kind]:,} {kind}" for kind in ("missing", "corrupt", "refused")]
    words += [said for said in wrong if not said.startswith("0 ")] or ["none missing or corrupt"]
    return ", ".join(words)


def _sizes(pictures: Figures) -> str:
    if not pictures["measured"]:
        return ""
    files, width, height = (pictures[name] for name in ("bytes", "width", "height"))
    text = f"files of {_range(files, size)}; width {_range(width)}, height {_range(height)} pixels"
    part = pictures["measured"] < pictures["unique"]
    return f"{text} (of {pictures['measured']:,} pictures)" if part else text


def _range(values: Figures, said: Callable[[Any], str] = plain) -> str:
    least, middle, most = (said(values[name]) for name in ("min", "median", "max"))
    return least if least == most else f"{least} to {most} (median {middle})"


def _dialogues(figures: Figures) -> str:
    turns = figures["turns"]
    by_answers = [
        f"{row['samples']:,} with {_many(row['answers'], 'answer')}" for row in turns["answers"][:8]
    ]
    if len(turns["answers"]) > len(by_answers):
        rest = sum(row["samples"] for row in turns["answers"][8:])
        by_answers.append(f"{rest:,} with more")
    system = [f"{turns['system']:,} with a system message"] if turns["system"] else []
    return f"{figures['samples']:,}: " + ", ".join([*by_answers, *system])


def _tokens(tokens: Figures) -> list[tuple[str, str]]:
    share = f"{tokens['trained']:,} of {tokens['total']:,} are learned ({percent(tokens['share'])})"
    rows = [("tokens", f"{share}, by the tokenizer of {tokens['tokenizer']}")]
    lengths = ", ".join(
        [
            f"half of the records have at most {tokens['median']:,}",
            f"90 % {tokens['p90']:,}",
            f"99 % {tokens['p99']:,}",
            f"the longest {tokens['longest']:,}",
        ]
    )
    where = f" ({tokens['longest_origin']})" if "longest_origin" in tokens else ""
    rows.append(("lengths", f"{lengths}{where}"))
    if tokens["overlong"]:
        most = f"with more than the {tokens['most']:,} tokens that are read"
        rows.append(("too long", f"{_many(tokens['overlong'], 'record')} {most}"))
    if tokens["unknown"]:
        known = tokens["unknown"] / tokens["total"]
        what = f"{tokens['unknown']:,} tokens ({percent(known)}) stand for what it does not know"
        rows.append(("unknown", what))
    return rows


def _answers(figures: Figures) -> list[tuple[str, str]]:
    blind, different = figures["blind"], figures["different"]
    least = "" if blind["exact"] else "at least "
    usual = (
        f"the most frequent answer is right for {least}{percent(blind['most_frequent'])}; that to "
        f"each question which is asked {ASKED_OFTEN} times or more, for "
        f"{least}{percent(blind['by_question'])}"
    )
    counts = (
        f"{least}{_many(different['answers'], 'different answer')} to "
        f"{least}{_many(different['questions'], 'different question')}"
    )
    return [("answers", counts), ("without looking", usual)]


def _scripts(scripts: Sequence[Figures]) -> str:
    said = [f"{script['text']} {_share(script['share'])}" for script in scripts[:8]]
    return ", ".join(said) or "no letters"


def _repetitions(figures: Figures) -> list[tuple[str, str]]:
    rows = []
    for name, what, example in (
        ("duplicates", "with texts and pictures of an earlier one", "duplicate_examples"),
        ("contradictions", "with another answer than an earlier one", "contradiction_examples"),
    ):
        if count := figures[name]:
            where = ", ".join(figures[example])
            rows.append(
                (name, f"{_many(count, 'record')} {what}: {where}{_more(count, figures[example])}")
            )
    return rows or [("duplicates", "none")]


def _validation(val: Figures) -> list[tuple[str, str]]:
    shared = val["shared"]
    text = f"{val['usable']:,} of {_many(val['records'], 'record')} usable"
    rows = [("validation", f"{text}; the longest has {val['longest']:,} tokens")]
    if shared["samples"]:
        where = ", ".join(shared["examples"]) + _more(shared["samples"], shared["examples"])
        told = (
            f"{_many(shared['pictures'], 'picture')} of {_many(shared['samples'], 'record')} for "
            f"validation are trained on as well: {where}"
        )
        rows.append(("in both", told))
    else:
        rows.append(("in both", "no picture"))
    if val["duplicates"]:
        told = f"{_many(val['duplicates'], 'whole record')}, texts and pictures"
        rows.append(("in both", told))
    guess = (
        f"training's most frequent answers are right for {percent(val['guessed'])} of validation"
    )
    return [*rows, ("without looking", guess)]


def _share(share: float) -> str:
    return percent(share) if share >= 0.0005 else "below 0.1 %"


def _more(count: int, examples: Sequence[str]) -> str:
    return ", ..." if count > len(examples) else ""


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
