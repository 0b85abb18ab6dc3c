"""The kernels in Triton's interpreter against their definitions in torch. Run with TRITON_INTERPRET=1, in a process of its own."""

from __future__ import annotations

import math
import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

import triton
import triton.language as tl

from benchmarks.gpu import fp8
from benchmarks.gpu.measure import wrong
from bestiary.plugins.fp8.backends.emulation import Emulation
from bestiary.plugins.fp8.backends.kernels import Kernels
from bestiary.plugins.fp8.quantize import Quantised, Rule, quantise
from tests.kernels import interpreter

OURS, TORCH = Kernels(), Emulation()


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.interpreter, "_convert_float", interpreter.convert)
    monkeypatch.setattr(triton.runtime.interpreter.InterpreterBuilder, "create_dot", interpreter.dot)


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


def same(a: Quantised, b: Quantised) -> None:
    assert a.codes.shape == b.codes.shape and a.scale.shape == b.scale.shape and a.tile == b.tile
    assert torch.equal(a.scale.nan_to_num(-1), b.scale.nan_to_num(-1))
    nan = a.codes.float().isnan()
    assert torch.equal(nan, b.codes.float().isnan())
    assert torch.equal(a.codes.view(torch.uint8)[~nan], b.codes.view(torch.uint8)[~nan])


@pytest.mark.parametrize(
    "rule", [Rule(), Rule(power_of_two=False), Rule(floor=2.0**-100), Rule(format="e5m2"), Rule(convention="deepgemm")]
)
@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)])
@pytest.mark.parametrize("shape", [(70, 300), (1, 1), (256, 128), (3, 129), (0, 5), (2, 130, 140)])
def test_codes_and_factors(shape: tuple[int, ...], tile: tuple[int, int], rule: Rule) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(shape) * torch.randn(shape).mul(3).exp()).to(dtype)
        same(OURS.quantise(x, tile, rule), quantise(x, tile, rule))


@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, 3e38, 1e-40])
def test_what_is_no_number(bad: float, tile: tuple[int, int]) -> None:
    x = torch.randn(130, 260)
    x[3, 200] = bad
    x[120] = 0.0
    same(OURS.quantise(x, tile, Rule()), quantise(x, tile, Rule()))


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


@pytest.mark.parametrize("sizes", [[3, 0, 130, 7], [0, 0, 0, 1], [64, 64, 0, 1], [0, 0, 0, 0]])
def test_grouped(sizes: list[int]) -> None:
    a = quantise(torch.randn(sum(sizes), 140), (1, 128), Rule())
    b = quantise(torch.randn(4, 36, 140), (128, 128), Rule())
    expected = TORCH.grouped(a, b, sizes, torch.float32)
    assert (OURS.grouped(a, b, sizes, torch.float32) - expected).norm() <= 1e-6 * expected.norm()
    back = quantise(torch.randn(sum(sizes), 36), (1, 128), Rule())
    expected = TORCH.grouped(back, b.T, sizes, torch.float32)
    assert (OURS.grouped(back, b.T, sizes, torch.float32) - expected).norm() <= 1e-6 * expected.norm()


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
    assert wrong(fp8.cases("cpu", small=True)) == ["product", "weight"]
