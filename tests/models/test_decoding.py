"""A token decoded by one call of C against transformers, which takes layer by layer."""

import copy
import threading
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache, StoppingCriteria

from tests.tiny import EOC, IMAGE, flamingo, flamingo_config
from tuninglab.adapters.int8_lora import know_int8
from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.embedded.task import EmbeddedSamples
from tuninglab.int8.linear import Int8Linear
from tuninglab.kernels import compiled
from tuninglab.models import decoding, generation
from tuninglab.models.build import load_flamingo
from tuninglab.models.decoding import decoder_of

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C compiler here")

MARKS = [[2], [], [3, 5], [4, 6, 8]]
OPTIONS = {
    "greedy": {},
    "beams": {"num_beams": 2, "length_penalty": 0.0},
    "sampled": {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0},
}
LORA = r"lang_encoder.*(q_proj|o_proj|gate_proj|down_proj|to_q|to_out|ff\.1|ff\.3)"


@pytest.fixture
def steps(monkeypatch):
    """How many calls of the language model C took, and how many it left."""
    counts, step = Counter(), decoding.Decoder.__call__

    def counting(self, *given):
        done = step(self, *given)
        counts["left" if done is None else "taken"] += 1
        return done

    monkeypatch.setattr(decoding.Decoder, "__call__", counting)
    return counts


def told(model, batch, in_c=True, new=8, **options):
    """What `generate` gives with C or without, from the same seed."""
    usual = {"max_new_tokens": new, "do_sample": False, "eos_token_id": EOC, "min_new_tokens": new}
    usual |= {"output_logits": True, "return_dict_in_generate": True}
    with pytest.MonkeyPatch.context() as patch:
        if not in_c:
            patch.setattr(generation, "decoder_of", lambda _: (None, "left out"))
        torch.manual_seed(3)
        return model.generate(**batch, **usual | options)


