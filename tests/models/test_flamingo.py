import copy
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration
from tuninglab.models.conditioning import current_conditioning
from tuninglab.models.flamingo import next_token_loss
from tuninglab.models.gated_cross_attention import FlamingoLayer

FAMILIES = ["llama", "qwen2", "opt", "gpt_neox", "mpt", "gptj", "gpt2"]
LAYER_PATHS = {
    "llama": "model.layers",
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "mpt": "transformer.blocks",
    "gptj": "transformer.h",
}


def real(tensor, batch):
    return tensor[batch["attention_mask"].bool()]


@pytest.mark.parametrize("family", FAMILIES)
def test_gate_zero_is_the_plain_language_model(family, make_flamingo, make_batch):
    model = make_flamingo(family, gate=0.0)
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    unwrapped = {
        name.replace(".decoder_layer.", "."): value
        for name, value in model.lang_encoder.state_dict().items()
        if "gated_cross_attn_layer" not in name
    }
    plain.load_state_dict(unwrapped)
    batch = make_batch([[1], [3, 5]])
    ids = batch["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids, pixel_values=batch["pixel_values"]).logits, plain(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_equals_single_rows(family, make_flamingo, make_batch):
    model = make_flamingo(family)
    batch = make_batch([[1, 4, 6], [], [5], [4, 7]])
    together = model(**batch).logits
    for row, marks in enumerate([3, 0, 1, 2]):
        images = batch["pixel_values"][row : row + 1, :marks] if marks else None
        alone = model(batch["input_ids"][row : row + 1, row:], pixel_values=images).logits
        torch.testing.assert_close(together[row, row:], alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_change_text_after_them_only(family, make_flamingo, make_batch):
    model = make_flamingo(family)
    batch = make_batch([[2, 6]])
    first = model(**batch).logits
    batch["pixel_values"][0, 1] += 1.0
    second = model(**batch).logits
    assert torch.equal(first[0, :6], second[0, :6])
    assert (first[0, 6:] - second[0, 6:]).abs().amax(-1).min() > 1e-4


def test_surplus_images_are_ignored(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2], []], images=3)
    before = model(**batch).logits
    batch["pixel_values"][0, 1:] = 7.0
    batch["pixel_values"][1] = -7.0
    assert torch.equal(before, model(**batch).logits)


def test_text_only_equals_blank_surplus_images(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[], []], images=1)
    blank = model(**batch).logits
    del batch["pixel_values"]
    torch.testing.assert_close(model(**batch).logits, blank, atol=1e-6, rtol=0)


def test_five_dimensions_are_one_frame_and_frames_matter(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[1]])
    pixels = batch.pop("pixel_values")
    still = model(**batch, pixel_values=pixels).logits
    assert torch.equal(still, model(**batch, pixel_values=pixels[:, :, 0]).logits)
    clip = torch.cat([pixels, pixels + 1], dim=2)
    assert not torch.allclose(still, model(**batch, pixel_values=clip).logits)
    assert model.encode_images(clip).shape == (1, 1, 5, 24)


def test_wrong_inputs_say_what_is_wrong(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2], [3, 5]])
    with pytest.raises(ValueError, match="row 1 has 2 <image> marks but 1 images"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:, :1]})
    for absent in (None, batch["pixel_values"][:, :0]):
        with pytest.raises(ValueError, match="row 0 has 1 <image> marks but 0 images"):
            model(**{**batch, "pixel_values": absent})
    with pytest.raises(ValueError, match="2 rows, but the images have 1"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:1]})
    with pytest.raises(ValueError, match=r"shape \(2, 3, 1, 16, 16\)"):
        model(**{**batch, "pixel_values": batch["pixel_values"].transpose(2, 3)[:, 0]})
    cache = model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="without text_time"):
        model(**{**batch, "input_ids": batch["input_ids"][:, -1:]}, past_key_values=cache)


