"""The mixture of experts against a loop over tokens, its phases, its statistics and its balance loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bestiary.core.contracts import Context
from bestiary.plugins.moe.balance import balance_loss, expert_load, max_violation
from bestiary.plugins.moe.dispatch import combine, dispatch
from bestiary.plugins.moe.hookspecs import Routing

MOE = {"use": "moe", "n_routed_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 9, "n_shared_experts": 2}
ROUTERS = {
    "sigmoid-group": {"n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5},
    "softmax-topk": {"norm_topk_prob": True},
    "softmax-group": {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 4.0},
}


@pytest.fixture
def moe(tiny, build):
    def make(router="sigmoid-group", **options):
        table = MOE | {"router": {"use": router} | ROUTERS[router]} | options
        return build(tiny("gqa", table, layers=1)).model.layers[0].mlp

    return make


def context(x, **parts):
    return Context(torch.arange(x.shape[1])[None], **parts)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def swiglu(x, gate, up, down):
    return down @ (F.silu(gate @ x) * (up @ x))


def reference(module, x):
    """Equation 12 of DeepSeek-V3's report, token by token; the router is taken as it is."""
    flat, routing = x.flatten(0, 1), module.gate(x.flatten(0, 1))
    outs = []
    for token, experts, weights in zip(flat, routing.experts.tolist(), routing.weights, strict=True):
        shared = module.shared_experts
        out = 0 if shared is None else swiglu(token, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
        for expert, weight in zip(experts, weights, strict=True):
            gate, up = module.experts.gate_up_proj.weight[expert].chunk(2)
            out = out + weight * swiglu(token, gate, up, module.experts.down_proj.weight[expert])
        outs.append(out)
    return torch.stack(outs).view_as(x)


def gradients(module, out, x):
    noise = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    return torch.autograd.grad((out * noise).sum(), [x, *module.parameters()])


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("shape", [(2, 7), (1, 1), (3, 70)])
def test_it_equals_a_loop_over_tokens_with_every_gradient(moe, router, shared, shape):
    module = moe(router, n_shared_experts=shared)
    x = random(*shape, 14).requires_grad_()
    ours, theirs = module(x, context(x)), reference(module, x)
    assert torch.allclose(ours, theirs, atol=1e-11)
    for one, other in zip(gradients(module, ours, x), gradients(module, theirs, x), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_forward_is_the_composition_of_its_phases(moe):
    module, x = moe(), random(2, 5, 14)
    routing = module.route(x, context(x))
    sent = module.dispatch(x.flatten(0, 1), routing)
    routed = module.combine(module.experts(sent), sent).view_as(x)
    assert torch.equal(routed + module.shared_experts(x), module(x, context(x)))


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 2, 5]), st.integers(0, 10**6))
def test_dispatching_and_combining_bring_every_copy_to_its_expert_and_back(tokens, experts, k, multiple, seed):
    generator = torch.Generator().manual_seed(seed)
    k = min(k, experts)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:k] for _ in range(tokens)])
    weights = torch.rand(tokens, k, dtype=torch.float64, generator=generator).requires_grad_()
    x = torch.randn(tokens, 3, dtype=torch.float64, generator=generator).requires_grad_()
    sent = dispatch(x, Routing(weights, chosen), experts, multiple=lambda rows: multiple)
    assert int(sent.counts.sum()) == len(sent.rows)
    assert not (sent.counts % multiple).any()
    scale = torch.repeat_interleave(torch.arange(experts) + 1.0, sent.counts).double()
    ours = combine(sent.rows * sent.weights * scale[:, None], sent)
    theirs = torch.stack([sum(weights[t, j] * (chosen[t, j] + 1) * x[t] for j in range(k)) for t in range(tokens)])
    assert torch.allclose(ours, theirs, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), (x, weights)), torch.autograd.grad(theirs.square().sum(), (x, weights)), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-11)


# Load and bias


