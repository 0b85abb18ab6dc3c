"""The dense layer, next-token prediction, and a step in one process."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bestiary.core.contracts import IGNORE, Batch


def plain(model, x):
    """The dense model's layer, written out."""
    gate, up, down = (getattr(model.model.layers[0].mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


@pytest.fixture
def trained(tiny, build):
    """`trained(micro_batches, **sections)`: a model, and a function that runs one step of a batch."""

    def make(micro_batches=1, attention="mla", ffn="moe", **sections):
        model = build(tiny(attention, ffn, parallelism={"use": "local", "micro_batches": micro_batches}, **sections))
        return model, model.manifest.parallelism.build(model.manifest.site)

    return make


def run(pair, batch):
    model, local = pair
    loss = local.step(model, batch)
    return loss, {name: p.grad for name, p in model.named_parameters()}


def test_dense_is_swiglu(tiny, build):
    model = build(tiny("gqa", "dense"))
    x = torch.randn(2, 3, 14, dtype=torch.float64)
    assert torch.allclose(model.model.layers[0].mlp(x), plain(model, x), atol=1e-12)


OBJECTIVES = {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp", "depth": 2}}
MOE = {"use": "moe", "n_routed_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 9, "aux_loss_alpha": 0.1}


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_give_the_loss_and_gradients_of_one_batch(trained, packed, micro_batches, segments):
    sections = {"ffn": MOE | {"router": {"use": "sigmoid-group"}}, "objective": OBJECTIVES}
    batch = packed(4, 7, 31, segments=segments, ignored=True)
    whole, expected = run(trained(1, **sections), batch)
    parts, gradients = run(trained(micro_batches, **sections), batch)
    assert torch.allclose(parts.total, whole.total, atol=1e-12)
    assert parts.parts.keys() == whole.parts.keys() == {"next-token", "mtp-1", "mtp-2", "balance"}
    assert all(torch.allclose(parts.parts[name], whole.parts[name], atol=1e-12) for name in whole.parts)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-12), name


def test_the_loss_is_the_mean_over_the_targets_that_exist(trained, packed):
    model, local = trained()
    batch = packed(3, 6, 31, ignored=True)
    used = batch.targets != IGNORE
    assert 0 < used.sum() < used.numel()
    loss = local.step(model, batch)
    logits = model(batch.input_ids)
    nats = [-logits[b, s].log_softmax(-1)[batch.targets[b, s]] for b, s in used.nonzero().tolist()]
    assert torch.allclose(loss.parts["next-token"], torch.stack(nats).mean(), atol=1e-12)
    assert torch.allclose(loss.total, loss.parts["next-token"])


def test_an_ignored_target_has_no_gradient(trained, packed):
    model, local = trained()
    batch = packed(1, 5, 31)
    batch.targets[:, -1] = IGNORE
    model.zero_grad()
    local.step(model, batch)
    seen = model.model.embed_tokens.weight.grad[batch.input_ids[0, -1]]
    elsewhere = batch.input_ids[0, -1] in batch.input_ids[0, :-1]
    assert elsewhere or seen.abs().sum() == 0


def test_a_batch_without_targets_costs_nothing_instead_of_nan(trained, packed):
    model, local = trained(objective=OBJECTIVES)
    batch = packed(2, 5, 31)
    batch.targets.fill_(IGNORE)
    assert local.step(model, batch).total == 0
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.parameters())


def test_an_objectives_weight_scales_its_gradient_and_not_its_report(trained, packed):
    batch = packed(2, 5, 31)
    one, full = run(trained(), batch)
    half, scaled = run(trained(objective={"next-token": {"use": "next-token", "weight": 0.5}}), batch)
    assert torch.equal(half.parts["next-token"], one.parts["next-token"])
    assert torch.allclose(half.total, one.total / 2)
    assert torch.allclose(scaled["lm_head.weight"], full["lm_head.weight"] / 2, atol=1e-14)


def test_evaluation_gives_the_loss_without_gradients_statistics_or_a_change_of_mode(trained, packed):
    model, local = trained(2, objective=OBJECTIVES)
    batch = packed(2, 6, 31)
    evaluated = local.evaluate(model, batch)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not model.after_step(local.reduce)
    assert torch.allclose(evaluated.total, local.step(model, batch).total, atol=1e-12)


def test_gradients_of_two_steps_add_up(trained, packed):
    model, local = trained()
    batch = packed(2, 5, 31)
    _, once = run((model, local), batch)
    once = {name: gradient.clone() for name, gradient in once.items()}
    _, twice = run((model, local), batch)
    assert all(torch.allclose(twice[name], 2 * once[name], atol=1e-12) for name in once)


def test_rows_that_do_not_split_evenly_are_refused(trained, packed):
    model, local = trained(2)
    with pytest.raises(ValueError, match="3 rows do not split into 2 equal micro-batches"):
        local.step(model, packed(3, 5, 31))


def test_padding_at_the_end_changes_no_loss(trained, packed):
    batch = packed(1, 5, 31)
    longer = Batch(F.pad(batch.input_ids, (0, 2)), F.pad(batch.targets, (0, 2), value=IGNORE), valid=F.pad(torch.ones(1, 5), (0, 2)).bool())
    one, gradients = run(trained(), batch)
    other, padded = run(trained(), longer)
    assert torch.allclose(one.total, other.total, atol=1e-12)
    assert all(torch.allclose(gradients[name], padded[name], atol=1e-12) for name in gradients)
