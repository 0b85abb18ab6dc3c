"""The kernels in Triton's interpreter against their definitions in torch. Run with TRITON_INTERPRET=1, in a process of its own."""

from __future__ import annotations

import math
import os
from typing import Any

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
from bestiary.plugins.moe.hookspecs import RouterSite, Routing
from bestiary.plugins.moe.kernels import functions
from bestiary.plugins.moe.kernels.launch import Kernels
from bestiary.plugins.moe.options import SigmoidGroupOptions
from bestiary.plugins.moe.routers import SigmoidGroup
from tests.kernels import interpreter

OURS = Kernels()
BOUND = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Of the error in the Frobenius norm; results are rounded once."""
FILL = {torch.int64: 1 << 40, torch.int32: 1 << 28, torch.uint8: 0x7F, torch.bool: True}


@pytest.fixture(autouse=True, scope="module")
def mended_and_poisoned():
    """New memory is full of NaN, or of indices far outside, so that what a kernel does not write shows."""
    with pytest.MonkeyPatch.context() as patch:
        interpreter.mend(patch)
        for where, name in ((torch.Tensor, "new_empty"), (torch, "empty_like")):
            patch.setattr(where, name, poisoned(getattr(where, name)))
        yield


def poisoned(make: Any) -> Any:
    def inner(*args: Any, **kinds: Any) -> Tensor:
        made = make(*args, **kinds)
        return made if made.is_meta else made.fill_(FILL.get(made.dtype, math.nan))

    return inner


def close(found: Tensor, exact: Tensor, bound: float) -> None:
    assert found.shape == exact.shape and torch.isfinite(found).all()
    assert (found.double() - exact.double()).norm() <= bound * exact.double().norm() + 1e-6


# Router

SHAPES = [(6, 1, 1, 2), (12, 3, 2, 3), (9, 3, 1, 2), (160, 8, 3, 6), (5, 1, 1, 1), (8, 4, 4, 8), (7, 1, 1, 7), (256, 8, 4, 8)]
"""Experts, groups, kept groups, experts per token."""


def router(shape: tuple[int, int, int, int], **options: Any) -> SigmoidGroup:
    count, groups, kept, k = shape
    site = RouterSite(4, 1, 1, 1, 1e-6, n_routed_experts=count, num_experts_per_tok=k)
    module = SigmoidGroup(SigmoidGroupOptions(n_group=groups, topk_group=kept, **options), site)
    module.e_score_correction_bias.normal_()
    return module


def by_torch(module: SigmoidGroup, logits: Tensor) -> Any:
    """The module's own code, of these logits."""
    module.logits = lambda x: x
    return module(logits)


def distinct(tokens: int, count: int) -> Tensor:
    """Logits whose scores no rounding can bring together."""
    return torch.stack([torch.randperm(count) for _ in range(tokens)]).mul(6 / count).sub(3) if tokens else torch.empty(0, count)


@pytest.mark.parametrize("options", [{"routed_scaling_factor": 2.5}, {"norm_topk_prob": False}])
@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_experts_of_torch_their_weights_and_all_gradients(shape: tuple[int, int, int, int], tokens: int, options: Any) -> None:
    module, logits = router(shape, **options), distinct(tokens, shape[0])
    both = [logits.clone().requires_grad_(), logits.double().requires_grad_()]
    ours = OURS.route(both[0], module.e_score_correction_bias, shape[3], module.options)
    theirs = by_torch(module.double(), both[1])
    assert torch.equal(ours.experts, theirs.experts)
    close(ours.weights, theirs.weights, 1e-6)
    close(ours.scores, theirs.scores, 1e-6)
    slopes = [torch.randn(t.shape) for t in (ours.weights, ours.scores)]
    for which in ((0,), (1,), (0, 1)):
        grads = []
        for found, own in ((ours, both[0]), (theirs, both[1])):
            loss = sum((t * s).sum() for i, (t, s) in enumerate(zip((found.weights, found.scores), slopes, strict=True)) if i in which)
            grads.append(torch.autograd.grad(loss, own, retain_graph=True)[0])
        close(*grads, 2e-6)


def test_scores_are_made_when_they_are_wanted() -> None:
    module, logits = router(SHAPES[1]), distinct(3, 12)
    route = lambda **kinds: OURS.route(logits, module.e_score_correction_bias, 3, module.options, **kinds)  # noqa: E731
    assert route().scores is None
    close(route(scores=True).scores, logits.sigmoid(), 1e-6)
    assert torch.equal(route().experts, route(scores=True).experts)


def test_of_equal_scores_the_first_is_chosen() -> None:
    module = router((12, 3, 2, 5), norm_topk_prob=False)
    module.e_score_correction_bias.zero_()
    routing = OURS.route(torch.zeros(3, 12), module.e_score_correction_bias, 5, module.options)
    assert routing.experts.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_excluded_groups_and_biases_of_minus_infinity() -> None:
    """K distinct experts of the kept groups, also where their choice is as low as that of what is excluded."""
    module = router((6, 2, 1, 3))
    module.e_score_correction_bias.copy_(torch.tensor([-2.0, -2.0, -math.inf, -3.0, -3.0, -3.0]))
    routing = OURS.route(torch.zeros(2, 6), module.e_score_correction_bias, 3, module.options)
    assert routing.experts.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_no_number_is_chosen_and_shows_in_its_token_alone(sign: float) -> None:
    shape = (12, 3, 1, 2)
    module, logits = router(shape), distinct(4, 12)
    clean = OURS.route(logits, module.e_score_correction_bias, 2, module.options, scores=True)
    logits[2, 7] = math.copysign(math.nan, sign)
    ours, theirs = OURS.route(logits, module.e_score_correction_bias, 2, module.options, scores=True), by_torch(module, logits)
    assert ours.experts[2, 0] == theirs.experts[2, 0] == 7 and torch.equal(ours.experts, theirs.experts)
    assert ours.weights[2].isnan().all() and ours.scores[2, 7].isnan()
    others = [0, 1, 3]
    assert torch.equal(ours.weights[others], clean.weights[others]) and torch.equal(ours.experts[others], clean.experts[others])


def test_infinite_logits_are_scores_of_one_and_zero() -> None:
    module = router((4, 1, 1, 2), routed_scaling_factor=2.0)
    module.e_score_correction_bias.zero_()
    routing = OURS.route(torch.tensor([[-math.inf, math.inf, 0.0, -1.0]]), module.e_score_correction_bias, 2, module.options, scores=True)
    assert routing.experts.tolist() == [[1, 2]] and routing.scores[0, :3].tolist() == [0, 1, 0.5]
    close(routing.weights, torch.tensor([[4 / 3, 2 / 3]]), 1e-6)


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
    close(ours, expected, bound)
    slope = torch.randn(ours.shape).to(x.dtype)
    found = torch.autograd.grad(ours, (x, weight), slope)
    for one, other, like in zip(found, torch.autograd.grad(expected, exact, slope.double()), (x, weight), strict=True):
        assert one.dtype == like.dtype
        close(one, other, bound)


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
