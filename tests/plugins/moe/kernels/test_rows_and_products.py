"""Plans, rows and products in Triton's interpreter against torch. Run with TRITON_INTERPRET=1, in a process of its own."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

from benchmarks.gpu import moe
from benchmarks.gpu.measure import wrong
from bestiary.core import weight_gradients
from bestiary.core.layers.grouped import grouped
from bestiary.plugins.moe.dispatch import TORCH
from bestiary.plugins.moe.hookspecs import Routing
from bestiary.plugins.moe.kernels import functions
from bestiary.plugins.moe.kernels.launch import Kernels
from tests.kernels.checks import close, mended_and_poisoned  # noqa: F401

OURS = Kernels()
BOUND = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Of the error in the Frobenius norm; results are rounded once."""

# Rows


def chosen(tokens: int, experts: int, k: int) -> Tensor:
    """Distinct experts of each token; the last expert is nobody's, where there are enough."""
    return torch.stack([torch.randperm(max(k, experts - 1))[:k] for _ in range(tokens)]) if tokens else torch.empty(0, k, dtype=torch.int64)


@settings(max_examples=25)
@given(st.integers(0, 90), st.integers(1, 70), st.integers(1, 4), st.sampled_from([1, 2, 5, 32]), st.integers(0, 99))
def test_plans_are_those_of_sorting(tokens: int, experts: int, k: int, multiple: int, seed: int) -> None:
    torch.manual_seed(seed)
    experts = max(experts, k)
    picked = chosen(tokens, experts, k)
    for ours, theirs in zip(OURS.plan(picked, experts, multiple), TORCH.plan(picked, experts, multiple), strict=True):
        assert ours.dtype == torch.int64 and torch.equal(ours, theirs)


def test_a_plan_of_many_blocks_of_copies() -> None:
    picked = torch.randint(3, (17_000, 1))
    for ours, theirs in zip(OURS.plan(picked, 3, 1), TORCH.plan(picked, 3, 1), strict=True):
        assert torch.equal(ours, theirs)


