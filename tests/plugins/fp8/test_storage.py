"""Layers that hold FP8 blocks are plain layers with the decoded matrix, bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bestiary.core.blocks import Blocks, quantise_blocks
from bestiary.core.layers.grouped import GroupedLinear
from bestiary.core.layers.linear import Linear
from bestiary.plugins.fp8.storage import HeldGrouped, HeldLinear


def parts(shape: tuple[int, ...], heights: tuple[int, ...], block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and factors of a random parameter whose parts were quantised apart, and its numbers by the definition, one by one."""
    pieces = torch.randn(shape, generator=torch.Generator().manual_seed(0)).split(heights, dim=-2)
    codes, factors, numbers = [], [], []
    for piece in pieces:
        code, factor = quantise_blocks(piece, block)
        i, j = (torch.arange(n) // b for n, b in zip(piece.shape[-2:], block, strict=True))
        codes.append(code.view(torch.uint8))
        factors.append(factor)
        numbers.append(code.float() * factor[..., i[:, None], j[None, :]])
    return torch.cat(codes, -2).view(torch.float8_e4m3fn), torch.cat(factors, -2), torch.cat(numbers, -2)


@pytest.mark.parametrize("strip", [1, 1000, 1 << 20])
@pytest.mark.parametrize("block", [(128, 128), (7, 9), (1, 4)], ids=str)
@pytest.mark.parametrize(
    ("shape", "heights"), [((300, 260), (300,)), ((3, 40, 33), (20, 20)), ((2, 130, 5), (129, 1)), ((4, 0), (4,))], ids=str
)
def test_numbers(
    shape: tuple[int, ...], heights: tuple[int, ...], block: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.core.blocks.STRIP", strip)
    codes, factors, numbers = parts(shape, heights, block)
    how = Blocks(block, heights)
    assert how.scale_shape(shape) == tuple(factors.shape)
    assert torch.equal(how.numbers(codes, factors, torch.float32), numbers)
    assert torch.equal(how.numbers(codes, factors, torch.bfloat16), numbers.bfloat16())


def test_factors_of_regions() -> None:
    how, shape = Blocks((16, 8), (18, 40)), (6, 58, 20)
    assert how.scale_shape(shape) == (6, 5, 3)
    assert how.scale_region((), shape) == () and how.scale_region((3,), shape) == (3,)
    assert how.scale_region((3, slice(0, 18)), shape) == (3, slice(0, 2))
    assert how.scale_region((3, slice(18, 58)), shape) == (3, slice(2, 5))
    assert how.scale_region((slice(0, 2), slice(34, 50)), shape) == (slice(0, 2), slice(3, 4))
    for cut in (slice(0, 17), slice(0, 19), slice(20, 58), slice(1, 18), slice(18, 35)):
        assert how.scale_region((3, cut), shape) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [1, 33])
def test_a_layer(rows: int, dtype: torch.dtype) -> None:
    codes, factors, numbers = parts((130, 70), (130,), (128, 128))
    plain, held = Linear(70, 130, bias=True), HeldLinear(70, 130, bias=True)
    plain.weight.data, held.bias.data = numbers.to(dtype), plain.bias.data.zero_().add_(1)  # type: ignore[union-attr]
    held.hold(Blocks((128, 128), (130,)))
    held.weight.data, held.weight_scale_inv.data = codes, factors
    x = torch.randn(rows, 70).to(dtype)
    assert torch.equal(held(x), plain(x)) and torch.equal(held.dense(dtype), numbers.to(dtype))
    assert held.weight.nbytes + held.weight_scale_inv.nbytes == codes.numel() + 8
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    held(inputs[0]).sum().backward()
    plain(inputs[1]).sum().backward()
    assert inputs[0].grad is not None and torch.equal(inputs[0].grad, inputs[1].grad) and held.weight.grad is None


@pytest.mark.parametrize("sizes", [[3, 0, 40], [0, 0, 0], [0, 0, 5]], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_experts(sizes: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, factors, numbers = parts((3, 36, 44), (18, 18), (16, 16))
    plain, held = GroupedLinear(3, 44, 36), HeldGrouped(3, 44, 36)
    plain.weight.data = numbers.to(dtype)
    held.hold(Blocks((16, 16), (18, 18)))
    held.weight.data, held.weight_scale_inv.data = codes, factors
    decoded = []
    inner = held.decoded
    monkeypatch.setattr(held, "decoded", lambda kind, expert: decoded.append(expert) or inner(kind, expert))
    x, counts = torch.randn(sum(sizes), 44).to(dtype), torch.tensor(sizes)
    with torch.no_grad():
        assert torch.equal(held(x, counts), plain(x, counts))
    assert decoded == [expert for expert, size in enumerate(sizes) if size], "idle experts are not decoded"
    assert factors.shape == (3, 2 * math.ceil(18 / 16), math.ceil(44 / 16))