def test_loss_by_hand(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2], [3, 5]])
    labels = batch["input_ids"].clone()
    labels[:, :6] = -100
    output = model(**batch, labels=labels)
    log_probabilities = output.logits.log_softmax(-1)
    terms = [
        -log_probabilities[row, t - 1, labels[row, t]]
        for row in range(2)
        for t in range(1, labels.shape[1])
        if labels[row, t] != -100
    ]
    torch.testing.assert_close(output.loss, sum(terms) / 8)
    divided = model(**batch, labels=labels, num_items_in_batch=32).loss
    torch.testing.assert_close(divided, sum(terms) / 32)
    tensor_count = model(**batch, labels=labels, num_items_in_batch=torch.tensor(32)).loss
    assert torch.equal(divided, tensor_count)
    nothing = model(**batch, labels=torch.full_like(labels, -100))
    assert nothing.loss == 0 and nothing.loss.requires_grad
    with pytest.raises(ValueError, match=r"logits of \(2, 1\) positions for labels of \(2, 10\)"):
        model(**batch, labels=labels, logits_to_keep=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_only_logits_same_loss_and_gradients(family, make_flamingo, make_batch):
    model = make_flamingo(family)
    batch = make_batch([[2], [3, 5]])
    labels = batch["input_ids"].clone()
    labels[0, :6], labels[1, :8] = -100, -100
    gradients = []
    for only in (False, True):
        model.zero_grad()
        output = model(**batch, labels=labels, labels_only_logits=only)
        output.loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert output.logits.shape == ((6, 64) if only else (2, 10, 64))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_loss_of_16_bit_logits_is_computed_in_float32():
    logits = torch.randn(3, 7, 50).bfloat16()
    targets = torch.randint(0, 50, (3, 7))
    assert next_token_loss(logits, targets).dtype == torch.float32


def test_conditioning_is_gone_after_forward_and_exception(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2]])
    text = model.lang_encoder(input_ids=batch["input_ids"]).logits
    model(**batch)
    assert current_conditioning() is None
    hook = model.lang_encoder.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    hook.remove()
    assert current_conditioning() is None
    assert torch.equal(text, model.lang_encoder(input_ids=batch["input_ids"]).logits)


def test_forward_inside_a_forward_keeps_the_outer_images(make_flamingo, make_batch):
    outer, inner = make_flamingo(), make_flamingo()
    batch, other = make_batch([[2]]), make_batch([[1], [4]])
    expected = outer(**batch).logits
    layer = outer.lang_encoder.model.layers[0]
    layer.register_forward_hook(lambda *_: inner(**other) and None)
    assert torch.equal(outer(**batch).logits, expected)


def test_two_threads_do_not_see_each_others_images(make_flamingo, make_batch):
    model = make_flamingo()
    batches = [make_batch([[2]]), make_batch([[2]])]
    batches[1]["pixel_values"] += 1.0
    expected = [model(**batch).logits for batch in batches]
    # Both threads stand between the first and the last layer at the same time.
    barrier = threading.Barrier(2, timeout=30)

    def meet(*_):
        barrier.wait()

    model.lang_encoder.model.layers[2].register_forward_hook(meet)
    results = [None, None]

    def run(number):
        results[number] = model(**batches[number]).logits

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], expected[0]) and torch.equal(results[1], expected[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "mpt"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_same_gradients(family, use_reentrant, make_flamingo, make_batch):
    model = make_flamingo(family)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.get_input_embeddings().requires_grad_(True)
    batch = make_batch([[2], [3, 5]])

    def gradients():
        model.zero_grad()
        loss = model(**batch, labels=batch["input_ids"], use_cache=False).loss
        # Another forward before backward: the recompute must see its own images.
        model(**{**batch, "pixel_values": batch["pixel_values"] + 1})
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert any(block.gradient_checkpointing for block in model.gated_blocks)
    found = gradients()
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_tower_is_frozen_and_can_be_trained(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2]])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is None for p in model.vision_encoder.parameters())
    assert all(p.grad is not None for p in model.perceiver.parameters())
    model.vision_encoder.requires_grad_(True)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.vision_encoder.embeddings.patch_embedding.weight.grad.abs().sum() > 0


