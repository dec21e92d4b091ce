"""Whole runs on a plain language model and each kind of vision tower beside CLIP."""

import json
from dataclasses import replace

import pytest

from tests.tiny import SIDE, TOWERS, save_tower
from tuninglab.adapters.saving import load_adapter
from tuninglab.cli import main
from tuninglab.config.tuning import TuningConfig
from tuninglab.data.reading.splits import read_splits
from tuninglab.evaluation.answers import generate_answers
from tuninglab.int8.quantiser import int8_layers
from tuninglab.models.build import load_flamingo
from tuninglab.serving.conversation import Conversation
from tuninglab.serving.open_model import open_model

# With the whole runs beside it this takes more than a minute.
pytestmark = pytest.mark.slow

SQUARE = {"height": SIDE, "width": SIDE}


@pytest.fixture
def save_parts(tiny_bases, tiny_flamingo, take_apart, tmp_path):
    """A function (kind of tower) -> flags that name a language model and a tower of that kind."""

    def save(kind):
        lang, tower = take_apart(tiny_flamingo(), tmp_path)
        load_flamingo(tiny_bases["plain"])[1].tokenizer.save_pretrained(lang)
        # As DINOv2 is released: its positions are those of larger pictures.
        save_tower(tower, kind, image_size=40 if "dino" in kind else SIDE)
        crop = {"size": {"shortest_edge": 18}, "crop_size": SQUARE}
        pictures = crop if "dinov2" in kind else {"size": SQUARE}
        (tower / "preprocessor_config.json").write_text(json.dumps(pictures))
        return {"lang_encoder": str(lang), "vision_encoder": str(tower), "model": "embedded"}

    return save


@pytest.mark.parametrize("kind", [kind for kind in TOWERS if "clip" not in kind])
def test_a_tower_trains_goes_on_and_answers(
    stopped_and_whole, kind, config, save_parts, tmp_path, capsys
):
    """On an int8 base with the memory savers and checkpointed blocks, the tower in full."""
    tuning = TuningConfig(train=["vision"], train_answer_tokens="false")
    config = replace(config, tuning_config=tuning, enable_int8=True, activation_checkpointing=True)
    config = replace(config, cross_attn_every_n_layers=1, lr_scheduler="constant")
    config = replace(config, **save_parts(kind))
    report, resumed = stopped_and_whole(config)
    assert report["train"]["last_loss"] < report["train"]["first_loss"]
    # All of the tower moved but what no patch depends on.
    base, processor = load_flamingo(tmp_path / "a" / "base")
    assert int8_layers(base) and not int8_layers(base.vision_encoder)
    tower = {
        f"base_model.model.vision_encoder.{n}" for n, _ in base.vision_encoder.named_parameters()
    }
    unused = {"siglip_vision_model": ".head."}.get(kind, ".mask_token")
    assert tower - resumed.keys() == {name for name in tower if unused in name}
    # The run answers as its adapter on its base.
    tuned = load_adapter(base, tmp_path / "a" / "adapter").eval()
    opened, _ = open_model(str(tmp_path / "a"))
    samples = read_splits(config.data).train
    answers = [generate_answers(m, processor, samples, max_new_tokens=3) for m in (tuned, opened)]
    assert answers[0] == answers[1]
    chat = Conversation(opened, processor, max_new_tokens=3)
    chat.show(str(samples[0].images[0]))
    assert chat.ask("colour?") == answers[0][0]
    assert main(["tree", str(tmp_path / "a")]) == 0
    assert type(base.vision_encoder).__name__ in capsys.readouterr().out