def test_load_counts_every_copy_and_leaves_padding_out(moe):
    module, x = moe(), random(2, 6, 14)
    valid = torch.arange(6)[None] < torch.tensor([[6], [3]])
    module(x, context(x, valid=valid))
    chosen = module.gate(x.flatten(0, 1)).experts.view(2, 6, 2)
    expected = [sum(int(e in chosen[b, s]) for b in range(2) for s in range(6) if valid[b, s]) for e in range(6)]
    assert module.load.tolist() == expected
    assert int(module.load.sum()) == 9 * 2
    assert "load" not in module.state_dict()


def test_load_is_not_counted_in_evaluation(moe):
    module, x = moe().eval(), random(2, 6, 14)
    module(x, context(x))
    assert not module.load.any()


def test_a_step_moves_the_bias_by_hand_computed_signs_over_all_ranks_and_starts_counting_anew(moe):
    module = moe(router="sigmoid-group")
    before = module.gate.e_score_correction_bias.clone()
    module.load += torch.tensor([4, 0, 2, 2, 1, 3])
    other_rank = torch.tensor([0, 0, 0, 0, 1, 5])
    metrics = module.after_step(lambda load: load + other_rank)
    moved = module.gate.e_score_correction_bias - before
    assert torch.allclose(moved, 0.001 * torch.tensor([-1.0, 1, 1, 1, 1, -1], dtype=torch.float64))
    assert metrics["max_vio"] == pytest.approx((8 - 3) / 3)
    assert metrics["load"].tolist() == [4, 0, 2, 2, 2, 8]
    assert not module.load.any()
    assert module.after_step(lambda load: load) == {}


def test_a_whole_model_acts_after_a_step_in_every_moe_layer(tiny, build):
    model = build(tiny(layers=3, objective={"next-token": {"use": "next-token"}, "mtp": {"use": "mtp"}}))
    before = model.model.layers[2].mlp.gate.e_score_correction_bias.clone()
    model(torch.randint(31, (2, 6)))
    metrics = model.after_step(lambda load: load)
    assert set(metrics) == {f"model.layers.{i}.mlp.{name}" for i in range(3) for name in ("max_vio", "load")}, "MTP's layer has not run"
    assert not torch.equal(before, model.model.layers[2].mlp.gate.e_score_correction_bias)


def test_an_evaluation_hears_the_load_within_each_sequence_and_its_padding_left_out(moe):
    module, x, valid = moe().eval(), random(3, 6, 14), torch.rand(3, 6) > 0.3
    observed = {}
    module(x, Context(torch.arange(6)[None], valid=valid, observed=observed))
    (load,) = observed.values()
    experts = module.route(x, context(x)).experts.unflatten(0, (3, 6))
    expected = [[int(((experts[b] == e).sum(dim=1) * valid[b]).sum()) for e in range(module.count)] for b in range(3)]
    assert load.tolist() == expected


def test_repeated_steps_even_out_the_load(moe):
    module, x = moe(router="sigmoid-group"), random(1, 600, 14)
    module.gate.speed = 0.02
    violations = []
    for _ in range(150):
        module.route(x, context(x))
        violations.append(module.after_step(lambda load: load)["max_vio"])
    assert sum(violations[-10:]) / 10 < 0.4 * violations[0]


def test_max_violation_is_the_relative_excess_of_the_fullest_expert():
    assert max_violation(torch.tensor([5, 5, 5])) == 0
    assert max_violation(torch.tensor([9, 3, 3])) == pytest.approx(0.8)
    assert max_violation(torch.tensor([0, 0])) == 0


def test_expert_load_counts_experts_that_nobody_chose():
    assert expert_load(torch.tensor([[0, 2], [2, 3]]), 5).tolist() == [1, 0, 2, 1, 0]


# Balance loss


