"""The demo end to end on the shipped base, cut short; and that the shipped base was trained."""

import json
import random

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tools.embedded_base.bridge import exact
from tools.embedded_base.captions import caption
from tools.embedded_base.tower import pixels
from tuninglab.config import DemoConfig
from tuninglab.embedded import base_directory, scoring
from tuninglab.embedded.digits import sample_digits
from tuninglab.embedded.scenes import sample_scene
from tuninglab.embedded.task import GROUPS
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.recipes import demo

QUESTIONS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A demo of four steps on sixteen pictures, scored on forty questions."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PICTURES", 16)
        patch.setattr(scoring, "TEST_QUESTIONS", QUESTIONS)
        patch.setattr(demo, "SETTINGS", demo.SETTINGS | {"batch_size": 4, "workers": 0})
        demo.run_demo(DemoConfig(output_dir=str(folder)))
    return folder / "demo"


def test_report_has_before_after_controls_and_prior(run):
    report = json.loads((run / "report.json").read_text())
    scores = report["evaluation"]
    for score in (scores["before"], scores["after"], *scores["controls"].values(), scores["prior"]):
        assert score["count"] == QUESTIONS == sum(score["count_by_type"].values())
        weighted = [score["by_type"][k] * n for k, n in score["count_by_type"].items()]
        assert score["exact_match"] == pytest.approx(sum(weighted) / QUESTIONS)
        assert set(score["by_group"]) == set(GROUPS["test"])
    assert set(scores["controls"]) == {"blank", "shuffled"}
    assert report["train"]["steps"] == 4 and report["train"]["samples"] == 16
    assert (run / "report.html").stat().st_size > 10_000 and (run / "loss.png").is_file()


def test_peft_alone_puts_the_adapter_on_the_base(run):
    base = AutoModelForImageTextToText.from_pretrained(base_directory(), dtype=torch.float32)
    ids = torch.tensor([[1, base.config.image_token_id, 5, 6, 7]])
    images = torch.randn(1, 1, 1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    plain = base.eval()(input_ids=ids, pixel_values=images).logits
    tuned = peft.PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    assert not torch.equal(tuned(input_ids=ids, pixel_values=images).logits, plain)


def test_a_second_demo_replaces_the_first_and_the_table_names_every_type(run, capsys):
    report = json.loads((run / "report.json").read_text())
    demo.show(report, run)
    shown = capsys.readouterr().err
    for kind in report["evaluation"]["after"]["by_type"]:
        assert kind in shown
    assert "report.html" in shown


def test_the_shipped_base_captions_pictures_it_never_saw():
    model, processor = load_flamingo(base_directory(), dtype=torch.float32)
    rng = random.Random(5)
    for draw in (lambda: sample_scene(rng, held_out=True), lambda: sample_digits(rng, "val")):
        pictures = [draw() for _ in range(40)]
        with torch.no_grad():
            features = model.encode_images(pixels(pictures, processor.image_processor)[:, None])
            rows = [[("<image>", 0.0), (f"{caption(p)}", 1.0)] for p in pictures]
            assert exact(model, processor.tokenizer, rows, features) > 0.5


def test_the_demo_leaves_other_runs_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.yaml").write_text("data: /mine.json\n")
    with pytest.raises(UserError, match="a run of your own"):
        demo.run_demo(DemoConfig(output_dir=str(tmp_path)))
    assert (tmp_path / "demo" / "config.yaml").read_text() == "data: /mine.json\n"


def test_the_shipped_configuration_names_no_place_it_was_made_at():
    config = json.loads((base_directory() / "config.json").read_text())
    assert not config["text_config"].get("_name_or_path")
    assert not config["vision_config"].get("_name_or_path")
