"""The routers against loops in Python, and the rules that tell DeepSeek-V2's from V3's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.site import Site
from bestiary.plugins.moe.hookspecs import RouterSite
from bestiary.plugins.moe.options import SigmoidGroupOptions, SoftmaxGroupOptions, SoftmaxOptions
from bestiary.plugins.moe.routers import SigmoidGroup, Softmax, SoftmaxGroup

SHAPES = [(6, 1, 1, 2), (12, 3, 2, 3), (12, 4, 2, 4), (16, 8, 4, 3), (8, 2, 1, 4)]
"""Experts, groups, kept groups, experts per token."""


def router(kind, options, experts, k, width=5):
    """A router with random gate and, if it has one, random selection bias."""
    site = RouterSite(width, 1, 1, 1, 1e-6, n_routed_experts=experts, num_experts_per_tok=k)
    module = kind(options, site).double()
    torch.nn.init.normal_(module.weight)
    if kind is SigmoidGroup:
        module.e_score_correction_bias.normal_()
    return module


def largest(values, count):
    """Indices of the largest values, best first."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def sigmoid_group(module, token, groups, kept, k):
    """Equations 12 to 16 of DeepSeek-V3's report and its node-limited rule, for one token: `{expert: weight}`."""
    scores = [1 / (1 + math.exp(-float(row @ token))) for row in module.weight.detach()]
    biased = [score + float(bias) for score, bias in zip(scores, module.e_score_correction_bias, strict=True)]
    size = len(scores) // groups
    rank = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    allowed = [e for g in (largest(rank, kept) if groups > 1 else [0]) for e in range(g * size, (g + 1) * size)]
    chosen = [allowed[i] for i in largest([biased[e] for e in allowed], k)]
    total = sum(scores[e] for e in chosen) if module.options.norm_topk_prob else 1.0
    return {e: scores[e] / total * module.options.routed_scaling_factor for e in chosen}