SIZES = [(7, 5, 3, 4, 1), (1, 1, 1, 1, 1), (0, 3, 2, 9, 4), (9, 6, 2, 1030, 8), (40, 4, 1, 33, 32)]
"""Tokens, experts, experts per token, columns, multiple of rows."""


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("size", SIZES)
def test_rows_to_their_places_and_their_sums_with_all_gradients(size: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens, experts, k, width, multiple = size
    place, source, _ = TORCH.plan(chosen(tokens, experts, k), experts, multiple)
    for call, rows in (("copy", tokens), ("sum", len(source))):
        both = [t.requires_grad_() for t in torch.randn(rows, width).to(dtype).expand(2, -1, -1).clone()]
        ours, theirs = (getattr(by, call)(t, source, place) for by, t in zip((OURS, TORCH), both, strict=True))
        assert ours.dtype == dtype
        close(ours, theirs, BOUND[dtype])
        slope = torch.randn(ours.shape).to(dtype)
        close(*(torch.autograd.grad(y, x, slope)[0] for y, x in zip((ours, theirs), both, strict=True)), BOUND[dtype])
        if call == "copy":
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("size", SIZES)
def test_weighted_sums_with_all_gradients(size: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens, experts, k, width, multiple = size
    place, source, _ = TORCH.plan(chosen(tokens, experts, k), experts, multiple)
    rows, weights = torch.randn(len(source), width).to(dtype).requires_grad_(), torch.randn(tokens, k).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (rows, weights)]
    y, expected = OURS.sum(rows, source, place, weights), (exact[0][place] * exact[1][..., None]).sum(dim=1)
    close(y, expected, BOUND[dtype])
    slope = torch.randn(y.shape).to(dtype)
    found = torch.autograd.grad(y, (rows, weights), slope)
    for ours, theirs in zip(found, torch.autograd.grad(expected, exact, slope.double()), strict=True):
        close(ours, theirs, BOUND[dtype])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", SIZES)
def test_codes_travel_with_their_factors(size: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens, experts, k, width, multiple = size
    place, source, _ = TORCH.plan(chosen(tokens, experts, k), experts, multiple)
    codes, factors = torch.randint(256, (tokens, width), dtype=torch.uint8), torch.randn(tokens, -(-width // 128))
    found, beside = OURS.copy_codes(codes.view(dtype), factors, source, place)
    assert found.dtype == dtype and torch.equal(found.view(torch.uint8), codes[source]) and torch.equal(beside, factors[source])
    shapes = OURS.copy_codes(codes.view(dtype).to("meta"), factors.to("meta"), source, place)
    assert [(t.shape, t.dtype) for t in shapes] == [(t.shape, t.dtype) for t in (found, beside)]


def test_what_is_no_number_travels_with_its_row() -> None:
    place, source, _ = TORCH.plan(chosen(6, 5, 2), 5, 1)
    x = torch.randn(6, 9)
    x[3, 4], x[1, 2] = math.nan, math.inf
    assert torch.equal(OURS.copy(x, source, place).nan_to_num(7, 8), x[source].nan_to_num(7, 8))
    rows = torch.randn(12, 9)
    rows[place[4, 1], 5] = math.nan
    assert OURS.sum(rows, source, place).isnan().nonzero().tolist() == [[4, 5]]


# Products

COUNTS = [[3, 0, 37, 7], [0, 0, 0, 1], [32, 33, 0, 1], [0, 0, 0, 0], [5]]
WIDTHS = [(5, 3), (33, 40), (1, 1), (70, 64)]
"""Columns of results and of inputs."""


def operands(counts: list[int], n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = torch.randn(sum(counts), k).to(dtype), torch.randn(len(counts), n, k).to(dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.tensor(counts)


def agree(x: Tensor, weight: Tensor, counts: Tensor) -> None:
    """Results and gradients against float64."""
    bound = max(BOUND[x.dtype], 2e-6)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    ours, expected = OURS.grouped(x, weight, counts, None), grouped(exact[0], exact[1], counts)
    close(ours, expected, bound, floor=1e-6)
    slope = torch.randn(ours.shape).to(x.dtype)
    found = torch.autograd.grad(ours, (x, weight), slope)
    for one, other, like in zip(found, torch.autograd.grad(expected, exact, slope.double()), (x, weight), strict=True):
        assert one.dtype == like.dtype
        close(one, other, bound, floor=1e-6)


@pytest.mark.parametrize(("n", "k"), WIDTHS)
@pytest.mark.parametrize("counts", COUNTS)
def test_products_of_ragged_experts(counts: list[int], n: int, k: int) -> None:
    agree(*operands(counts, n, k, torch.float32))


@pytest.mark.parametrize(("counts", "dtype"), [([130, 0, 3], torch.bfloat16), ([0, 257], torch.bfloat16), ([140], torch.float16)])
def test_the_tiles_of_16_bits_for_few_rows_and_for_many(counts: list[int], dtype: torch.dtype) -> None:
    agree(*operands(counts, 260, 70, dtype))


@pytest.mark.parametrize("deferred", [False, True])
def test_fp32_masters_have_fp32_gradients_whether_deferred_or_not(deferred: bool) -> None:
    x, weight, counts = operands([70, 0, 5], 20, 30, torch.bfloat16)
    master = torch.nn.Parameter(weight.detach().float())
    expected, store = grouped(x.double(), master.detach().double().requires_grad_(), counts), weight_gradients.WeightGradients()
    y = OURS.grouped(x, master, counts, store if deferred else None)
    close(y, expected, BOUND[torch.bfloat16])
    slope = torch.randn(y.shape).bfloat16()
    with store.deferring():
        y.backward(slope)
    assert (master.grad is None) == deferred
    store.run_all()
    exact = torch.stack([g.T @ r for g, r in zip(slope.double().split([70, 0, 5]), x.detach().double().split([70, 0, 5]), strict=True)])
    assert master.grad.dtype == torch.float32 and not master.grad[1].any()
    close(master.grad, exact, 1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_no_number_stays_with_its_expert_and_row() -> None:
    x, weight, counts = (t.detach() for t in operands([3, 4, 2], 5, 6, torch.float32))
    x[4, 2] = math.nan
    assert OURS.grouped(x, weight, counts, None).isnan().any(dim=1).nonzero().flatten().tolist() == [4]
    gradient = functions.weight_gradient(torch.randn(9, 5), x, counts, torch.float32)
    assert gradient.isnan().flatten(1).any(dim=1).tolist() == [False, True, False]
    weight[2, 1, 1] = math.inf
    assert OURS.grouped(x.nan_to_num(), weight, counts, None).isfinite().all(dim=1).tolist() == [True] * 7 + [False] * 2


def test_nobody_waits_for_numbers_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without padding, nothing asks a tensor for its numbers."""
    picked, (x, weight, _) = chosen(6, 4, 2), operands([12], 5, 3, torch.float32)
    weight = weight.detach().expand(4, -1, -1).clone().requires_grad_()
    for name in ("item", "tolist", "__int__", "__bool__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waits"))
    place, source, counts = OURS.plan(picked, 4, 1)
    y = OURS.sum(OURS.grouped(x, weight, counts, None), source, place)
    torch.autograd.backward(y, torch.ones_like(y))
    OURS.copy(y.detach(), source, place)
    with pytest.raises(pytest.fail.Exception, match="waits"):
        OURS.plan(picked, 4, 8)


# Benchmark


def test_the_benchmark_checks_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    assert wrong(moe.cases("cpu", small=True)) == []
    assert all(call() is not None for case in moe.cases("cpu", small=True) for name, call in case.peers.items() if "grouped" not in name)
    right, off = Kernels(), Kernels()
    slip = lambda found: Routing(found.weights * 1.02, found.experts) if isinstance(found, Routing) else found * 1.02  # noqa: E731
    shifted = lambda found: [t.roll(1, 0) for t in found]  # noqa: E731
    expected = {
        "route": (slip, ["router", "router-backward"]),
        "plan": (shifted, ["plan"]),
        "copy": (slip, ["permute"]),
        "copy_codes": (shifted, ["permute-fp8"]),
        "sum": (slip, ["unpermute", "unpermute-backward", "unpermute-weighted"]),
        "grouped": (slip, ["grouped", "grouped-input-gradient", "grouped-weight-gradient"]),
    }
    monkeypatch.setattr(moe, "OURS", off)
    for name, (change, kernels) in expected.items():
        with monkeypatch.context() as patch:
            patch.setattr(
                off, name, lambda *given, name=name, change=change, **kinds: change(getattr(right, name)(*given, **kinds)), raising=False
            )
            assert wrong(moe.cases("cpu", small=True)) == kernels
