"""Optimizers against what their papers and torch say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.optim import AdamW, Muon

import bestiary
from bestiary import BestiaryError
from bestiary.core import native
from bestiary.lab.recipe import load_recipe
from bestiary.lab.training.adamw import CompactAdamW
from bestiary.lab.training.average import Average
from bestiary.lab.training.optimizer import Optimizers
from bestiary.lab.training.options import MuonOptions, OptimizerOptions


@pytest.fixture
def model(lab: Path):
    return bestiary.create_model(load_recipe(lab / "recipe.toml").manifest())


def with_gradients(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def test_norms_and_biases_do_not_decay(model):
    decayed, kept = Optimizers(model, OptimizerOptions()).adamw.param_groups
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_bf16_moments_follow_adamw_within_their_rounding():
    torch.manual_seed(0)
    one = torch.nn.Parameter(torch.randn(40, 7))
    two = torch.nn.Parameter(one.detach().clone())
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    exact, compact = AdamW([one], **settings), CompactAdamW([two], **settings)
    for step in range(25):
        one.grad = torch.randn(40, 7)
        two.grad = one.grad.clone()
        exact.step()
        compact.step()
        if step == 0:
            assert torch.allclose(one, two, atol=1e-7), "nothing has been rounded before the first step"
    assert all(compact.state[two][name].dtype == torch.bfloat16 for name in ("exp_avg", "exp_avg_sq"))
    assert 0 < (one - two).abs().max() < 0.02 * (0.01 * 25), "2 % of the way that 25 steps can go"


@pytest.mark.skipif(bool(native.why_not()), reason="kernels cannot be compiled")
@pytest.mark.parametrize("shape", [(1,), (7,), (33, 5), (3, 70, 41), (90000,)])
def test_the_kernel_takes_the_step_that_torch_operations_define(shape, monkeypatch):
    torch.manual_seed(0)
    one = torch.nn.Parameter(torch.randn(shape))
    two = torch.nn.Parameter(one.detach().clone())
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    fast, plain = CompactAdamW([one], **settings), CompactAdamW([two], **settings)
    for _ in range(6):
        one.grad = torch.randn(shape) * torch.logspace(-12, 2, one.numel()).view(shape)
        two.grad = one.grad.clone()
        largest = fast.state[one]["exp_avg"].float().abs() + one.grad.abs() if fast.state[one] else one.grad.abs()
        fast.step()
        with monkeypatch.context() as without:
            without.setattr("bestiary.lab.training.adamw._kernel", lambda: None)
            plain.step()
        assert torch.allclose(one, two, rtol=0, atol=2e-6)
        for name, scale in (("exp_avg", largest), ("exp_avg_sq", 0)):
            ours, theirs = fast.state[one][name].float(), plain.state[two][name].float()
            assert ((ours - theirs).abs() <= 2**-7 * theirs.abs() + 1e-6 * scale + 1e-37).all(), "at most one spacing of bf16 apart"
            fast.state[one][name].copy_(plain.state[two][name])
        with torch.no_grad():
            one.copy_(two)


def test_moments_that_bf16_would_freeze_are_refused():
    with pytest.raises(BestiaryError, match=r"bf16 moments stand still when they decay slower than 0\.99"):
        CompactAdamW([torch.nn.Parameter(torch.zeros(2, 2))], lr=1e-3, betas=(0.9, 0.999), eps=1e-8)


def test_muon_steps_each_expert_as_a_matrix_and_leaves_embedding_head_router_and_norms_to_adamw(model):
    with_gradients(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, OptimizerOptions(muon=MuonOptions(lr=0.02)))
    names = set(optimizers.members[1][1])
    stacked = "model.layers.1.mlp.experts.down_proj.weight"
    assert {f"{stacked}[{i}]" for i in range(4)} <= names and stacked not in names
    assert not [name for name in names if any(word in name for word in ("embed", "lm_head", "gate.weight", "norm"))]
    gradient = dict(model.named_parameters())[stacked].grad[2].clone()
    optimizers.step()
    alone = torch.nn.Parameter(before[stacked][2].clone())
    alone.grad = gradient
    Muon([alone], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw").step()
    assert torch.equal(dict(model.named_parameters())[stacked][2], alone)
    assert all((p != before[name]).any() for name, p in model.named_parameters()), "every parameter moves once"
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_making_room_for_state_changes_no_parameter(model):
    before = [p.detach().clone() for p in model.parameters()]
    optimizers = Optimizers(model, OptimizerOptions(muon=MuonOptions()))
    optimizers.allocate()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with_gradients(model)
    fresh = {name: {key: value.shape for key, value in state.items()} for name, state in optimizers.state().items()}
    optimizers.step()
    assert fresh == {name: {key: value.shape for key, value in state.items()} for name, state in optimizers.state().items()}


def test_an_average_follows_its_formula_and_gives_the_weights_back(model):
    average, decay = Average(model, 0.9), 0.9
    name = "model.layers.0.self_attn.o_proj.weight"
    expected = model.state_dict()[name].clone().double()
    for _ in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        average.update()
        expected = decay * expected + (1 - decay) * model.state_dict()[name].double()
    assert torch.allclose(average.tensors[name].double(), expected, atol=1e-6)
    live = model.state_dict()[name].clone()
    with average.in_place():
        assert torch.allclose(model.state_dict()[name].double(), expected, atol=1e-6)
    assert torch.equal(model.state_dict()[name], live)
