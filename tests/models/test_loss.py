"""The loss in chunks, in 16 bits, against the plain one and float64."""

import pytest
import torch
from torch import nn

from tuninglab.int8.linear import Int8Linear
from tuninglab.models.loss import FACTOR, chunked_loss, next_token_loss


def relative(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def exact(hidden, weight, targets, scale):
    """The gradient of the scaled mean loss in float64."""
    leaf = hidden.detach().double().requires_grad_()
    loss = nn.functional.cross_entropy(leaf @ weight.double().t(), targets)
    (loss * scale).backward()
    return leaf.grad


@pytest.mark.parametrize("count", [3, 253, 1000])
def test_gradients_in_bf16_are_the_plain_ones(count):
    # 1 / 253 in bf16 is off by 0.37 %: every number of a gradient was.
    torch.manual_seed(0)
    head = nn.Linear(16, 40, bias=False).bfloat16().requires_grad_(False)
    hidden, targets = torch.randn(20, 16).bfloat16(), torch.randint(0, 40, (20,))
    leaves = [hidden.clone().requires_grad_() for _ in range(2)]
    chunked_loss(leaves[0], head, targets, 7, count).backward()
    next_token_loss(head(leaves[1]), targets, count).backward()
    ratio = (leaves[0].grad.double() * leaves[1].grad.double()).sum()
    ratio = float(ratio / leaves[1].grad.double().pow(2).sum())
    assert abs(ratio - 1) < 1e-3
    assert relative(leaves[0].grad, leaves[1].grad) < 5e-3


@pytest.mark.parametrize("int8", [False, True])
def test_one_answer_token_in_fp16_under_a_loss_scaler(int8):
    torch.manual_seed(0)
    head = nn.Linear(32, 40, bias=False).requires_grad_(False)
    head.weight.mul_(0.1)
    made = Int8Linear.of(head) if int8 else head.half()
    hidden, targets = torch.randn(1, 32).half().requires_grad_(), torch.tensor([3])
    (chunked_loss(hidden, made, targets, 128) * 65536).backward()
    assert hidden.grad.isfinite().all()
    weight = made.dequantised() if int8 else made.weight
    assert relative(hidden.grad, exact(hidden, weight, targets, 65536)) < 0.02


@pytest.mark.parametrize("int8", [False, True])
def test_gradients_too_small_for_fp16_survive_when_the_loss_is_scaled(int8):
    torch.manual_seed(0)
    head = nn.Linear(16, 40, bias=False).requires_grad_(False)
    head.weight.fill_(0)
    head.weight[3] = 1e-3
    made = Int8Linear.of(head) if int8 else head.half()
    # Sure of its answer: the others have a probability of 3e-5 together, times a small weight.
    hidden, targets = torch.full((6, 16), 875.0).half().requires_grad_(), torch.full((6,), 3)
    wanted = exact(hidden, made.dequantised() if int8 else made.weight, targets, 1.0)
    assert 0 < wanted.abs().max() < 6e-8
    (chunked_loss(hidden, made, targets, 4) * 65536).backward()
    assert relative(hidden.grad, 65536 * wanted) < 0.05


def test_the_factor_cannot_overflow_below_the_weight_it_names():
    hidden = torch.zeros(1, 4).half().requires_grad_()
    head = nn.Linear(4, 2, bias=False).half().requires_grad_(False)
    head.weight[:] = torch.tensor([[127.0], [-127.0]])
    # A small loss scale, so that what comes out fits as well.
    (chunked_loss(hidden, head, torch.tensor([1]), 8) * 2).backward()
    assert FACTOR == 256 and hidden.grad.isfinite().all()
    assert float(hidden.grad[0, 0]) == pytest.approx(2 * 127, rel=1e-3)
