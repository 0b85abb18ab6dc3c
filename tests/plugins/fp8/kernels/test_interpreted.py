"""The kernels in Triton's interpreter against their definitions in torch. Run with TRITON_INTERPRET=1, in a process of its own."""

from __future__ import annotations

import math

import pytest
import torch

from tests.plugins.fp8.kernels.interpreted import mended, same  # first: skips where there is no interpreter  # isort: skip

import triton
import triton.language as tl

from benchmarks.gpu import fp8
from benchmarks.gpu.measure import wrong
from bestiary.plugins.fp8.backends.emulation import Emulation
from bestiary.plugins.fp8.backends.kernels import Kernels
from bestiary.plugins.fp8.quantize import Quantised, Rule, quantise
from tests.kernels import interpreter

OURS, TORCH = Kernels(), Emulation()


__all__ = ["mended"]


@triton.jit
def cast_kernel(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


def test_the_interpreter_still_needs_mending(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, upstream rounds rightly, and `interpreter` can go."""
    x = torch.randn(1024)
    y = torch.empty(1024, dtype=torch.float8_e4m3fn)
    cast_kernel[(1,)](x, y, N=1024)
    assert torch.equal(y.view(torch.uint8), x.to(torch.float8_e4m3fn).view(torch.uint8))
    monkeypatch.setattr(triton.runtime.interpreter, "_convert_float", interpreter.stock)
    cast_kernel[(1,)](x, y, N=1024)
    assert not torch.equal(y.view(torch.uint8), x.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize(
    "rule", [Rule(), Rule(power_of_two=False), Rule(floor=2.0**-100), Rule(format="e5m2"), Rule(convention="deepgemm")]
)
@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)])
@pytest.mark.parametrize("shape", [(70, 300), (1, 1), (256, 128), (3, 129), (0, 5), (2, 130, 140)])
def test_codes_and_factors(shape: tuple[int, ...], tile: tuple[int, int], rule: Rule) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(shape) * torch.randn(shape).mul(3).exp()).to(dtype)
        same(OURS.quantise(x, tile, rule), quantise(x, tile, rule))


@pytest.mark.parametrize("shape", [(70, 300), (2, 130, 140), (0, 5)])
def test_weights_and_their_transpose(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    both, right = OURS.weight(x, (128, 128), Rule(), turned=True), quantise(x, (128, 128), Rule())
    same(both, right)
    same(both.T, right.T)
    same(both.T.T, right)
    assert both.T.codes.is_contiguous() or not x.numel()
    assert OURS.weight(x, (1, 128), Rule(), turned=True).turned is None


@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, 3e38, 1e-40])
def test_what_is_no_number(bad: float, tile: tuple[int, int]) -> None:
    x = torch.randn(130, 260)
    x[3, 200] = bad
    x[120] = 0.0
    same(OURS.quantise(x, tile, Rule()), quantise(x, tile, Rule()))


@pytest.mark.parametrize("tile", [(1, 128), (128, 128), (1, None)])
@pytest.mark.parametrize("shape", [(70, 300), (3, 130, 140), (0, 5), (1, 1)])
def test_numbers_of_codes(shape: tuple[int, ...], tile: tuple[int, int | None]) -> None:
    for rule in (Rule(), Rule(power_of_two=False), Rule(format="e5m2")):
        x = torch.randn(shape) * torch.randn(shape).mul(3).exp()
        if x.numel():
            x[(0,) * x.ndim] = math.nan
        q = quantise(x, tile, rule)
        for dtype in (torch.float32, torch.bfloat16):
            found, right = OURS.values(q, dtype), q.values(dtype)
            assert found.dtype == dtype and torch.equal(found.nan_to_num(-1), right.nan_to_num(-1))


SHAPES = [(70, 300, 200), (1, 5, 3), (130, 128, 256), (0, 8, 128), (64, 1, 1)]


@pytest.mark.parametrize("weights", [(128, 128), (1, 128), (1, None), (None, None)])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_products(m: int, n: int, k: int, weights: tuple[int | None, int | None]) -> None:
    a, b = quantise(torch.randn(m, k), (1, 128), Rule()), quantise(torch.randn(n, k), weights, Rule())
    expected = TORCH.product(a, b, torch.float32)
    found = OURS.product(a, b, torch.float32)
    assert found.shape == (m, n) and (found - expected).norm() <= 1e-6 * expected.norm()
    assert (OURS.product(a, b, torch.bfloat16) != found.bfloat16()).sum() == 0


def test_transposed_operands() -> None:
    x, dy, w = torch.randn(150, 260), torch.randn(150, 140), torch.randn(140, 260)
    for a, b in (
        (quantise(dy, (1, 128), Rule()), quantise(w, (128, 128), Rule()).T),
        (quantise(dy, (128, 1), Rule()).T, quantise(x, (128, 1), Rule()).T),
        (quantise(dy, (128, 128), Rule()), quantise(w.T, (1, 128), Rule())),
    ):
        expected = TORCH.product(a, b, torch.float32)
        assert (OURS.product(a, b, torch.float32) - expected).norm() <= 1e-6 * expected.norm()


WIDTHS = pytest.mark.parametrize("k", [140, 144])
"""Inputs: descriptors of the second are possible, those of the first are not."""


@WIDTHS
@pytest.mark.parametrize("sizes", [[3, 0, 130, 7], [0, 0, 0, 1], [64, 64, 0, 1], [0, 0, 0, 0]])
def test_grouped(sizes: list[int], k: int) -> None:
    a = quantise(torch.randn(sum(sizes), k), (1, 128), Rule())
    b = quantise(torch.randn(4, 48, k), (128, 128), Rule())
    expected = TORCH.grouped(a, b, sizes, torch.float32)
    assert (OURS.grouped(a, b, sizes, torch.float32) - expected).norm() <= 1e-6 * expected.norm()
    back = quantise(torch.randn(sum(sizes), 48), (1, 128), Rule())
    expected = TORCH.grouped(back, b.T, sizes, torch.float32)
    assert (OURS.grouped(back, b.T, sizes, torch.float32) - expected).norm() <= 1e-6 * expected.norm()


@WIDTHS
@pytest.mark.parametrize("rows", [[3, 0, 70, 1], [0, 0, 0, 0], [70, 70, 70, 70]])
def test_masked(rows: list[int], k: int) -> None:
    """Rows beyond those that count hold NaN, and are neither read nor written."""
    x, w = torch.randn(4, 70, k), quantise(torch.randn(4, 36, k), (128, 128), Rule())
    for expert, size in enumerate(rows):
        x[expert, size:] = math.nan
    a, counts = quantise(x, (1, 128), Rule()), torch.tensor(rows, dtype=torch.int32)
    found, right = OURS.masked(a, w, counts, torch.float32), TORCH.masked(a, w, counts, torch.float32)
    assert found.shape == right.shape
    for expert, size in enumerate(rows):
        assert (found[expert, :size] - right[expert, :size]).norm() <= 1e-6 * right[expert, :size].norm()
        assert found[expert, size:].isnan().all()


def test_every_factor_is_used_once() -> None:
    """Codes of one, and a factor of its own for each tile: any slip of an index shows."""
    m, n, k = 3, 260, 390
    ones = lambda *shape: torch.ones(shape).to(torch.float8_e4m3fn)  # noqa: E731
    a = Quantised(ones(m, k), torch.arange(1.0, 13).view(3, 4), (1, 128))
    b = Quantised(ones(n, k), torch.arange(1.0, 13).mul(100).view(3, 4), (128, 128))
    assert torch.equal(OURS.product(a, b, torch.float32), a.values() @ b.values().T)


def test_the_benchmark_checks_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wrong(fp8.cases("cpu", small=True))
    monkeypatch.setattr(fp8, "OURS", Kernels())
    monkeypatch.setattr(fp8.OURS, "product", lambda a, b, dtype: TORCH.product(a, b, dtype) * 1.01)
    monkeypatch.setattr(fp8.OURS, "masked", lambda a, b, rows, dtype: TORCH.masked(a, b, rows, dtype) * 1.01)
    assert wrong(fp8.cases("cpu", small=True)) == ["masked", "product"]
