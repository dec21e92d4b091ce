"""The HTML of a run's report: one self-contained, readable page, from report.html.jinja."""

import base64
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuninglab.reporting.curves import Metrics, run_charts
from tuninglab.reporting.planned import planned_rows
from tuninglab.reporting.run_evaluations import Linked
from tuninglab.reporting.so_far import Standing
from tuninglab.reporting.tables import (
    CONTROLS,
    Scores,
    accuracies,
    fact,
    flat,
    looking,
    mapping,
    number,
    percent,
    plain,
    table,
)
from tuninglab.reporting.templates import render
from tuninglab.untrusted import MIB

# Scores of models that do not look.
UNSEEN = ("blank", "shuffled", "prior")
# Below this change of accuracy the page says that little moved.
LITTLE_ACCURACY = 0.02
# The same for a validation loss, as a share of the loss before.
LITTLE_LOSS = 0.02

# Between two looks of a page at a run that goes on.
RELOAD_S = 5
# What report.json says of the records.
DATA = {
    "train": "records to learn from",
    "val": "records held out",
    "skipped": "records left out, as they have problems",
}

# Runs keep small copies; the page holds them all.
LARGEST_PICTURE = 4 * MIB
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
    stands: Standing,
    *,
    settings: dict[str, Any],
    starts: Sequence[dict[str, Any]],
    cards: Sequence[dict[str, Any]],
    trainable: Sequence[dict[str, Any]],
    evaluations: Sequence[Linked] = (),
) -> str:
    """The page of a run from the contents of its files.

    Args:
        run_dir: the run folder.
        figures: of report.json, or what there is so far.
        metrics: the lines of metrics.jsonl.
        stands: where the run stands; while it goes on, the page loads itself again.
        settings: of config.yaml.
        starts: of environment.json.
        cards: of answers.json.
        trainable: of trainable.json.
        evaluations: those that the run folder holds.
    """
    scores = _scores(figures)
    exact = {key: s for key, s in scores.items() if number(s.get("exact_match")) is not None}
    cost = mapping(figures.get("train")) | {"adapter_bytes": figures.get("adapter_bytes")}
    train = [fact(name, value) for name, value in cost.items() if value is not None]
    train += _losses(figures)
    environment = dict(starts[-1]) if starts else {}
    made = environment.pop("choices", None)
    choices = [row for row in made if isinstance(row, dict)] if isinstance(made, list) else []
    pictures = any("picture" in card for card in cards)
    return render(
        "report.html.jinja",
        name=str(figures.get("run_name") or run_dir.name),
        subject=[figures[key] for key in ("task", "base", "precision") if figures.get(key)],
        ended=stands.state == "ended",
        reload_s=RELOAD_S if stands.goes_on else None,
        verdict=_verdict(figures, scores) if stands.state == "ended" else _so_far(figures, stands),
        columns=[{"title": title, "note": note} for key, title, note in CONTROLS if key in exact],
        accuracies=accuracies(exact),
        cards_title="Pictures it answered" if pictures else "What it wrote",
        cards=[_card(run_dir, card) for card in cards],
        evaluations=evaluations,
        charts=run_charts(metrics),
        planned=table(planned_rows(figures, metrics)),
        data=_data(figures),
        train=train,
        trainable=table(trainable),
        settings=flat(settings),
        starts=len(starts),
        choices=table(choices),
        environment=flat(environment),
    )


def _scores(figures: dict[str, Any]) -> Scores:
    """The evaluations by name: prior, before, blank, shuffled, after; those that there are."""
    evaluation = mapping(figures.get("evaluation"))
    # before and after stand beside `controls`, the others inside; prior is taken from either.
    controls = mapping(evaluation.get("controls"))
    found = {key: mapping(evaluation.get(key) or controls.get(key)) for key, _, _ in CONTROLS}
    return {key: score for key, score in found.items() if score}