def check_equal(model, batch, within=1e-4, **options):
    """The same tokens, and logits that differ by sums of floats."""
    ours, theirs = (told(model, batch, in_c, **options) for in_c in (True, False))
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(mine, other, atol=within, rtol=0)
    return ours


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("interval", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3"])
def test_every_token_is_that_of_transformers(
    family, interval, name, make_flamingo, make_batch, steps
):
    model = make_flamingo(family, cross_attn_every_n_layers=interval)
    check_equal(model, make_batch(MARKS), **OPTIONS[name])
    # All steps but the prompt's.
    assert steps == {"taken": 7, "left": 1}


@pytest.mark.parametrize("mode", ["previous", "next-v1"])
def test_mistral_both_media_modes_and_text_alone(mode, make_flamingo, make_batch, steps):
    model = make_flamingo("mistral", text={"sliding_window": None}, media_mode=mode)
    check_equal(model, make_batch(MARKS))
    batch = make_batch([[], []])
    del batch["pixel_values"]
    check_equal(model, batch)
    del batch["attention_mask"]
    check_equal(model, batch)
    assert steps == {"taken": 21, "left": 3}


@settings(deadline=None, max_examples=25)
@given(
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 3), (5, 5)]),
    head=st.sampled_from([2, 6, 16, 34]),
    inner=st.integers(1, 70),
    layers=st.integers(1, 3),
    cross=st.sampled_from([(1, 4), (3, 5), (2, 18)]),
    rows=st.integers(1, 8),
    latents=st.integers(1, 9),
    biased=st.booleans(),
)
def test_any_shape(heads, head, inner, layers, cross, rows, latents, biased):
    text = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": head}
    text |= {"hidden_size": 60, "intermediate_size": inner, "num_hidden_layers": layers}
    text |= {"attention_bias": biased}
    bridge = {"cross_attn_heads": cross[0], "cross_attn_dim_head": cross[1]}
    bridge |= {"perceiver_latents": latents, "cross_attn_every_n_layers": 1}
    model = flamingo(flamingo_config("llama", text, **bridge), 0.7, 0.4, scale=4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    ids = torch.randint(3, EOC, (rows, 5), generator=torch.Generator().manual_seed(rows))
    ids[::2, 1] = IMAGE
    mask = torch.ones_like(ids)
    mask[-1, :1] = 0
    pixels = torch.randn(rows, 1, 1, 3, 16, 16)
    check_equal(model, {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, new=4)


def test_lora_apart_off_and_merged(make_flamingo, make_batch, steps):
    lora = LoraConfig(r=5, target_modules=LORA, init_lora_weights=False)
    model, batch = get_peft_model(make_flamingo(), lora).eval(), make_batch(MARKS)
    apart = check_equal(model, batch)
    with model.disable_adapter():
        off = check_equal(model, batch)
    # Addresses are read anew each time: here weights changed in place.
    model.merge_adapter()
    merged = check_equal(model, batch)
    assert steps == {"taken": 21, "left": 3}
    torch.testing.assert_close(apart.logits[0], merged.logits[0], atol=1e-4, rtol=0)
    assert not torch.allclose(apart.logits[1], off.logits[1], atol=1e-2)


def test_int8_weights_are_those_that_dequantised_ones_give(make_flamingo, make_batch, steps):
    model = make_flamingo()
    for name, layer in list(model.lang_encoder.model.layers.named_modules()):
        if type(layer) is nn.Linear and "to_kv" not in name:
            model.lang_encoder.model.layers.set_submodule(name, Int8Linear.of(layer))
    lora = know_int8(LoraConfig(r=3, target_modules=LORA, init_lora_weights=False))
    tuned, batch = get_peft_model(model, lora).eval(), make_batch(MARKS)
    floats = copy.deepcopy(tuned)
    for name, layer in list(floats.named_modules()):
        if isinstance(layer, Int8Linear):
            floats.set_submodule(name, layer.to_linear(torch.float32))
    # The prompt is multiplied otherwise, so both go on from the same cache.
    step = {"input_ids": torch.tensor([[5]] * 4), "text_time": torch.tensor([[1], [0], [2], [3]])}
    step |= {"position_ids": torch.tensor([[10], [9], [8], [7]])}
    step["attention_mask"] = nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    with torch.no_grad():
        media = floats.encode_key_values(floats.encode_images(batch["pixel_values"]))
        cache = floats(**batch, use_cache=True).past_key_values
        step |= {"media_key_values": media, "past_key_values": cache}
        decoder, _ = decoder_of(tuned.get_base_model().lang_encoder)
        ours = tuned(**copy.deepcopy(step), decoder=decoder).logits
        theirs = floats(**step).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert steps == {"taken": 1}


def test_bfloat16_is_as_near_to_float32_as_torch_is(make_flamingo, make_batch, steps):
    model, batch = make_flamingo("qwen3"), make_batch([[2], [3, 5]])
    exact = told(model.bfloat16().float(), batch, in_c=False, new=2).logits[1]
    model, batch["pixel_values"] = model.bfloat16(), batch["pixel_values"].bfloat16()
    ours, theirs = (told(model, batch, in_c, new=2).logits[1] for in_c in (True, False))
    assert steps["taken"] == 1
    assert (ours - exact).norm() < 1.25 * (theirs - exact).norm()
    assert (ours - theirs).norm() < 0.02 * exact.norm()


def test_the_embedded_model_answers_100_questions_the_same(steps):
    model, processor = load_flamingo("embedded")
    questions = EmbeddedSamples("test", 104)
    rows = SampleDataset(questions, processor, prompts_only=True)
    collate = Collator(processor.tokenizer.pad_token_id, processor.image_size, "left")
    for start in range(0, len(rows), 8):
        batch = collate([rows[k] for k in range(start, start + 8)]).inputs
        check_equal(model, batch, new=4)
    assert steps == {"taken": 39, "left": 13}


def test_stopping_streaming_and_processors_go_on_as_before(make_flamingo, make_batch, steps):
    class Third(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 13)

    model, batch = make_flamingo(), make_batch([[2]])
    options = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2, "min_new_tokens": 0}
    ours = check_equal(model, batch, stopping_criteria=[Third()], **options)
    assert ours.sequences.shape == (1, 13) and steps == {"taken": 2, "left": 1}
    # Several tokens at once are no step of C; those that follow are.
    check_equal(model, batch, prompt_lookup_num_tokens=2, new=20)
    assert steps["taken"] > 2


def test_an_assistant_model_goes_on_as_before(make_flamingo, make_batch, steps):
    model, batch = make_flamingo(), make_batch([[]])
    del batch["pixel_values"]
    for assistant in (make_flamingo(), make_flamingo().lang_encoder):
        check_equal(model, batch, assistant_model=assistant)


def test_the_cache_goes_on_by_hand_cropped_and_selected(make_flamingo, make_batch):
    model, batch = make_flamingo(), make_batch([[2], [3, 5]])
    ours, theirs = (told(model, batch, in_c, new=80).past_key_values for in_c in (True, False))
    assert isinstance(ours, DynamicCache)
    for cache in (ours, theirs):
        cache.crop(-20)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0]))
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys)
        torch.testing.assert_close(mine.values, other.values)
    mine, other = copy.deepcopy(ours.layers[0]), ours.layers[0]
    keys, _ = mine.grow()
    assert keys.shape[2] > mine.keys.shape[2] == other.keys.shape[2] + 1
    before = keys.data_ptr()
    assert mine.grow()[0].data_ptr() == before
    assert torch.equal(mine.keys[:, :, :-2], other.keys)


