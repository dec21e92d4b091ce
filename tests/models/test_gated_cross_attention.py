import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuninglab.models.conditioning import (
    Conditioning,
    conditioned_on,
    count_text_time,
    current_conditioning,
)
from tuninglab.models.gated_cross_attention import GatedCrossAttentionBlock, MaskedCrossAttention

IMAGE = 9


def times(text: str, mode: str) -> list[int]:
    ids = torch.tensor([[IMAGE if letter == "i" else 1 for letter in text]])
    return count_text_time(ids, IMAGE, mode)[0].tolist()


# OpenFlamingo 2.0.1 and 0.0.x, run on these two sequences.
@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("ttitt", "previous", [0, 0, 1, 1, 1]),
        ("ttitt", "next-v1", [1, 1, 1, 0, 0]),
        ("ittitt", "previous", [1, 1, 1, 2, 2, 2]),
        ("ittitt", "next-v1", [1, 2, 2, 2, 0, 0]),
        ("ttt", "previous", [0, 0, 0]),
        ("ttt", "next-v1", [0, 0, 0]),
    ],
)
def test_truth_table(text, mode, expected):
    assert times(text, mode) == expected


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_truth_table_by_brute_force(marks):
    text = "".join("i" if mark else "t" for mark in marks)
    places = [place for place, mark in enumerate(marks) if mark]
    previous, following = [], []
    for place in range(len(marks)):
        before = [number for number, at in enumerate(places, 1) if at <= place]
        after = [number for number, at in enumerate(places, 1) if at >= place]
        previous.append(before[-1] if before else 0)
        following.append(after[0] if after else 0)
    assert times(text, "previous") == previous
    assert times(text, "next-v1") == following


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 4))
def test_every_token_stands_in_one_block_of_its_image(data, rows, tokens, media_count):
    number = st.integers(0, media_count + 1)
    row = st.lists(number, min_size=tokens, max_size=tokens)
    time = torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    conditioning = Conditioning.of(time, torch.zeros(rows, media_count, 2, 3))
    exists = (time >= 1) & (time <= media_count)
    assert torch.equal(conditioning.sees_image[..., 0], exists)
    if media_count == 1:
        assert conditioning.places == (None, None, None)
        return
    token_of_place, place_of_token, image_of_block = conditioning.places
    blocks, size = token_of_place.shape
    # No more blocks than a compiled graph would provide for.
    assert blocks <= rows * (tokens // size + media_count)
    for row_number, token in exists.nonzero().tolist():
        place = int(place_of_token[row_number, token])
        assert int(token_of_place.flatten()[place]) == row_number * tokens + token
        image = row_number * media_count + int(time[row_number, token]) - 1
        assert int(image_of_block[place // size]) == image
    # Tokens that see nothing read from a place that exists; their result is zeroed.
    assert 0 <= int(place_of_token.min())
    assert int(place_of_token.max()) < blocks * size


def naive_attention(module, text, media, time):
    """Token by token and head by head, with the softmax written out."""
    out = torch.zeros_like(text)
    for b, t in [(b, t) for b in range(text.shape[0]) for t in range(text.shape[1])]:
        number = int(time[b, t])
        if not 1 <= number <= media.shape[1]:
            continue
        source = media[b, number - 1] @ module.to_kv.weight.T
        keys, values = source.split(source.shape[-1] // 2, dim=-1)
        query = module.norm(text[b, t]) @ module.to_q.weight.T
        size = len(query) // module.heads
        heads = []
        for h in range(module.heads):
            part = slice(h * size, (h + 1) * size)
            scores = keys[:, part] @ query[part] / math.sqrt(size)
            weights = scores.exp() / scores.exp().sum()
            heads.append(weights @ values[:, part])
        out[b, t] = torch.cat(heads) @ module.to_out.weight.T
    return out


def test_attention_equals_the_naive_one():
    torch.manual_seed(0)
    module = MaskedCrossAttention(width=12, media_width=7, dim_head=4, heads=3)
    module.norm.weight.data.normal_()
    text, media = torch.randn(2, 6, 12), torch.randn(2, 3, 5, 7)
    time = torch.tensor([[0, 1, 1, 2, 3, 4], [2, 0, 3, 3, 1, 0]])
    conditioning = Conditioning.of(time, media)
    found = module(text, *conditioning.tensors(0))
    torch.testing.assert_close(found, naive_attention(module, text, media, time))
    key_values = module.to_kv(media)[:, None]
    ready = Conditioning.of(time, key_values=key_values)
    assert torch.equal(module(text, *ready.tensors(0)), found)


def test_unseen_images_get_no_gradient():
    torch.manual_seed(0)
    module = MaskedCrossAttention(width=12, media_width=7, dim_head=4, heads=3)
    media = torch.randn(1, 3, 5, 7, requires_grad=True)
    conditioning = Conditioning.of(torch.tensor([[0, 1, 3]]), media)
    module(torch.randn(1, 3, 12), *conditioning.tensors(0)).square().sum().backward()
    norms = media.grad.norm(dim=(2, 3))[0]
    assert norms[0] > 0 and norms[1] == 0 and norms[2] > 0


def test_block_by_hand():
    torch.manual_seed(0)
    block = GatedCrossAttentionBlock(12, media_width=7, dim_head=4, heads=3, ff_mult=4)
    assert block.attn_gate.tolist() == [0.0] and block.ff_gate.tolist() == [0.0]
    text, media = torch.randn(1, 3, 12), torch.randn(1, 2, 5, 7)
    time = torch.tensor([[0, 1, 2]])
    arguments = Conditioning.of(time, media).tensors(0)
    assert torch.equal(block(text, *arguments), text)
    block.attn_gate.data.fill_(0.3)
    block.ff_gate.data.fill_(-0.8)

    def feed(x):
        inner = block.ff[0](x) @ block.ff[1].weight.T
        return torch.nn.functional.gelu(inner) @ block.ff[3].weight.T

    seen = text + math.tanh(0.3) * naive_attention(block.attn, text, media, time)
    torch.testing.assert_close(block(text, *arguments), seen + math.tanh(-0.8) * feed(seen))
    torch.testing.assert_close(block(text), text + math.tanh(-0.8) * feed(text))


def test_conditioning_nests_and_returns():
    outer = Conditioning.of(torch.zeros(1, 1), torch.zeros(1, 1, 2, 3))
    inner = Conditioning.of(torch.zeros(1, 1), torch.zeros(1, 1, 2, 3))
    with conditioned_on(outer):
        with pytest.raises(KeyError), conditioned_on(inner):
            assert current_conditioning() is inner
            raise KeyError
        assert current_conditioning() is outer
        with conditioned_on(None):
            assert current_conditioning() is None
    assert current_conditioning() is None


def test_count_at_openflamingo_widths():
    with torch.device("meta"):
        for width, expected in ((4096, 139_476_994), (2048, 36_708_354)):
            block = GatedCrossAttentionBlock(width, 1024, dim_head=64, heads=8, ff_mult=4)
            assert sum(parameter.numel() for parameter in block.parameters()) == expected
