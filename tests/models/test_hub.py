"""Names of models: the shipped one, directories, and a hub that may be out of reach."""

import time

import pytest
import torch
from huggingface_hub import constants

from tuninglab import FlamingoForConditionalGeneration, FlamingoProcessor
from tuninglab.errors import UserError
from tuninglab.models import hub
from tuninglab.models.build import load_flamingo


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Nobody answers at the hub's address, and nothing was downloaded before."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_reached", False)
    return tmp_path


def test_embedded_is_the_shipped_model_whatever_lies_here(tmp_path, monkeypatch):
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    processor = FlamingoProcessor.from_pretrained("embedded")
    model = FlamingoForConditionalGeneration.from_pretrained("embedded", dtype=torch.float32).eval()
    same, _ = load_flamingo("embedded", dtype=torch.float32)
    ids = processor(text=["A red circle"])["input_ids"]
    assert torch.equal(model(input_ids=ids).logits, same(input_ids=ids).logits)
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())


@pytest.mark.parametrize("kind", [FlamingoForConditionalGeneration, FlamingoProcessor])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/model", r"127\.0\.0\.1:9 cannot be reached.*hf download owner/model --local-dir"),
        ("my_flamingo", r"no directory my_flamingo; check the path"),
    ],
)
def test_a_model_out_of_reach_is_told_at_once(no_network, kind, name, said):
    started = time.monotonic()
    # The class that transformers raises: programs may catch it.
    with pytest.raises(OSError, match=said):
        kind.from_pretrained(name)
    with pytest.raises(UserError, match=said):
        load_flamingo(name)
    assert time.monotonic() - started < 3


def test_without_a_network_an_earlier_download_is_taken(no_network, tiny_bases, monkeypatch):
    # As the hub's cache lays it out.
    repo = no_network / "cache" / "models--owner--model"
    (repo / "snapshots").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").symlink_to(tiny_bases["plain"])
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda *a: original(*a, cache_dir=no_network / "cache")
    )
    model, _ = load_flamingo("owner/model")
    assert model.config.model_type == "flamingo"
    assert FlamingoProcessor.from_pretrained("owner/model").chat_template


original = hub.try_to_load_from_cache


def test_offline_by_the_users_wish_asks_nobody(no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", None)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids.*hf download owner/model"):
        load_flamingo("owner/model")
