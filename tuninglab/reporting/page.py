"""The HTML of a run's report: one self-contained, readable page. Every value is escaped."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tuninglab.reporting.tables import (
    CONTROLS,
    Scores,
    accuracy_table,
    fact_rows,
    flat,
    mapping,
    number,
    percent,
    plain,
    table,
)

Metrics = list[dict[str, Any]]

# Below this change of accuracy the page says that little moved.
LITTLE_ACCURACY = 0.02
# The same for a validation loss, as a share of the loss before.
LITTLE_LOSS = 0.02

# What browsers show. SVG is left out on purpose: it can carry scripts.
PICTURE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}


def page(
    run_dir: Path,
    figures: dict[str, Any],
    metrics: Metrics,
    *,
    settings: dict[str, Any],
    starts: Sequence[dict[str, Any]],
    cards: Sequence[dict[str, Any]],
    trainable: Sequence[dict[str, Any]],
    curves: Path,
) -> str:
    """Compose the page of a run from the contents of its files."""
    name = str(figures.get("run_name") or run_dir.name)
    # The order is that of a reader's questions: how well, show me, how did it go, on what.
    scores = _scores(figures)
    headline, explanation = _verdict(figures, scores)
    sections = [
        _accuracy_section(scores),
        _cards_section(run_dir, cards),
        _curves_section(metrics, curves),
        _training_section(figures, trainable),
        _section("Settings", fact_rows(flat(settings))),
        *(_environment_section(start) for start in starts),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    body = "\n".join(section for section in sections if section)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} · tuninglab report</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="run">Run <strong>{escape(name)}</strong>{_subject(figures)}</p>
<h1>{headline}</h1>
<p class="lead">{escape(explanation)}</p>
</header>
<main>
{body}
</main>
<footer>Written by tuninglab from the run folder; <code>tuninglab report</code> writes it again.
</footer>
</body>
</html>
"""


def _subject(figures: dict[str, Any]) -> str:
    parts = [str(figures[key]) for key in ("task", "base", "precision") if figures.get(key)]
    return "".join(f" · {escape(part)}" for part in parts)


def _scores(figures: dict[str, Any]) -> Scores:
    """The evaluations by name: prior, before, blank, shuffled, after; those that there are."""
    evaluation = mapping(figures.get("evaluation"))
    # before and after stand beside `controls`, the others inside; prior is taken from either.
    controls = mapping(evaluation.get("controls"))
    found = {key: mapping(evaluation.get(key) or controls.get(key)) for key, _, _ in CONTROLS}
    return {key: score for key, score in found.items() if score}


def _verdict(figures: dict[str, Any], scores: Scores) -> tuple[str, str]:
    """The headline, as HTML, and one sentence that reads it, as text."""
    before = number(scores.get("before", {}).get("exact_match"))
    after = number(scores.get("after", {}).get("exact_match"))
    # Accuracy on held-out questions says most, then validation loss, then training loss.
    if before is not None and after is not None:
        count = plain(scores["after"].get("count"))
        what = f"exactly right answers to {count} held-out questions, before and after tuning"
        little = abs(after - before) < LITTLE_ACCURACY
        return _headline(percent(before), percent(after)), _sentence(what, little, after < before)
    first = number(scores.get("before", {}).get("val_loss"))
    last = number(scores.get("after", {}).get("val_loss"))
    if first is not None and last is not None:
        little = abs(last - first) < LITTLE_LOSS * abs(first)
        what = "validation loss, on records not trained on, before and after tuning"
        return _headline(f"{first:.3f}", f"{last:.3f}"), _sentence(what, little, last > first)
    train = mapping(figures.get("train"))
    first, last = number(train.get("first_loss")), number(train.get("last_loss"))
    missing = "Nothing was held out, so this says little: give --val_split 0.1 or --val_data."
    if first is None or last is None:
        return "No figures", f"The run logged no loss. {missing}"
    what = "training loss, at the first and the last step"
    return _headline(f"{first:.3f}", f"{last:.3f}"), f"{_sentence(what)} {missing}"


def _headline(before: str, after: str) -> str:
    # The arrow is for eyes; a screen reader says "12 % to 90 %".
    arrow = '<span class="arrow" aria-hidden="true">→</span><span class="unseen"> to </span>'
    return f'<span class="before">{escape(before)}</span> {arrow} {escape(after)}'


