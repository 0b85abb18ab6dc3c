"""Experts that nobody chooses, ranks that get no rows, and micro-batches of single tokens."""

from __future__ import annotations

import pytest
import torch

import bestiary
from bestiary import testing
from bestiary.plugins.moe.hookspecs import Routing


class Always(torch.nn.Module):
    """Sends every token to the same two experts."""

    def __init__(self, gate, chosen):
        super().__init__()
        self.gate, self.chosen = gate, chosen

    def forward(self, x):
        scores = self.gate.logits(x).sigmoid()
        experts = torch.tensor(self.chosen).expand(len(x), -1)
        return Routing(scores.gather(-1, experts), experts, scores)


def _step(data, parallelism, chosen):
    """Loss, gradients by name with the experts' first row of this rank, and the load of one step."""
    from bestiary.lab.testing.conformance import Case, _whole, batch

    made = bestiary.create_model({**data, "parallelism": parallelism}, dtype=torch.float64, seed=3).train()
    for module in made.modules():
        if hasattr(module, "share_experts"):
            module.gate = Always(module.gate, chosen)
    rows = made.parallelism.row_multiple
    loss = made.parallelism.step(made, batch(Case(data, parallelism), rows, 31, 0))
    found = {name: _whole(p.grad, name, made).clone() for name, p in made.named_parameters() if p.grad is not None}
    return float(loss.total), found


@pytest.mark.parametrize("chosen", [(0, 1), (6, 2)])
@pytest.mark.parametrize(
    "layout",
    [
        {"use": "dualpipe-v", "pp": 1, "dp": 4, "ep": 4, "micro_batches": 2},
        {"use": "fsdp", "dp": 4, "ep": 4},
        {"use": "dualpipe-v", "pp": 2, "dp": 2, "ep": 2, "micro_batches": 4},
    ],
)
def test_ranks_whose_experts_nobody_chooses(processes, model, layout, chosen):
    data = model(aux=0, mtp=False)
    data["block"]["ffn"]["num_experts_per_tok"] = 2
    alone = {"use": "local", "micro_batches": layout["dp"] * layout.get("micro_batches", 1)}
    loss, gradients = _step(data, alone, chosen)
    seen = set()
    for found, theirs in processes.run(_step, data, layout, chosen):
        assert found == pytest.approx(loss, rel=1e-12)
        for name, gradient in theirs.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-12, atol=1e-12)
            seen.add(name)
    assert seen == gradients.keys()
    experts = gradients["model.layers.3.mlp.experts.down_proj.weight"]
    assert [bool(expert.any()) for expert in experts] == [expert in chosen for expert in range(8)]


@pytest.mark.parametrize(
    "layout", [{"use": "dualpipe-v", "pp": 1, "dp": 4, "ep": 4, "micro_batches": 2}, {"use": "fsdp", "dp": 4, "ep": 2}]
)
def test_micro_batches_of_one_token(processes, model, layout):
    testing.assert_same(processes, testing.Case(model(mtp=False), layout, length=1))
