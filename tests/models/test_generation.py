import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

FAMILIES = ["llama", "qwen2", "opt", "gpt_neox", "mpt", "gptj", "gpt2"]
MARKS = [[2], [], [3, 5], [4, 6, 8]]


def full_logits(model, batch, ids):
    """Logits after the last token by one uncached forward over all tokens so far."""
    grown = ids.shape[1] - batch["input_ids"].shape[1]
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, grown), value=1)
    with torch.no_grad():
        return model(ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits[:, -1]


@pytest.mark.parametrize("mode", ["previous", "next-v1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_full_forward_step_by_step(family, mode, make_flamingo, make_batch):
    model = make_flamingo(family, media_mode=mode)
    batch = make_batch(MARKS)
    result = model.generate(
        **batch,
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=-1,
    )
    assert result.sequences.shape == (4, 16)
    assert torch.equal(result.sequences[:, :10], batch["input_ids"])
    for step, logits in enumerate(result.logits):
        expected = full_logits(model, batch, result.sequences[:, : 10 + step])
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
        expected[:, model.config.image_token_id] = -torch.inf
        assert torch.equal(result.sequences[:, 10 + step], expected.argmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_equal_no_cache_and_full_forward(family, make_flamingo, make_batch):
    model = make_flamingo(family)
    batch = make_batch(MARKS)
    options = {
        "max_new_tokens": 5,
        "num_beams": 3,
        "do_sample": False,
        "eos_token_id": -1,
        "length_penalty": 0.0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    cached = model.generate(**batch, **options)
    plain = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    # The reported score is the sum of log-probabilities along the sequence: here by full forwards.
    total = torch.zeros(4)
    for step in range(5):
        ids = cached.sequences[:, : 10 + step]
        chosen = cached.sequences[:, 10 + step]
        log_probabilities = full_logits(model, batch, ids).log_softmax(-1)
        total += log_probabilities.gather(1, chosen[:, None])[:, 0]
    torch.testing.assert_close(cached.sequences_scores, total, atol=1e-4, rtol=1e-4)


def test_each_row_alone_generates_the_same(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch(MARKS)
    together = model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    for row, marks in enumerate(MARKS):
        images = batch["pixel_values"][row : row + 1, : len(marks)] if marks else None
        prompt = batch["input_ids"][row : row + 1, row:]
        mask = torch.ones_like(prompt)
        alone = model.generate(
            prompt,
            attention_mask=mask,
            pixel_values=images,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=-1,
        )
        assert torch.equal(alone[0], together[row, row:])


def test_images_matter(make_flamingo, make_batch):
    model = make_flamingo(gate=2.0)
    batch = make_batch([[2]])
    options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    first = model.generate(**batch, **options).logits[0]
    batch["pixel_values"] = -batch["pixel_values"]
    assert not torch.allclose(first, model.generate(**batch, **options).logits[0])


def test_sampling_returns_several_sequences_a_row(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch(MARKS)
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(3)
    sequences = model.generate(**batch, **options, eos_token_id=-1, temperature=5.0)
    assert sequences.shape == (12, 18)
    assert torch.equal(sequences[:, :10], batch["input_ids"].repeat_interleave(3, dim=0))
    assert len({tuple(row.tolist()) for row in sequences}) == 12
    assert not (sequences[:, 10:] == model.config.image_token_id).any()
    torch.manual_seed(3)
    uncached = model.generate(**batch, **options, eos_token_id=-1, temperature=5.0, use_cache=False)
    assert torch.equal(sequences, uncached)


def test_images_encoded_once_and_key_values_computed_once(make_flamingo, make_batch):
    model = make_flamingo()
    calls = {"vision": [], "perceiver": [], "to_kv": []}

    def record(name):
        return lambda module, args, output: calls[name].append(len(args[0]) if args else None)

    model.vision_encoder.register_forward_hook(record("vision"))
    model.perceiver.register_forward_hook(record("perceiver"))
    for block in model.gated_blocks:
        block.attn.to_kv.register_forward_hook(record("to_kv"))
    batch = make_batch([[2], [3, 5]])
    for options in ({}, {"num_beams": 4}, {"num_return_sequences": 2, "do_sample": True}):
        for found in calls.values():
            found.clear()
        model.generate(**batch, max_new_tokens=6, eos_token_id=-1, **options)
        # Once a generate, for the rows given and not for their beams; once a gated layer. The 3
        # images of the 2 rows are encoded, and not the fourth, which is padding.
        assert {name: len(found) for name, found in calls.items()} == {
            "vision": 1,
            "perceiver": 1,
            "to_kv": 2,
        }
        assert calls["perceiver"] == [3] and calls["to_kv"] == [2, 2]


def test_lora_around_to_kv_is_used(make_flamingo, make_batch):
    from peft import LoraConfig, get_peft_model

    model = make_flamingo()
    batch = make_batch([[2], [3, 5]])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    before = model.generate(**batch, **options).logits[0]
    tuned = get_peft_model(model, LoraConfig(target_modules=["to_kv"], init_lora_weights=False))
    result = tuned.generate(**batch, **options)
    assert not torch.allclose(before, result.logits[0])
    for step, logits in enumerate(result.logits):
        expected = full_logits(tuned, batch, result.sequences[:, : 10 + step])
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def test_image_features_instead_of_pixels(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2, 6], [3, 5]])
    expected = model.generate(**batch, max_new_tokens=4, do_sample=False)
    logits = model(**batch).logits
    features = model.encode_images(batch.pop("pixel_values"))
    assert torch.equal(model(**batch, image_features=features).logits, logits)
    found = model.generate(**batch, image_features=features, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, expected)


def test_padding_images_are_not_encoded(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2], [3, 5]])
    pixels = batch.pop("pixel_values")
    expected = model(**batch, image_features=model.encode_images(pixels)).logits
    # What is not encoded cannot do harm either.
    pixels[0, 1] = torch.nan
    # Other sums of floats: matrix products of 3 images and of 4 may differ in the last bit.
    torch.testing.assert_close(model(**batch, pixel_values=pixels).logits, expected)
    seen = torch.tensor([[True, False], [True, True]])
    assert torch.equal(model.encode_images(pixels, seen)[0, 1], torch.zeros(5, 24))


def test_text_time_continues_a_cache_by_hand(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2, 5]])
    ids, features = batch["input_ids"], model.encode_images(batch["pixel_values"])
    expected = model(ids, image_features=features).logits[:, 7:]
    cache = model(ids[:, :7], image_features=features, use_cache=True).past_key_values
    rest = model(
        ids[:, 7:],
        image_features=features,
        past_key_values=cache,
        text_time=torch.full((1, 3), 2),
    )
    torch.testing.assert_close(rest.logits, expected, atol=2e-5, rtol=1e-4)


def test_ends_at_end_of_chunk_by_default(make_flamingo, make_batch):
    model = make_flamingo("mpt")
    batch = make_batch([[2]])
    with torch.no_grad():
        # A constant hidden state times one large row: every next token is <|endofchunk|>.
        head = model.get_output_embeddings()
        model.lang_encoder.transformer.norm_f.weight.zero_()
        model.lang_encoder.transformer.norm_f.bias = torch.nn.Parameter(torch.ones(32))
        head.weight[60] = 9.0
    tokens = model.generate(**batch, max_new_tokens=5)
    assert tokens[0, 10:].tolist() == [60]


def test_the_users_suppressed_tokens_stay_suppressed(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2]])
    options = {"max_new_tokens": 1, "do_sample": False}
    first = model.generate(**batch, **options)[0, -1].item()
    second = model.generate(**batch, **options, suppress_tokens=[first])[0, -1].item()
    assert second not in (first, model.config.image_token_id)


