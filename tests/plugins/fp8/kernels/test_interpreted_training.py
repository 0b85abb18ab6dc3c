"""Kernels of training in Triton's interpreter: weight gradients, SwiGLU, RMSNorm, and layers that use them all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.plugins.fp8.kernels.interpreted import mended, same  # first: skips where there is no interpreter  # isort: skip

from bestiary.core.layers.norm import RMSNorm
from bestiary.plugins.fp8.backends import AlongTokens, Backend
from bestiary.plugins.fp8.backends.emulation import Emulation
from bestiary.plugins.fp8.backends.kernels import Kernels
from bestiary.plugins.fp8.grouped import FP8GroupedLinear
from bestiary.plugins.fp8.kernels import norm
from bestiary.plugins.fp8.kernels.tokens import along_tokens, tiles_of
from bestiary.plugins.fp8.linear import FP8Linear
from bestiary.plugins.fp8.norm import FP8Norm
from bestiary.plugins.fp8.options import FP8Options
from bestiary.plugins.fp8.quantize import Rule, quantise
from bestiary.plugins.fp8.recipe import Recipe
from bestiary.plugins.fp8.swiglu import Gated

__all__ = ["mended"]
OURS, TORCH = Kernels(), Emulation()
RULES = [Rule(), Rule(power_of_two=False), Rule(floor=2.0**-100, format="e5m2")]


def close(found: Tensor, right: Tensor) -> None:
    """Numbers that are rounded to bf16: equal but for one rounding in a thousand."""
    assert found.dtype == right.dtype and found.shape == right.shape
    assert torch.allclose(found.float(), right.float(), rtol=2**-7, atol=1e-30)
    assert int((found != right).sum()) <= found.numel() // 1000


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["numbers", "codes", "rows"])
@pytest.mark.parametrize("sizes", [[3, 0, 130, 7], [0, 0], [128, 1]])
def test_codes_along_tokens(sizes: list[int], kind: str, rule: Rule) -> None:
    x = (torch.randn(sum(sizes), 150) * torch.randn(sum(sizes), 150).mul(3).exp()).bfloat16()
    if len(x) > 4:
        x[4, 7], x[2] = math.nan, 0.0
    source = x if kind == "numbers" else quantise(x, (1, 128) if kind == "codes" else (1, None), Rule())
    for dtype in (torch.bfloat16, torch.float32):
        found = along_tokens(source, tiles_of(sizes, x.device), rule, dtype)
        numbers = x if isinstance(source, Tensor) else source.values(dtype)
        column = 0
        for part in numbers.split(sizes):
            padded = torch.nn.functional.pad(part, (0, 0, 0, -len(part) % 128))
            right = quantise(padded, (128, 1), rule).T
            width = padded.shape[0]
            these = found.codes[:, column : column + width], found.scale[:, column // 128 : (column + width) // 128]
            same(type(found)(*these, found.tile), right)
            column += width
        assert found.codes.shape == (150, column)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", [[3, 0, 130, 7], [0, 0], [300]])
def test_weight_gradients(sizes: list[int], rule: Rule) -> None:
    dy, x = torch.randn(sum(sizes), 70).bfloat16(), torch.randn(sum(sizes), 150).bfloat16()
    sides = [AlongTokens(dy, (128, 1), rule, dy.dtype), AlongTokens(quantise(x, (1, 128), Rule()), (128, 1), Rule(), x.dtype)]
    found, right = OURS.weight_gradient(*sides, sizes), TORCH.weight_gradient(*sides, sizes)
    assert found.shape == right.shape and found.dtype == torch.float32
    assert (found - right).norm() <= 1e-6 * right.norm()
    assert all(found[expert].eq(0).all() for expert, size in enumerate(sizes) if size == 0)


def gated(kind: str, width: int, rows: int = 37) -> Gated:
    shapes = [(rows, width)] * 2 if kind == "dense" else [(rows, 2 * width)]
    inputs = tuple(torch.randn(s).mul(3).bfloat16() for s in shapes)
    return Gated(inputs, torch.rand(rows, 1).bfloat16() if kind == "experts" else None)


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("rule", RULES[:2])
@pytest.mark.parametrize("width", [256, 200, 5])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_swiglu(kind: str, width: int, rule: Rule, codes: bool) -> None:
    x = gated(kind, width)
    x.inputs[0][3, 1], x.inputs[-1][5] = math.inf, 0.0
    found = OURS.gated(x, (1, 128), rule, numbers=True, codes=codes)
    right = TORCH.gated(x, (1, 128), rule, numbers=True, codes=codes)
    assert found.numbers is not None and right.numbers is not None
    close(found.numbers.nan_to_num(9), right.numbers.nan_to_num(9))
    same(found.rows, quantise(found.numbers, (1, 128), rule))
    alone = OURS.gated(x, (1, 128), rule, numbers=False, codes=codes)
    same(alone.rows, found.rows)
    assert alone.numbers is None
    for ours, theirs in zip(found.before.inputs, right.before.inputs, strict=True):
        if isinstance(ours, Tensor) or isinstance(theirs, Tensor):
            assert ours is theirs
        else:
            same(ours, theirs)


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("width", [256, 200, 5])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_gradients_of_swiglu(kind: str, width: int, codes: bool) -> None:
    x = gated(kind, width)
    before = TORCH.gated(x, (1, 128), Rule(), numbers=False, codes=codes).before
    grad = torch.randn(37, width).bfloat16()
    found, right = OURS.gated_gradients(before, grad), TORCH.gated_gradients(before, grad)
    assert (found[0] is None) == (right[0] is None) == (kind == "dense")
    if found[0] is not None and right[0] is not None:
        assert found[0].shape == right[0].shape and (found[0] - right[0]).float().norm() <= 5e-3 * right[0].float().norm()
    for ours, theirs in zip(found[1:], right[1:], strict=True):
        assert ours is not None and theirs is not None
        close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 4, 300), (2, 128), (1, 1), (11, 129)])
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "PROGRAMS", 4)
    plain = RMSNorm(shape[-1], eps=1e-6)
    torch.nn.init.uniform_(plain.weight, -1, 2)
    wider = torch.randn(*shape[:-1], shape[-1] + 3).mul(5).to(dtype)
    x = wider[..., 1:-2].requires_grad_()
    made = OURS.norm(x, plain.weight, 1e-6, (1, 128), Rule())
    assert made is not None
    (y, codes), right = made, plain(x)
    if dtype == torch.bfloat16:
        close(y, right)
    same(codes, quantise(y.detach().reshape(-1, shape[-1]), (1, 128), Rule()))
    slope = torch.randn(shape).to(dtype)
    for ours, theirs in zip(*(torch.autograd.grad(t, [x, plain.weight], slope) for t in (y, right)), strict=True):
        assert (
            ours.dtype == theirs.dtype
            and (ours - theirs).float().norm() <= (2e-3 if dtype == torch.bfloat16 else 1e-5) * theirs.float().norm()
        )


class Layers(torch.nn.Module):
    """A norm that three FP8 layers read, SwiGLU, and experts with theirs."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        recipe = Recipe(FP8Options())
        recipe.backend = backend
        self.norm = FP8Norm(130, recipe, eps=1e-6)
        self.gate, self.up, self.down = FP8Linear(130, 200, recipe), FP8Linear(130, 200, recipe), FP8Linear(200, 130, recipe)
        self.gate_up, self.back = FP8GroupedLinear(3, 130, 256, recipe), FP8GroupedLinear(3, 128, 20, recipe)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        normed, counts = self.norm(x), torch.tensor([30, 0, 10])
        x = x + self.down.gated(self.gate(normed), self.up(normed))
        return self.back.gated(self.gate_up(x, counts), weights, counts)


def test_layers_train_alike() -> None:
    """Codes may differ where a sum's order moved a number over the border between two; such moves are rare."""
    x, weights = torch.randn(40, 130).bfloat16(), torch.rand(40, 1).bfloat16().requires_grad_()
    results = []
    for backend in (OURS, TORCH):
        layers = Layers(backend)
        y = layers(x, weights)
        slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        results.append([y, *torch.autograd.grad(y, [weights, *layers.parameters()], slope)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype and (ours - theirs).float().norm() < 0.01 * theirs.float().norm()