def hooked(model):
    model.lang_encoder.model.layers[1].decoder_layer.mlp.register_forward_hook(lambda *_: None)
    return model


def own_forward(model):
    layer = model.lang_encoder.model.layers[0].decoder_layer.self_attn.q_proj
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight)
    return model


def with_lora(model, twice=False, **options):
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, **options)
    tuned = get_peft_model(model, lora)
    if twice:
        tuned.add_adapter("second", lora)
        tuned.base_model.set_adapter(["default", "second"])
    return tuned.eval()


def other_layer(model):
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    model.lang_encoder.model.layers[0].decoder_layer.mlp.up_proj.__class__ = Doubled
    return model


@pytest.mark.parametrize(
    "change, family, reason",
    [
        (hooked, "llama", "LlamaMLP has a hook"),
        (own_forward, "llama", "Linear has a hook or a forward of its own"),
        (other_layer, "llama", "Doubled is not among the layers"),
        (lambda m: with_lora(m, use_dora=True), "llama", "not plain LoRA"),
        (lambda m: with_lora(m, lora_bias=True), "qwen2", "not plain LoRA"),
        (lambda m: with_lora(m, twice=True), "llama", "several adapters"),
        (lambda m: m.train(), "llama", "training mode"),
        (lambda m: m, "mistral", "sliding window"),
        (lambda m: m, "gemma2", "Gemma2ForCausalLM is not among the models"),
    ],
)
def test_what_is_not_known_goes_layer_by_layer(
    change, family, reason, make_flamingo, make_batch, steps
):
    model = change(make_flamingo(family))
    language = getattr(model, "get_base_model", lambda: model)().lang_encoder
    found, why = decoder_of(language)
    assert found is None and reason in why
    assert told(model, make_batch(MARKS)).sequences.shape == (4, 18)
    assert not steps


def test_other_steps_are_left_to_torch(make_flamingo, make_batch, steps):
    model = make_flamingo()
    check_equal(model, make_batch([[2]] * 9))
    check_equal(model, make_batch([[2]]), output_hidden_states=True)
    check_equal(model, make_batch([[2]]), use_cache=False)
    check_equal(model, make_batch([[2]]), cache_implementation="static")
    assert "taken" not in steps
    assert decoder_of(model.double().lang_encoder)[0] is None
    assert decoder_of(model.to("meta").lang_encoder)[0] is None


def test_two_threads_generate_with_one_model(make_flamingo, make_batch):
    model, found = make_flamingo(), {}
    batches = [make_batch([[2], [3, 5]]), make_batch([[], [1], [4, 6]], length=13)]
    expected = [told(model, batch, in_c=False, new=40).sequences for batch in batches]

    def run(number):
        options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
        found[number] = [
            model.generate(**batches[number], **options, eos_token_id=EOC) for _ in range(3)
        ]

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert all(torch.equal(ids, expected[number]) for ids in found[number])


def test_threads_share_the_work(make_flamingo, make_batch, monkeypatch):
    pack = decoding.Packing.layers

    def large(self, model):
        layers = pack(self, model)
        # As if the weights were worth it.
        layers.weights = 1 << 50
        return layers

    model, batch = make_flamingo(cross_attn_every_n_layers=1), make_batch(MARKS)
    alone, before = told(model, batch), torch.get_num_threads()
    monkeypatch.setattr(decoding.Packing, "layers", large)
    torch.set_num_threads(3)
    try:
        several = told(model, batch)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(several.sequences, alone.sequences)
    # The prompt's products are torch's, and may be other sums of floats.
    for mine, other in zip(several.logits, alone.logits, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=0)
