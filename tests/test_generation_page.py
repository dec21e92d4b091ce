"""What docs/generation.md says of the embedded model, and examples/few_shot.py, hold."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tuninglab.embedded.scenes import Scene, Thing
from tuninglab.evaluation.classification import classify
from tuninglab.serving.open_model import open_model

ROOT = Path(__file__).resolve().parents[1]
RED_BLUE = "<image>Red<|endofchunk|><image>Blue<|endofchunk|><image>"


@pytest.fixture(scope="module")
def embedded():
    return open_model("embedded")


@pytest.fixture(scope="module")
def pictures():
    shown = (("red", "circle"), ("blue", "star"), ("green", "square"))
    return [
        Scene((Thing(color, shape, "large", 4),), seed).draw()
        for seed, (color, shape) in enumerate(shown)
    ]


def test_the_limits_of_the_page_are_still_there(embedded, pictures):
    model, processor = embedded
    inputs = processor(text=RED_BLUE, images=pictures)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(new)[0].startswith(" A large green square at the center.")


def test_the_example_runs_and_sees_the_square(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["few_shot.py"])
    runpy.run_path(str(ROOT / "examples" / "few_shot.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    for answer, ranks in zip(lines[::2], lines[1::2], strict=True):
        assert "The square is -> green." in answer
        assert int(re.search(r"green (\d+)%", ranks)[1]) > 50


def test_a_batch_answers_and_ranks_as_each_row_does_alone(embedded, pictures):
    model, processor = embedded
    prompts = [
        "<image>The circle is red.<|endofchunk|><image>The star is blue.<|endofchunk|><image>The",
        "<image>A large red circle at the center.<|endofchunk|><image>A large",
        "<image>",
        "The sky is",
    ]
    rows = [pictures, pictures[:2], pictures[2:], []]
    inputs = processor(text=prompts, images=rows)
    length = inputs["input_ids"].shape[1]
    for options in ({"num_beams": 1}, {"num_beams": 3}):
        options |= {"max_new_tokens": 10, "do_sample": False}
        together = model.generate(**inputs, **options)[:, length:]
        for prompt, row, found in zip(prompts, rows, together, strict=True):
            alone = processor(text=[prompt], images=[row])
            output = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
            assert torch.equal(found[: len(output)], output)
            assert (found[len(output) :] == processor.tokenizer.pad_token_id).all()
    # The same with the rows in another order, and so with other paddings.
    answers = ["green.", "blue star", "red"]
    first = classify(model, processor, prompts, rows, answers)
    turned = classify(model, processor, prompts[::-1], rows[::-1], answers)
    torch.testing.assert_close(turned.log_probs.flip(0), first.log_probs, atol=2e-5, rtol=1e-5)
