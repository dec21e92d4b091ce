"""The table of a plan, in terminals of any width."""

import pytest

from tuninglab.reporting.plan_text import lines, text_of

FIGURES = {
    "peak_memory_mib": {
        "total": 1500.0,
        "activations: gated cross-attention": 1000.0,
        "language model bfloat16": 494.0,
        "LoRA": 6.0,
    },
    "available_mib": 1000.0,
    "fits": False,
    "step_s": 0.25,
    "wall_s": 3725.0,
    "phases": {"load": 600.0, "train": 1500.0},
    "uncertainty": {"memory": 0.1, "time": 0.3},
    "no_time": None,
    "steps": 1200,
    "device": {"name": "a CPU"},
    "note": "Tokens are an estimate.",
    "suggestions": [
        {
            "flags": "--batch_size 4 --gradient_accumulation_steps 4",
            "needed_mib": 700.0,
            "step_s": 0.5,
            "fits": True,
            "price": None,
        },
        {
            "flags": "--enable_int8 true",
            "needed_mib": 800.0,
            "step_s": 0.2,
            "fits": True,
            "price": "a base rounded to 8 bits",
        },
    ],
}


@pytest.mark.parametrize("columns", [40, 60, 100, 300])
def test_it_keeps_to_the_width_of_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = text_of(FIGURES)
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    words = " ".join(text.split())
    for part in ("1.46 GiB", "does NOT fit", "+100%", "-20%", "--enable_int8", "estimate", "60%"):
        assert part in words


def test_what_looks_like_markup_is_shown_as_it_is():
    device, suggestion = {"name": "GPU [red]x[/blue]"}, FIGURES["suggestions"][0]
    flags = {**suggestion, "flags": "--targets [/a]"}
    text = text_of({**FIGURES, "device": device, "note": "[b]n[/x]", "suggestions": [flags]})
    words = " ".join(text.split())
    assert "GPU [red]x[/blue]" in words and "[b]n[/x]" in words and "--targets [/a]" in words


def test_small_parts_stand_together():
    text = text_of(FIGURES)
    assert "LoRA" not in text
    assert "all else" in text
    assert "6 MiB" in text


def test_what_cannot_be_known_is_said():
    figures = {**FIGURES, "step_s": None, "wall_s": None, "no_time": "the GPU is not here"}
    figures["suggestions"] = [{**FIGURES["suggestions"][0], "step_s": None}]
    assert "the GPU is not here" in lines(figures)[1]
    assert "the GPU is not here" in text_of(figures)


def test_the_least_that_does_not_fit_is_no_remedy():
    least = {**FIGURES["suggestions"][0], "fits": False}
    assert "makes it fit" not in text_of({**FIGURES, "suggestions": [least]})
    assert "does not fit either" in text_of({**FIGURES, "suggestions": [least]})
