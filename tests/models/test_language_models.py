"""Language models of today, tiny: a Flamingo around each is built, trained, saved and generates."""

from typing import get_args

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from tests.tiny import SIDE, save_tower, text_config
from tuninglab.adapters.base_format import left_in_float
from tuninglab.adapters.lora import check_patterns, tune
from tuninglab.config.training import Saver
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError
from tuninglab.int8.quantiser import Int8Config, int8_layers
from tuninglab.models import flamingo_from_parts, load_flamingo
from tuninglab.savers import add_savers

# With the whole runs beside it this takes more than a minute.
pytestmark = pytest.mark.slow

# name -> whether its head is tied here, as in the small releases.
SHAPES = {
    "llama3": True,
    "mistral": False,
    "qwen2": True,
    "qwen3": True,
    "gemma": True,
    "gemma2": True,
    "gemma3_text": True,
    "phi": False,
    "phi3": False,
    "phi4-mini": True,
}
# Linear layers of a decoder layer; 7 where queries, keys, values and both halves are apart.
LINEAR = {"phi": 6, "phi3": 4, "phi4-mini": 4}
TRAINED = {"train_perceiver": True, "train_cross_attention": True}


@pytest.fixture
def make_parts(tmp_path, make_tokenizer):
    """A function (shape, **options) -> Flamingo and processor around a saved language model."""

    def make(shape, **options):
        torch.manual_seed(0)
        words = make_tokenizer()
        config = text_config(shape, vocab_size=len(words), pad_token_id=None)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / shape)
        words.save_pretrained(tmp_path / shape)
        save_tower(tmp_path / "tower", "siglip_vision_model")
        bridge = {"perceiver_depth": 1, "perceiver_latents": 4, "perceiver_heads": 2}
        return flamingo_from_parts(tmp_path / shape, tmp_path / "tower", 2, **bridge, **options)

    return make


def batch_of(processor, *answer):
    # Longer than a sliding window of 4; generation passes the 16 positions that a scaled RoPE knew
    # before.
    texts = [" ".join(["<image>", *["a cat and"] * 4, *answer]), " ".join(["a dog and", *answer])]
    return processor(text=texts, images=[[Image.new("RGB", (SIDE, SIDE), "red")], []])


def generated(model, prompt, **options):
    """Six tokens after a prompt, and their logits (6, B, vocabulary)."""
    options |= {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    out = model.generate(**prompt, **options, output_logits=True, return_dict_in_generate=True)
    out.logits = torch.stack(out.logits)
    return out


def after_two_steps(model, processor):
    """The model tuned by two steps on one batch, at each of which the loss fell."""
    batch = batch_of(processor, "a dog")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    tuned = tune(model, TuningConfig(lora_target_modules=["all-linear"], **TRAINED)).train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(2):
        loss = tuned(**batch, labels=labels, labels_only_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert tuned(**batch, labels=labels).loss < losses[1] < losses[0]
    return tuned


@pytest.mark.parametrize("shape", SHAPES)
def test_an_int8_base_trains_with_the_memory_savers(shape, make_parts):
    left_out = left_in_float(TuningConfig(), fresh_bridge=True)
    model, processor = make_parts(shape, quantization=Int8Config(left_out))
    assert len(int8_layers(model)) == 4 * LINEAR.get(shape, 7)
    add_savers(model.requires_grad_(False), get_args(Saver))
    after_two_steps(model, processor)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flamingo_around_it_trains_and_comes_back(shape, make_parts, tmp_path):
    model, processor = make_parts(shape)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is table) == SHAPES[shape] == model.config.tie_word_embeddings
    assert len(table) == len(processor.tokenizer) == 10
    for block in model.gated_blocks:
        block.attn_gate.data.fill_(0.5)
    tuned = after_two_steps(model, processor)
    merged = tuned.merge_and_unload().eval()
    merged.save_pretrained(tmp_path / "flamingo")
    processor.save_pretrained(tmp_path / "flamingo")
    again, words = load_flamingo(tmp_path / "flamingo")
    head, table = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (head is table) == SHAPES[shape]
    prompt = batch_of(words)
    answers = [generated(m, prompt) for m in (merged, again)]
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    torch.testing.assert_close(answers[0].logits, answers[1].logits, atol=1e-6, rtol=0)
    # With the cache as without it: windows, scaled positions and images go on.
    whole = generated(merged, prompt, use_cache=False)
    torch.testing.assert_close(answers[0].logits, whole.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", ["phi", "phi3", "phi4-mini"])
def test_phi_is_told_its_own_names(shape, make_parts):
    model, _ = make_parts(shape)
    fused = r"(?s)'q_proj' hits .*did you mean qkv_proj.*end in: .*gate_up_proj.*all-linear"
    said = "'o_proj' hits no layer.*end in: .*dense, fc1.*all-linear"
    with pytest.raises(UserError, match=f"(?s){said}" if shape == "phi" else fused):
        check_patterns(model, TuningConfig())