def softmax_group(module, token, groups, kept, k):
    """DeepSeek-V2's rule for one token: groups rank by their best expert, and weights are normalised or scaled."""
    raw = [math.exp(float(row @ token)) for row in module.weight.detach()]
    scores = [value / sum(raw) for value in raw]
    size = len(scores) // groups
    best = largest([max(scores[g * size : (g + 1) * size]) for g in range(groups)], kept)
    masked = [score if e // size in best else 0.0 for e, score in enumerate(scores)]
    chosen = largest(masked, k)
    total = sum(scores[e] for e in chosen) if module.options.norm_topk_prob else 1.0
    return {e: scores[e] / total * module.options.routed_scaling_factor for e in chosen}


def compare(module, reference, shape, tokens=40):
    _, groups, kept, k = shape
    x = torch.randn(tokens, 5, dtype=torch.float64)
    routing = module(x)
    for token, weights, experts in zip(x, routing.weights.tolist(), routing.experts.tolist(), strict=True):
        expected = reference(module, token, groups, kept, k)
        assert dict(zip(experts, weights, strict=True)) == pytest.approx(expected, abs=1e-12)
    return routing


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalise", [True, False])
def test_sigmoid_group_follows_deepseek_v3(shape, normalise):
    options = SigmoidGroupOptions(n_group=shape[1], topk_group=shape[2], norm_topk_prob=normalise, routed_scaling_factor=2.5)
    compare(router(SigmoidGroup, options, shape[0], shape[3]), sigmoid_group, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("normalise", "scale"), [(False, 16.0), (True, 1.0)])
def test_softmax_group_follows_deepseek_v2(shape, normalise, scale):
    options = SoftmaxGroupOptions(n_group=shape[1], topk_group=shape[2], norm_topk_prob=normalise, routed_scaling_factor=scale)
    compare(router(SoftmaxGroup, options, shape[0], shape[3]), softmax_group, shape)


@pytest.mark.parametrize("shape", [(6, 1, 1, 2), (8, 1, 1, 8)])
def test_softmax_topk_follows_deepseek_v2_lite(shape):
    compare(router(Softmax, SoftmaxOptions(), shape[0], shape[3]), softmax_group, shape)


@given(st.integers(0, 10**6))
def test_weights_of_deepseek_v3_sum_to_the_scaling_factor_within_the_kept_groups(seed):
    torch.manual_seed(seed)
    module = router(SigmoidGroup, SigmoidGroupOptions(n_group=8, topk_group=4, routed_scaling_factor=2.5), 32, 8)
    routing = module(torch.randn(9, 5, dtype=torch.float64))
    assert torch.allclose(routing.weights.sum(dim=1), torch.full((9,), 2.5, dtype=torch.float64))
    for experts in routing.experts.tolist():
        assert len(set(experts)) == 8
        assert len({expert // 4 for expert in experts}) <= 4


def gate_of_scores(scores, **options):
    """A router whose scores for the token `[1]` are given."""
    module = router(SigmoidGroup, SigmoidGroupOptions(**options), len(scores), 2, width=1)
    with torch.no_grad():
        module.weight[:, 0] = torch.tensor([math.log(s / (1 - s)) for s in scores], dtype=torch.float64)
    module.e_score_correction_bias.zero_()
    return module


TOKEN = torch.ones(1, 1, dtype=torch.float64)


def test_excluded_groups_are_masked_with_minus_infinity_not_zero():
    module = gate_of_scores([0.9, 0.8, 0.7, 0.6], n_group=2, topk_group=1)
    module.e_score_correction_bias.copy_(torch.tensor([-2.0, -2.0, -3.0, -3.0]))
    assert sorted(module(TOKEN).experts[0].tolist()) == [0, 1], "with 0 as the mask the excluded experts 2 and 3 would win"


def test_groups_rank_by_their_two_best_experts_not_by_their_best():
    module = gate_of_scores([0.9, 0.1, 0.6, 0.5], n_group=2, topk_group=1)
    assert sorted(module(TOKEN).experts[0].tolist()) == [2, 3]


def test_the_bias_chooses_and_does_not_weigh():
    module = gate_of_scores([0.9, 0.8, 0.2, 0.1], routed_scaling_factor=1.0)
    module.e_score_correction_bias.copy_(torch.tensor([0.0, 0.0, 0.0, 5.0]))
    routing = module(TOKEN)
    assert dict(zip(routing.experts[0].tolist(), routing.weights[0].tolist(), strict=True)) == pytest.approx({3: 0.1, 0: 0.9})


def test_bf16_tokens_are_routed_in_fp32():
    module = router(SigmoidGroup, SigmoidGroupOptions(), 8, 3).float()
    x = torch.randn(20, 5).bfloat16()
    low, high = module(x), module(x.float())
    assert low.weights.dtype == low.scores.dtype == torch.float32
    assert torch.equal(low.experts, high.experts)
    assert torch.equal(low.weights, high.weights)


def test_the_weights_have_a_gradient_and_the_choice_has_none():
    module = router(SigmoidGroup, SigmoidGroupOptions(), 6, 2)
    routing = module(torch.randn(4, 5, dtype=torch.float64))
    routing.weights.square().sum().backward()
    assert module.weight.grad.abs().sum() > 0
    assert not module.e_score_correction_bias.requires_grad
    assert "e_score_correction_bias" in module.state_dict()
    assert "e_score_correction_bias" not in dict(module.named_parameters())


def test_the_bias_moves_against_the_excess_load_by_its_speed():
    module = router(SigmoidGroup, SigmoidGroupOptions(bias_update_speed=0.25), 4, 2)
    module.e_score_correction_bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    module.balance(torch.tensor([10, 2, 6, 6]))
    assert module.e_score_correction_bias.tolist() == [0.75, 2.25, 3.0, 4.0], "the mean load is 6"


def test_no_speed_leaves_the_bias():
    module = router(SigmoidGroup, SigmoidGroupOptions(bias_update_speed=0.0), 4, 2)
    before = module.e_score_correction_bias.clone()
    module.balance(torch.tensor([10, 2, 6, 6]))
    assert torch.equal(module.e_score_correction_bias, before)


def test_a_router_site_says_all_that_a_site_says():
    site = RouterSite(5, 1, 1, 1, 1e-6, n_routed_experts=6, num_experts_per_tok=2)
    assert isinstance(site, Site)
    assert site.at(3).layer == 3
    assert site.at(3).n_routed_experts == 6
