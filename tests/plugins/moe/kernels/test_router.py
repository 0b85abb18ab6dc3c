"""The router in Triton's interpreter against the one in torch. Run with TRITON_INTERPRET=1, in a process of its own."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

from bestiary.plugins.moe.hookspecs import RouterSite
from bestiary.plugins.moe.kernels.launch import Kernels
from bestiary.plugins.moe.options import SigmoidGroupOptions
from bestiary.plugins.moe.routers import SigmoidGroup
from tests.kernels.checks import close, mended_and_poisoned  # noqa: F401

OURS = Kernels()
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
        close(*grads, 2e-6, floor=1e-6)


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