def loop(scores, experts, valid):
    """Equations 17 to 20 of DeepSeek-V3's report, without alpha, as sums over sequences, experts and tokens."""
    losses = []
    count, k = scores.shape[-1], experts.shape[-1]
    for b in range(len(scores)):
        tokens = [t for t in range(scores.shape[1]) if valid[b, t]]
        total = torch.zeros((), dtype=scores.dtype)
        for i in range(count):
            f = count / (k * len(tokens)) * sum(int(i in experts[b, t]) for t in tokens)
            p = sum(scores[b, t, i] / scores[b, t].sum() for t in tokens) / len(tokens)
            total = total + f * p
        losses.append(total)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("padded", [False, True])
def test_the_balance_loss_equals_its_sums(padded):
    scores = torch.rand(3, 5, 6, dtype=torch.float64).requires_grad_()
    experts = scores.topk(2, dim=-1).indices
    valid = torch.arange(5)[None] < torch.tensor([[5], [3], [1 if padded else 5]])
    given_valid = valid if padded else None
    ours, theirs = balance_loss(scores, experts, given_valid), loop(scores, experts, valid if padded else torch.ones(3, 5))
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(loss, scores)[0] for loss in (ours, theirs)), atol=1e-12)


def test_perfectly_uniform_routing_costs_exactly_alpha():
    experts = torch.stack([torch.arange(6).roll(-2 * t)[:2] for t in range(9)])[None]
    assert float(balance_loss(torch.full((1, 9, 6), 0.3, dtype=torch.float64), experts)) == pytest.approx(1.0, abs=1e-12)
    assert float(balance_loss(torch.eye(6, dtype=torch.float64)[:1].expand(9, 6)[None], torch.zeros(1, 9, 2).long())) > 1


@pytest.mark.parametrize("seq_aux", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_its_gradient_is_that_of_a_loss_which_holds_it_openly(moe, seq_aux, share):
    module, x = moe(aux_loss_alpha=0.7, seq_aux=seq_aux), random(3, 5, 14).requires_grad_()
    here = context(x, aux_scale=share)
    ours = gradients(module, module(x, here), x)
    routing = module.gate(x.flatten(0, 1))
    scores, experts = routing.scores.view(3, 5, 6), routing.experts.view(3, 5, 2)
    if not seq_aux:
        scores, experts = scores.view(1, 15, 6), experts.view(1, 15, 2)
    balance = 0.7 * loop(scores, experts, torch.ones(scores.shape[:2]))
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    openly = torch.autograd.grad((reference(module, x) * noise).sum() + share * balance, [x, *module.parameters()])
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(ours, openly, strict=True))
    assert torch.allclose(here.parts["balance"], balance, atol=1e-12)


def test_the_losses_of_all_layers_add_up_in_the_report_and_the_total(tiny, build, packed):
    model = build(tiny(ffn=MOE | {"router": {"use": "sigmoid-group"}, "aux_loss_alpha": 0.5}))
    batch = packed(2, 6, 31)
    loss = model.loss(batch, model.counts(batch))
    assert float(loss.parts["balance"]) > 2 * 0.5 * 0.9
    assert torch.allclose(loss.total, loss.parts["next-token"] + loss.parts["balance"], atol=1e-12)


def test_padding_takes_no_part_in_the_balance_loss(moe):
    module, x = moe(aux_loss_alpha=0.7), random(1, 6, 14)
    short, long = context(x[:, :4]), context(x, valid=torch.arange(6)[None] < 4)
    module(x[:, :4], short)
    module(x, long)
    assert torch.allclose(short.parts["balance"], long.parts["balance"], atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_counts_and_reports_once_and_gives_the_same_gradients(moe, reentrant):
    module, x = moe(aux_loss_alpha=0.7), random(2, 5, 14).requires_grad_()
    plain = context(x)
    expected = gradients(module, module(x, plain), x)
    load = module.load.clone()
    module.load.zero_()
    here = context(x)
    out = checkpoint(module, x, here, use_reentrant=reentrant)
    noise = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    module.zero_grad()
    (out * noise).sum().backward()
    assert torch.equal(module.load, load)
    assert torch.equal(here.parts["balance"], plain.parts["balance"])
    for one, other in zip([x.grad, *(p.grad for p in module.parameters())], expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
