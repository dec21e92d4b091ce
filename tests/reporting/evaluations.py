"""Figures and answers of an evaluation as the tests of its page and of its text have them."""

from io import BytesIO
from typing import Any

from PIL import Image


def score(value: float, reach: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def least() -> dict[str, Any]:
    """Figures without anything that may be missing."""
    return {
        "name": "test",
        "model": "runs/demo",
        "data": "test.jsonl",
        "count": 4,
        "primary": "exact_match",
        "why": "each question has one right answer",
        "metrics": {"exact_match": score(0.75)},
        "titles": {"exact_match": "exact match"},
        "most": {"exact_match": 1.0},
        "by_type": {},
        "by_group": {},
        "by_answer": [],
        "confusion": None,
        "controls": {},
        "prior": {},
        "looking": None,
        "against": None,
        "shots": 0,
        "settings": {},
        "choices": [],
        "notes": [],
        "speed": {},
    }


def whole(text: str = "") -> dict[str, Any]:
    """Figures with all that there can be; `text` stands in whatever is foreign."""
    both = {"exact_match": score(0.75), "anls": score(0.8)}
    unseen = {"exact_match": score(0.4), "anls": score(0.5)}
    return least() | {
        "name": f"test{text}",
        "model": f"runs/demo{text}",
        "data": f"test.jsonl{text}",
        "why": f"each question has one right answer{text}",
        "metrics": both,
        "titles": {"exact_match": f"exact match{text}", "anls": "ANLS"},
        "most": {"exact_match": 1.0, "anls": 1.0},
        "by_type": {f"colour{text}": {"count": 3, **both}, "shape": {"count": 1, **unseen}},
        "by_group": {f"scene{text}": {"count": 4, **both}},
        "by_answer": [{"answer": f"red{text}", "count": 2, "value": 0.5}],
        "confusion": {"answers": [f"red{text}", "blue"], "counts": [[1, 1, 0], [0, 3, 1]]},
        "controls": {
            "blank": unseen | {"by_type": {"shape": unseen}},
            "shuffled": {"exact_match": score(0.35)},
        },
        "prior": {"exact_match": score(0.3), "anls": score(0.3), "source": f"train.json{text}"},
        "looking": {
            "metric": "exact_match",
            "control": "blank",
            "value": 0.35,
            "low": 0.2,
            "high": 0.5,
        },
        "against": {
            "model": f"embedded{text}",
            "metrics": unseen,
            "difference": {"exact_match": score(0.35), "anls": score(-0.1)},
            "gained": [f"q1{text}"],
            "lost": ["q2"],
        },
        "settings": {f"seed{text}": 0, "nested": {"beams": f"1{text}"}},
        "choices": [{"choice": "metric", "value": "exact", "reason": f"one answer{text}"}],
        "notes": [f"1 record was left out{text}"],
        "speed": {"samples_per_s": 12.5, "wall_s": 75.0},
    }


def picture(colour: str = "red") -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 6), colour).save(out, "PNG")
    return out.getvalue()


def row(number: int, right: float = 1.0, text: str = "", **more: Any) -> dict[str, Any]:
    """An answer; its question is called q1, q2, …"""
    return {
        "id": f"q{number}{text}",
        "question": f"Which colour?{text}",
        "answers": [f"red{text}"],
        "prediction": f"red{text}" if right else f"blue{text}",
        "score": right,
        "blank": f"grey{text}",
        "shuffled": f"red{text}" if number % 2 else f"green{text}",
        "prior": f"black{text}",
        "type": f"colour{text}",
        "group": f"scene{text}",
        "images": [],
    } | more