def _losses(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Validation losses, those of guessing beside them: 5.29 looks good until one sees 6.85."""
    evaluation = mapping(figures.get("evaluation"))
    named = {
        "before": "validation loss before",
        "after": "validation loss after",
        "prior": "loss of knowing how frequent the answers are",
        "chance": "loss of blind guessing",
    }
    losses = {t: number(mapping(evaluation.get(k)).get("val_loss")) for k, t in named.items()}
    return [(title, f"{loss:.3f}") for title, loss in losses.items() if loss is not None]


def _verdict(figures: dict[str, Any], scores: Scores) -> dict[str, str]:
    """The figures of the headline, `before` and `after` if there are any, and a `text` on them."""
    before = number(scores.get("before", {}).get("exact_match"))
    after = number(scores.get("after", {}).get("exact_match"))
    # Accuracy on held-out questions says most, then validation loss, then training loss.
    if before is not None and after is not None:
        count = plain(scores["after"].get("count"))
        what = f"Exactly right answers to {count} held-out questions, before and after tuning."
        shares = {k: number(scores.get(k, {}).get("exact_match")) for k in UNSEEN}
        controls = {key: share for key, share in shares.items() if share is not None}
        if controls:
            asked = number(scores["after"].get("count"))
            text = f"{what} {looking(after, controls, asked)}"
        else:
            text = what + _advice(abs(after - before) < LITTLE_ACCURACY, after < before)
        return {"before": percent(before), "after": percent(after), "text": text}
    first = number(scores.get("before", {}).get("val_loss"))
    last = number(scores.get("after", {}).get("val_loss"))
    if first is not None and last is not None:
        what = "Validation loss, on records not trained on, before and after tuning."
        text = what + _advice(abs(last - first) < LITTLE_LOSS * abs(first), last > first)
        return {"before": f"{first:.3f}", "after": f"{last:.3f}", "text": text}
    train = mapping(figures.get("train"))
    first, last = number(train.get("first_loss")), number(train.get("last_loss"))
    missing = "Nothing was held out, so this says little: give --val_split 0.1 or --val_data."
    if first is None or last is None:
        return {"before": "", "text": f"The run logged no loss. {missing}"}
    text = f"Training loss, at the first and the last step. {missing}"
    return {"before": f"{first:.3f}", "after": f"{last:.3f}", "text": text}


def _so_far(figures: dict[str, Any], stands: Standing) -> dict[str, str]:
    """The same of a run that has not ended."""
    train = mapping(figures.get("train"))
    first, last = number(train.get("first_loss")), number(train.get("last_loss"))
    if first is None or last is None:
        return {"before": "", "text": str(stands)}
    text = f"{stands} Above: the training loss of the first and of the last step so far."
    return {"before": f"{first:.3f}", "after": f"{last:.3f}", "text": text}


def _data(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """How many records there were, and what was left out of them."""
    counts = mapping(figures.get("data"))
    rows = [(title, plain(counts[key])) for key, title in DATA.items() if key in counts]
    if left_out := number(mapping(figures.get("train")).get("left_out")):
        rows.append(("rows that taught nothing, as a picture of theirs is bad", plain(left_out)))
    return rows


def _advice(little: bool, worse: bool) -> str:
    if little:
        return " Little moved: more steps or a higher --learning_rate would move more."
    return " It got worse: try a lower --learning_rate." if worse else ""


def _card(run_dir: Path, card: dict[str, Any]) -> dict[str, Any]:
    truth, name = str(card.get("truth", "")), card.get("picture")
    others = card.get("also_right")
    right = {truth, *map(str, others if isinstance(others, list) else [])}
    # A run may have kept only one of the two answers.
    kinds = [str(card.get(key) or "") for key in ("type", "group")]
    answers = [(title, card.get(title.lower())) for title in ("Before", "After")]
    return {
        "picture": None if "picture" not in card else str(name),
        "data": _picture(run_dir, str(name)) if "picture" in card else "",
        "question": card.get("question", ""),
        "truth": truth,
        # Right is an exact match, as the accuracies above count it.
        "answers": [(t, str(a), str(a) in right) for t, a in answers if a is not None],
        # Of own data a question that is asked often is its own type.
        "kinds": " · ".join(kind for kind in kinds if kind and kind != card.get("question")),
    }


def _picture(run_dir: Path, name: str) -> str:
    """A picture of the run for an `src`; nothing if it is not there, or no picture."""
    # A name may be none that a file can have.
    with suppress(OSError, ValueError):
        path = (run_dir / name).resolve()
        # Only pictures of this run: the page may be passed on, other files of the machine may not.
        inside = path.is_relative_to(run_dir.resolve())
        shown = inside and path.suffix.lower() in PICTURE_TYPES and path.is_file()
        if shown and path.stat().st_size <= LARGEST_PICTURE:
            return _data_uri(path)
    return ""


def _data_uri(path: Path) -> str:
    # Inside the page as base64, a third larger than the file, so that the page can be passed on.
    kind = PICTURE_TYPES[path.suffix.lower()]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
