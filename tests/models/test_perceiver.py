import math

import torch

from tuninglab.models.perceiver import PerceiverResampler


def normalise(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    )


def naive_perceiver(module, frames):
    """One medium (F, P, D), head by head, as the Flamingo paper's figure 5 reads."""
    x = frames.flatten(0, 1)
    latents = module.latents
    for attention, feed in module.layers:
        normed = normalise(attention.norm_latents, latents)
        source = torch.cat([normalise(attention.norm_media, x), normed])
        query = normed @ attention.to_q.weight.T
        keys, values = (source @ attention.to_kv.weight.T).split(query.shape[-1], dim=-1)
        size = query.shape[-1] // attention.heads
        heads = []
        for h in range(attention.heads):
            part = slice(h * size, (h + 1) * size)
            scores = query[:, part] @ keys[:, part].T / math.sqrt(size)
            heads.append(scores.softmax(-1) @ values[:, part])
        latents = latents + torch.cat(heads, -1) @ attention.to_out.weight.T
        inner = normalise(feed[0], latents) @ feed[1].weight.T
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        latents = latents + inner @ feed[3].weight.T
    return normalise(module.norm, latents)


def test_equals_the_naive_one_medium_by_medium():
    torch.manual_seed(0)
    module = PerceiverResampler(width=12, depth=3, latents=5, heads=2, dim_head=4, ff_mult=2)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.data.normal_()
    patches = torch.randn(2, 3, 2, 4, 12)
    found = module(patches)
    assert found.shape == (2, 3, 5, 12)
    for b in range(2):
        for m in range(3):
            expected = naive_perceiver(module, patches[b, m])
            torch.testing.assert_close(found[b, m], expected, atol=1e-5, rtol=1e-4)


def test_count_at_openflamingo_size():
    with torch.device("meta"):
        module = PerceiverResampler(1024, depth=6, latents=64, heads=8, dim_head=64, ff_mult=4)
    assert sum(parameter.numel() for parameter in module.parameters()) == 63_019_008
