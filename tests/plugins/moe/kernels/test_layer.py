"""A layer by the kernels against the same layer by torch: outputs, statistics, balance loss and gradients, in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

from bestiary.core import weight_gradients
from bestiary.core.contracts import Batch, Context
from bestiary.core.distributed.experts import ExpertRanks
from bestiary.plugins.moe.kernels.launch import Kernels
from tests.kernels.checks import mended_and_poisoned  # noqa: F401

MOE = {"use": "moe", "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "intermediate_size": 9}
ROUTERS = {
    "sigmoid-group": {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5},
    "softmax-topk": {"norm_topk_prob": True},
    "softmax-group": {"n_group": 3, "topk_group": 2},
}
KERNELS = ("torch", "triton")


@pytest.fixture
def both(tiny: Any, build: Any) -> Any:
    """`both(router, **options)`: the same model, by torch and by the kernels."""

    def make(router: str = "sigmoid-group", **options: Any) -> list[Any]:
        ffn = MOE | {"router": {"use": router} | ROUTERS[router]} | options
        models = [build(tiny("gqa", ffn | {"kernels": kernels}, layers=2), dtype=torch.float32) for kernels in KERNELS]
        layer = models[1].model.layers[0].mlp
        assert isinstance(layer.moves, Kernels) and layer.experts.down_proj.product == layer.moves.grouped
        assert router != "sigmoid-group" or isinstance(layer.gate.kernels, Kernels)
        return models

    return make


def same(found: list[Any], bound: float = 1e-5) -> None:
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= bound * theirs.norm()


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("documents", [False, True])
def test_the_loss_of_a_model_and_its_gradients(both: Any, packed: Any, router: str, documents: bool) -> None:
    plain = packed(3, 11, 31, segments=documents, ignored=True)
    valid = torch.arange(11)[None] < torch.tensor([[11], [4], [9]])
    batch, found = Batch(plain.input_ids, plain.targets, plain.segments, valid), []
    for model in both(router, aux_loss_alpha=0.3):
        loss = model.loss(batch, model.counts(batch))
        loss.total.backward()
        loads = [layer.mlp.load.float() for layer in model.model.layers]
        found.append([loss.total, loss.parts["balance"], *loads, *(parameter.grad for parameter in model.parameters())])
    same(found)


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("shared", [False, True])
def test_few_rows_padded_rows_and_experts_on_several_ranks(both: Any, rows: int, shared: bool) -> None:
    """On a CPU many rows are padded; a single rank that shares its experts dispatches twice."""
    x, found = torch.randn(1, rows, 14), []
    for model in both():
        layer, own = model.model.layers[0].mlp, x.clone().requires_grad_()
        if shared:
            layer.share_experts(ExpertRanks())
        y = layer(own, Context(torch.arange(rows)[None]))
        y.square().sum().backward()
        found.append([y, own.grad, *(parameter.grad for parameter in layer.parameters())])
    same(found)


def test_recomputation_counts_and_reports_once(both: Any) -> None:
    x, found = torch.randn(2, 7, 14), []
    for model in both(aux_loss_alpha=0.7):
        layer, own, here = model.model.layers[0].mlp, x.clone().requires_grad_(), Context(torch.arange(7)[None])
        checkpoint(layer, own, here, use_reentrant=True).square().sum().backward()
        found.append([here.parts["balance"], layer.load.float(), own.grad])
    same(found)


def test_deferred_weight_gradients(both: Any) -> None:
    x, found = torch.randn(1, 9, 14), []
    for model in both():
        layer, store = model.model.layers[0].mlp, weight_gradients.WeightGradients()
        with store.splitting():
            y = layer(x, Context(torch.arange(9)[None]))
        with store.deferring():
            y.square().sum().backward()
        assert layer.experts.down_proj.weight.grad is None
        store.run_all()
        found.append([y, layer.experts.down_proj.weight.grad, layer.experts.gate_up_proj.weight.grad])
    same(found)


def test_an_evaluation_hears_the_same_load(both: Any) -> None:
    x, found = torch.randn(2, 7, 14), []
    for model in both():
        observed: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            y = model.eval().model.layers[0].mlp(x, Context(torch.arange(7)[None], observed=observed))
        found.append([y, *(load.float() for load in observed.values())])
    same(found)


def test_a_precision_with_products_of_its_own_keeps_them(tiny: Any, build: Any) -> None:
    ffn = MOE | {"router": {"use": "sigmoid-group"}, "kernels": "triton"}
    layer = build(tiny("gqa", ffn, layers=1), set=["precision.use=fp8"], dtype=None).model.layers[0].mlp
    layer.experts.gate_up_proj.product = layer.experts.down_proj.product = None
    x = torch.randn(1, 5, 14).bfloat16()
    y = layer(x, Context(torch.arange(5)[None]))
    theirs = build(tiny("gqa", ffn | {"kernels": "torch"}, layers=1), set=["precision.use=fp8"], dtype=None).model.layers[0].mlp
    same([[y.float()], [theirs(x, Context(torch.arange(5)[None])).float()]], 2e-2)