def test_wrong_inputs_say_what_is_wrong(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2, 3]])
    with pytest.raises(ValueError, match="row 0 has 2 <image> marks but 0 images"):
        model.generate(batch["input_ids"], max_new_tokens=2)
    with pytest.raises(ValueError, match="neither input_ids nor inputs"):
        model.generate(pixel_values=batch["pixel_values"])


class Largest(TorchDispatchMode):
    """Keeps the most numbers that any operation gave (a batched product expands what it takes)."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("count", [0, 1, 3, 10, 12])
def test_the_last_logits_are_those_of_transformers(count, make_flamingo, make_batch):
    model, batch = make_flamingo(gate=0.0), make_batch([[], [], []])
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    positions = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    plain = model.lang_encoder(**given, position_ids=positions, logits_to_keep=count).logits
    logits = model(**given, logits_to_keep=count).logits
    assert logits.shape == plain.shape
    torch.testing.assert_close(logits, plain)


def test_the_prompt_makes_no_copy_of_a_frozen_head(make_flamingo, make_batch):
    model, batch = make_flamingo().requires_grad_(False), make_batch(MARKS)
    # More numbers than anything else that these 4 rows of 10 tokens make.
    head = torch.nn.Linear(32, 4096, bias=False).requires_grad_(False)
    model.lang_encoder.lm_head = head
    with torch.no_grad(), Largest() as forward:
        model(**batch, logits_to_keep=1)
    with Largest() as generation:
        model.generate(**batch, max_new_tokens=1)
    # The head itself, turned.
    assert forward.numbers <= head.weight.numel() and generation.numbers <= head.weight.numel()