def _sentence(what: str, little: bool = False, worse: bool = False) -> str:
    text = what[0].upper() + what[1:] + "."
    if little:
        return f"{text} Little moved: more steps or a higher --learning_rate would move more."
    if worse:
        return f"{text} It got worse: try a lower --learning_rate."
    return text


def _accuracy_section(scores: Scores) -> str:
    exact = {key: s for key, s in scores.items() if number(s.get("exact_match")) is not None}
    missing = "<p>No questions were answered in this run: the losses are all there is.</p>"
    return _section("Accuracy", accuracy_table(exact) if exact else missing)


def _curves_section(metrics: Metrics, curves: Path) -> str:
    # The picture's text for those who cannot see the curve.
    losses = [loss for entry in metrics if (loss := number(entry.get("loss"))) is not None]
    said = f"Training loss from {losses[0]:.3f} to {losses[-1]:.3f}" if losses else "No loss logged"
    image = f'<img class="curves" src="{_data_uri(curves)}" alt="{said}, over the steps.">'
    return _section("Curves", image)


def _training_section(figures: dict[str, Any], trainable: Sequence[dict[str, Any]]) -> str:
    train = mapping(figures.get("train"))
    facts = [(key.replace("_", " "), plain(value)) for key, value in train.items()]
    if figures.get("adapter_bytes") is not None:
        facts.append(("adapter bytes", plain(figures["adapter_bytes"])))
    return _section("What trained", fact_rows(facts) + table(trainable))


def _environment_section(environment: dict[str, Any]) -> str:
    # Reasons first: versions are looked up, choices are read.
    rest = dict(environment)
    choices = [row for row in rest.pop("choices", None) or [] if isinstance(row, dict)]
    found = f"<h3>Automatic choices and their reasons</h3>{table(choices)}" if choices else ""
    return _section("Environment", found + fact_rows(flat(rest)))


def _cards_section(run_dir: Path, cards: Sequence[dict[str, Any]]) -> str:
    if not cards:
        return ""
    grid = "\n".join(_card(run_dir, card, index) for index, card in enumerate(cards, 1))
    title = "Pictures it answered" if any("picture" in card for card in cards) else "What it wrote"
    return _section(title, f'<div class="cards">\n{grid}\n</div>')


def _card(run_dir: Path, card: dict[str, Any], index: int) -> str:
    truth = str(card.get("truth", ""))
    kinds = " · ".join(str(card[key]) for key in ("type", "group") if card.get(key))
    answers = [("Before", card.get("before")), ("After", card.get("after"))]
    lines = [f"<dt>Truth</dt><dd>{escape(truth)}</dd>"]
    for title, answer in answers:
        # A run may have kept only one of the two.
        if answer is None:
            continue
        # Exact match, as the accuracies above count it.
        right = str(answer) == truth
        mark = (
            '<span class="right">✓ right</span>' if right else '<span class="wrong">✗ wrong</span>'
        )
        lines.append(f"<dt>{title}</dt><dd>{escape(str(answer)) or '(nothing)'} {mark}</dd>")
    picture = _picture(run_dir, str(card["picture"]), index) if "picture" in card else ""
    return (
        f"<figure>{picture}<figcaption>"
        f'<p class="question">{escape(str(card.get("question", "")))}</p>'
        f'<dl>{"".join(lines)}</dl><p class="note">{escape(kinds)}</p></figcaption></figure>'
    )


def _picture(run_dir: Path, name: str, index: int) -> str:
    path = (run_dir / name).resolve()
    # Only pictures of this run: the page may be passed on, other files of the machine may not.
    inside = path.is_relative_to(run_dir.resolve())
    if not inside or path.suffix.lower() not in PICTURE_TYPES or not path.is_file():
        return f'<p class="missing">The picture {escape(name)} is missing.</p>'
    return f'<img src="{_data_uri(path)}" alt="Picture {index}, of the question below">'


def _data_uri(path: Path) -> str:
    # Inside the page as base64, a third larger than the file, so that the page can be passed on.
    kind = PICTURE_TYPES[path.suffix.lower()]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""
