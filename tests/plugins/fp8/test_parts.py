"""FP8 layers whose matrices were cut at tiles have the codes of the whole, so that tensor-parallel ranks compute the same products."""

from __future__ import annotations

import pytest
import torch

from bestiary.plugins.fp8.linear import FP8Linear
from bestiary.plugins.fp8.options import FP8Options
from bestiary.plugins.fp8.recipe import Recipe

INPUTS, OUTPUTS = 256, 384


def layer(weight):
    made = FP8Linear(weight.shape[1], weight.shape[0], Recipe(FP8Options(scales="fp32")))
    made.weight.data.copy_(weight)
    return made


@pytest.fixture
def numbers():
    """Input, weight and gradient of the output, in fp32; rows of the weight grow, so that neighbouring tiles have other factors."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, INPUTS), (OUTPUTS, INPUTS), (5, OUTPUTS))
    x, weight, grad = (torch.randn(shape, generator=generator) * torch.rand(shape[1], generator=generator).exp() for shape in shapes)
    return x.requires_grad_(), weight * torch.linspace(0, 8, OUTPUTS).exp2()[:, None], grad


def whole(x, weight, grad):
    made = layer(weight)
    y = made(x)
    (x_grad,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (weight_grad,) = torch.autograd.grad(y, made.weight, grad)
    return y, x_grad, weight_grad


def test_column_parts_give_parts_of_the_outputs(numbers):
    x, weight, grad = numbers
    found = [whole(x, w, g) for w, g in zip(weight.chunk(3), grad.chunk(3, dim=1), strict=True)]
    y, x_grads, weight_grads = zip(*found, strict=True)
    _same(whole(*numbers), (torch.cat(y, dim=1), sum(x_grads), torch.cat(weight_grads)))


def test_row_parts_give_parts_of_a_sum(numbers):
    x, weight, grad = numbers
    found = [whole(part.detach().requires_grad_(), w, grad) for part, w in zip(x.chunk(2, dim=1), weight.chunk(2, dim=1), strict=True)]
    y, x_grads, weight_grads = zip(*found, strict=True)
    _same(whole(*numbers), (sum(y), torch.cat(x_grads, dim=1), torch.cat(weight_grads, dim=1)))


def test_a_cut_through_a_tile_would_show(numbers):
    """Why it is refused."""
    x, weight, grad = numbers
    y = torch.cat([whole(x, w, g)[0] for w, g in zip(weight.chunk(4), grad.chunk(4, dim=1), strict=True)], dim=1)
    with pytest.raises(AssertionError, match="not close"):
        _same(whole(*numbers)[:1], (y,))


def _same(wanted, found):
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(one.detach().abs().max()))