def test_deepcopy_is_independent(make_flamingo, make_batch):
    model = make_flamingo()
    twin = copy.deepcopy(model)
    batch = make_batch([[2]])
    expected = model(**batch).logits
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(twin(**batch).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_are_bit_equal(family, make_flamingo, make_batch, tmp_path):
    model = make_flamingo(family)
    batch = make_batch([[2], [3, 5]])
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is FlamingoForConditionalGeneration
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == bool(model.config.text_config.tie_word_embeddings)
    assert tied == (again.get_output_embeddings().weight is again.get_input_embeddings().weight)
    assert not any(p.requires_grad for p in again.vision_encoder.parameters())
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id == [60, 2]


def test_missing_gated_blocks_are_initialised(make_flamingo, tmp_path):
    model = make_flamingo()
    kept = {k: v for k, v in model.state_dict().items() if "gated" not in k and "perc" not in k}
    model.save_pretrained(tmp_path, state_dict=kept)
    again, info = FlamingoForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert any("attn_gate" in key for key in info["missing_keys"])
    for block in again.gated_blocks:
        assert block.attn_gate.item() == 0 and block.ff_gate.item() == 0
        assert torch.equal(block.attn.norm.weight, torch.ones(32))
        # Uniform within 1 / sqrt(fan_in), torch's default for a linear layer.
        assert 0.9 / 32**0.5 < block.attn.to_q.weight.abs().max() <= 1 / 32**0.5
    assert 0.7 < again.perceiver.latents.std() < 1.3


@pytest.mark.parametrize("family", sorted(LAYER_PATHS))
def test_state_dict_names_are_openflamingos(family, make_flamingo):
    names = set(make_flamingo(family).state_dict())
    layer = f"lang_encoder.{LAYER_PATHS[family]}"
    block = {
        *(f"attn.{name}" for name in ("norm.weight", "norm.bias", "to_q.weight", "to_kv.weight")),
        *("attn.to_out.weight", "attn_gate", "ff_gate"),
        *("ff.0.weight", "ff.0.bias", "ff.1.weight", "ff.3.weight"),
    }
    for number in range(4):
        prefix = f"{layer}.{number}.gated_cross_attn_layer."
        found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        assert found == (block if number in (1, 3) else set())
        assert any(name.startswith(f"{layer}.{number}.decoder_layer.") for name in names)
    assert {"perceiver.latents", "perceiver.norm.bias", "perceiver.layers.1.0.to_kv.weight"} < names
    assert {"perceiver.layers.0.1.0.weight", "perceiver.layers.0.1.3.weight"} < names
    assert "vision_encoder.encoder.layers.0.self_attn.q_proj.weight" in names


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_of_openflamingo():
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(FlamingoConfig())
    assert count(model) == 8_220_454_928
    assert count(model.perceiver) == 63_019_008
    assert [count(block) for block in model.gated_blocks] == [139_476_994] * 8
    layers = model.lang_encoder.model.layers
    assert all(isinstance(layer, FlamingoLayer) for layer in layers)
    gated = [i for i, layer in enumerate(layers) if layer.gated_cross_attn_layer is not None]
    assert gated == [3, 7, 11, 15, 19, 23, 27, 31]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_and_float32_gates(dtype, make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2], [3, 5]])
    full = model(**batch).logits
    model.to(dtype)
    for block in model.gated_blocks:
        block.attn_gate.data = block.attn_gate.data.float()
    half = model(**batch).logits
    assert half.dtype == dtype
    assert (real(half.float() - full, batch)).abs().mean() < 0.1 * full.abs().mean()


def test_autocast_trains(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2], [3, 5]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, labels=batch["input_ids"]).loss
        tokens = model.generate(**batch, max_new_tokens=2, do_sample=False)
    loss.backward()
    assert loss.isfinite() and tokens.shape == (2, 12)


@pytest.mark.slow
def test_compiles_in_one_graph(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2], [3, 5]])
    # backend "eager" traces without the minutes that inductor takes.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
        batch["pixel_values"] += 1
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("frozen", [True, False])
def test_images_in_groups_equal_all_at_once_and_patches_equal_pixels(make_flamingo, frozen):
    """Nineteen images: two whole groups and the rest of one."""
    model = make_flamingo().requires_grad_(not frozen)
    sizes = []
    model.perceiver.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    pixels = torch.randn(19, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    # The parts themselves, without the code that makes groups.
    states = model.vision_encoder(pixel_values=pixels.flatten(0, 2)).last_hidden_state
    patches = states[:, None, None, 1:]
    expected = model.perceiver(patches)
    sizes.clear()
    latents = model.encode_images(pixels)
    assert sizes == ([8, 8, 3] if frozen else [19])
    assert latents.requires_grad is not frozen
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.encode_patches(pixels), patches, atol=1e-6, rtol=1e-5)
    given = model.encode_images(patch_features=model.encode_patches(pixels))
    assert torch.equal(given, latents)
    with pytest.raises(ValueError, match="neither"):
        model.encode_images()


def test_patch_features_instead_of_pixels(make_flamingo, make_batch):
    model = make_flamingo()
    batch = make_batch([[2, 6], [3]])
    labels = batch["input_ids"].clone()
    options = {"max_new_tokens": 4, "do_sample": False}
    answer, pixels = model.generate(**batch, **options), batch.pop("pixel_values")
    model.perceiver.requires_grad_(True)
    gradients = []
    for images in ({"pixel_values": pixels}, {"patch_features": model.encode_patches(pixels)}):
        loss = model(**batch, **images, labels=labels).loss
        gradients.append([loss, *torch.autograd.grad(loss, list(model.perceiver.parameters()))])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert torch.equal(model.generate(**batch, **images, **options), answer)
    with pytest.raises(ValueError, match="row 0 has 2 <image> marks but 1 images"):
        model(**batch, patch_features=images["patch_features"][:, :1])
