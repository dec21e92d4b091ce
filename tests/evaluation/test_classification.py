"""Candidates against brute force: each prompt with each candidate alone, unpadded, uncached."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tuninglab.embedded import base_directory
from tuninglab.embedded.scenes import Scene, Thing
from tuninglab.evaluation.classification import candidate_log_probs, classify, own_log_probs
from tuninglab.evaluation.encoded import EncodedPictures
from tuninglab.models import load_flamingo

MARKS = [[2], [], [3, 5], [4, 6, 8]]  # make_batch pads row k with k tokens on the left
IMAGE = 61
CANDIDATES = [[7], [9, 11], [9, 11, 30], [5, 8, 8, 40], [33], [5, 8, 6]]


def brute_force(model, batch, candidates):
    """(B, C), a forward without padding and without cache for each prompt with each candidate."""
    scores = torch.zeros(len(batch["input_ids"]), len(candidates))
    for row, ids in enumerate(batch["input_ids"]):
        prompt = ids[batch["attention_mask"][row].bool()]
        images = int((prompt == IMAGE).sum())
        pixels = batch["pixel_values"][row : row + 1, :images] if images else None
        for column, candidate in enumerate(candidates):
            whole = torch.cat([prompt, torch.tensor(candidate)])[None]
            with torch.no_grad():
                logits = model(whole, pixel_values=pixels, use_cache=False).logits[0]
            before = logits[len(prompt) - 1 : -1].log_softmax(-1)
            scores[row, column] = sum(before[k, token] for k, token in enumerate(candidate))
    return scores


@pytest.mark.parametrize("mode", ["previous", "next-v1"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gpt2", "mpt", "gptj", "qwen2"])
def test_every_family_and_media_mode(family, mode, make_flamingo, make_batch):
    model, batch = make_flamingo(family, media_mode=mode), make_batch(MARKS)
    expected = brute_force(model, batch, CANDIDATES)
    found = candidate_log_probs(model, batch.pop("input_ids"), CANDIDATES, **batch)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


def test_candidates_reach_the_last_learned_position(make_flamingo, make_batch):
    # Prompt and longest candidate fill GPT-2's 64 positions; padding behind shorter ones would
    # look for more.
    model, batch = make_flamingo("gpt2"), make_batch([[2], [5]], length=59)
    candidates = [[3] * 5, [4, 5], [6]]
    batch["attention_mask"][1] = 1
    expected = brute_force(model, batch, candidates)
    found = candidate_log_probs(model, batch.pop("input_ids"), candidates, **batch)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


def test_neither_chunks_nor_the_order_of_candidates_matter(make_flamingo, make_batch):
    model, batch = make_flamingo(), make_batch(MARKS)
    ids = batch.pop("input_ids")
    whole = candidate_log_probs(model, ids, CANDIDATES, **batch)
    for size in (1, 3, 5):
        parts = candidate_log_probs(model, ids, CANDIDATES, **batch, batch_size=size)
        torch.testing.assert_close(parts, whole, atol=2e-5, rtol=1e-5)
    turned = candidate_log_probs(model, ids, CANDIDATES[::-1], **batch).flip(1)
    torch.testing.assert_close(turned, whole, atol=2e-5, rtol=1e-5)
    lengths = torch.tensor([1, 2, 3, 4, 1, 3])
    mean = candidate_log_probs(model, ids, CANDIDATES, **batch, normalise=True)
    torch.testing.assert_close(mean, whole / lengths, atol=1e-6, rtol=1e-5)


OWN = [CANDIDATES, [[9, 11]], [[5, 8, 8, 40], [7]], [[33], [4], [4, 4, 4], [9, 11, 30]]]


@pytest.mark.parametrize("family", ["llama", "opt", "mpt", "gemma2", "falcon_h1"])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_prompts_with_candidates_of_their_own(family, size, make_flamingo, make_batch):
    model, batch = make_flamingo(family), make_batch(MARKS)
    found = own_log_probs(model, batch, OWN, batch_size=size)
    mean = own_log_probs(model, batch, OWN, normalise=True, batch_size=size)
    for row, candidates in enumerate(OWN):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        expected = brute_force(model, alone, candidates)[0]
        torch.testing.assert_close(found[row], expected, atol=5e-5, rtol=1e-5)
        lengths = torch.tensor([len(candidate) for candidate in candidates])
        torch.testing.assert_close(mean[row], expected / lengths, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("trained", [None, "perceiver"])
def test_own_candidates_with_features_that_were_kept(trained, make_flamingo, make_batch):
    model, batch = make_flamingo().requires_grad_(False), make_batch(MARKS)
    if trained:
        model.get_submodule(trained).requires_grad_(True)
    kept = EncodedPictures(group=2).encoded(model, batch)
    assert ("patch_features" if trained else "image_features") in kept
    for one, other in zip(
        own_log_probs(model, kept, OWN), own_log_probs(model, batch, OWN), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_single_tokens_cost_nothing_more(make_flamingo, make_batch):
    model, batch, calls = make_flamingo(), make_batch(MARKS), []
    model.lang_encoder.get_input_embeddings().register_forward_hook(
        lambda _, args, __: calls.append(tuple(args[0].shape))
    )
    own_log_probs(model, batch, [[[3], [4]], [[5]], [[6]], [[7]]])
    assert calls == [(4, 10)]
    # Rows 1 and 3 alone are continued.
    own_log_probs(model, batch, [[[3]], [[5], [8, 9]], [[6]], [[7, 9, 9], [7, 8]]])
    assert calls[1:] == [(4, 10), (3, 2)]


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_padding_on_the_right_gives_the_same(family, make_flamingo, make_batch):
    model, batch = make_flamingo(family), make_batch(MARKS)
    expected = brute_force(model, batch, CANDIDATES)
    for row in range(4):
        for name in ("input_ids", "attention_mask"):
            batch[name][row] = batch[name][row].roll(-row)
    found = candidate_log_probs(model, batch.pop("input_ids"), CANDIDATES, **batch)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


def test_each_part_is_computed_once(make_flamingo, make_batch):
    model, batch = make_flamingo(), make_batch(MARKS)
    calls = {"vision": 0, "to_kv": 0, "lang": []}
    model.vision_encoder.register_forward_hook(lambda *_: calls.update(vision=calls["vision"] + 1))
    for block in model.gated_blocks:
        block.attn.to_kv.register_forward_hook(lambda *_: calls.update(to_kv=calls["to_kv"] + 1))
    model.lang_encoder.get_input_embeddings().register_forward_hook(
        lambda _, args, __: calls["lang"].append(tuple(args[0].shape))
    )
    ids = batch.pop("input_ids")
    candidate_log_probs(model, ids, [[3], [4]], **batch)
    assert calls == {"vision": 1, "to_kv": 2, "lang": [(4, 10)]}
    calls.update(vision=0, to_kv=0, lang=[])
    candidate_log_probs(model, ids, CANDIDATES, **batch, batch_size=8)
    # 4 rows x 4 longer candidates of 2, 3, 3 and 4 tokens, the last of which is never fed.
    assert calls == {"vision": 1, "to_kv": 2, "lang": [(4, 10), (8, 2), (8, 3)]}


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon_h1"])
def test_only_rows_that_are_wanted_are_copied(family, make_flamingo, make_batch, monkeypatch):
    """Sliding windows and the states of a Mamba beside keys and values, too."""
    model, batch = make_flamingo(family), make_batch([[2], [3]])
    batch["attention_mask"][:] = 1
    expected = brute_force(model, batch, CANDIDATES)
    copied, copy_of = [], torch.Tensor.__deepcopy__
    monkeypatch.setattr(
        torch.Tensor, "__deepcopy__", lambda self, memo: copied.append(self) or copy_of(self, memo)
    )
    found = candidate_log_probs(model, batch.pop("input_ids"), CANDIDATES, **batch, batch_size=3)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)
    # A Mamba's states do not grow with the prompt: a copy of them costs little.
    large = [tensor for tensor in copied if tensor.ndim > 1]
    assert bool(large) == (family == "falcon_h1")


def test_features_text_alone_and_the_mode_of_the_model(make_flamingo, make_batch):
    model, batch = make_flamingo().train(), make_batch(MARKS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    features = model.encode_images(batch["pixel_values"])
    given = candidate_log_probs(model, ids, CANDIDATES, mask, image_features=features)
    assert model.training and not given.requires_grad
    found = candidate_log_probs(model, ids, CANDIDATES, mask, batch["pixel_values"])
    torch.testing.assert_close(given, found, atol=1e-6, rtol=1e-5)
    text = {**make_batch([[], []]), "pixel_values": torch.zeros(2, 0, 1, 3, 16, 16)}
    expected = brute_force(model.eval(), text, CANDIDATES)
    for pixels in (None, text["pixel_values"]):
        found = candidate_log_probs(
            model, text["input_ids"], CANDIDATES, text["attention_mask"], pixels
        )
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


def test_through_peft(make_flamingo, make_batch):
    model, batch = make_flamingo(), make_batch(MARKS)
    before = brute_force(model, batch, CANDIDATES)
    lora = LoraConfig(target_modules=["to_kv", "q_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, lora).eval()
    expected = brute_force(tuned, batch, CANDIDATES)
    assert not torch.allclose(before, expected, atol=1e-2)
    found = candidate_log_probs(tuned, batch.pop("input_ids"), CANDIDATES, **batch)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


def test_wrong_inputs_say_what_is_wrong(make_flamingo, make_batch):
    model, batch = make_flamingo(), make_batch([[2], [3, 4]])
    ids, mask = batch["input_ids"], batch["attention_mask"]

    def refused(message, candidates=CANDIDATES, mask=mask, pixels=batch["pixel_values"], **options):
        with pytest.raises(ValueError, match=message):
            candidate_log_probs(model, ids, candidates, mask, pixels, **options)

    refused("candidates is empty", candidates=[])
    refused("candidate 1 has no tokens", candidates=[[3], []])
    refused("candidate 0 holds <image>", candidates=[[3, IMAGE]])
    refused("batch_size is 0", batch_size=0)
    refused("a prompt is empty", mask=torch.zeros_like(mask))
    refused("row 1 has 2 <image> marks but 1", pixels=batch["pixel_values"][:, :1])
    with pytest.raises(ValueError, match="2 prompts but 1 lists of candidates"):
        own_log_probs(model, batch, [CANDIDATES])
    with pytest.raises(ValueError, match="candidate 1 has no tokens"):
        own_log_probs(model, batch, [CANDIDATES, [[3], []]])
    with pytest.raises(ValueError, match="give a list"):
        classify(model, None, "<image>", [[]], ["red"])
    with pytest.raises(ValueError, match="2 prompts but 1 lists"):
        classify(model, None, ["a", "b"], [[]], ["red"])


@pytest.fixture(scope="module")
def embedded():
    return load_flamingo(base_directory())


def test_the_embedded_model_ranks_what_it_sees(embedded):
    model, processor = embedded
    colors, shapes = ("red", "blue", "green"), ("circle", "star", "square")
    pictures = [
        Scene((Thing(color, shape, "large", 4),), seed).draw()
        for seed, (color, shape) in enumerate(zip(colors, shapes, strict=True))
    ]
    # Rows of one, of three and of no pictures, and longer than a batch.
    prompts = [f"<image>The {shape} is" for shape in shapes]
    prompts += ["".join(f"<image>The {s} is" for s in shapes), "The sky is"]
    rows = [*([picture] for picture in pictures), pictures, []]
    candidates = [f"{color}.<|endofchunk|>" for color in colors]
    ranking = classify(model, processor, prompts, rows, candidates, batch_size=2)
    assert ranking.answers[:4] == [*candidates, candidates[-1]]
    torch.testing.assert_close(ranking.probabilities.sum(-1), torch.ones(5))
    for k, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        alone = classify(model, processor, [prompt], [row], candidates)
        torch.testing.assert_close(alone.log_probs[0], ranking.log_probs[k], atol=2e-5, rtol=1e-5)
    mean = classify(model, processor, prompts, rows, ["red", *candidates], normalise=True)
    lengths = [len(processor.tokenizer(c)["input_ids"]) for c in candidates]
    torch.testing.assert_close(mean.log_probs[:, 1:] * torch.tensor(lengths), ranking.log_probs)
