"""Multi-token prediction against equations 21 to 25 written out, and its names on the Hub."""

from __future__ import annotations

import pytest
import torch

import bestiary
from bestiary.core.assemble import state
from bestiary.core.contracts import IGNORE, Context
from bestiary.core.table import entries, own_entries


def norm(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def reference(model, batch, depth, weight, hidden):
    """The mean over depths of the cross-entropy of token i + k + 1, by row and position; blocks are taken as they are."""
    raw = model.hidden(batch.input_ids, segments=batch.segments).raw
    post = hidden == "post-norm"
    state = norm(raw, model.model.norm.weight) if post else raw
    losses = []
    for k in range(1, depth + 1):
        layer = model.objectives["mtp"].layers[k - 1]
        tokens = batch.input_ids[:, k:]
        length = tokens.shape[1]
        embedding = model.model.embed_tokens.weight[tokens]
        joined = torch.cat((norm(embedding, layer.enorm.weight), norm(state[:, :length], layer.hnorm.weight)), dim=-1)
        segments = None if batch.segments is None else batch.segments[:, :length]
        out = layer.block(joined @ layer.eh_proj.weight.T, Context(torch.arange(length)[None], segments=segments))
        normed = norm(out, layer.shared_head.norm.weight)
        state = normed if post else out
        nats = []
        for b in range(len(tokens)):
            for i in range(length):
                target = int(batch.targets[b, i + k])
                crosses = batch.segments is not None and batch.segments[b, i] != batch.segments[b, i + k]
                if target != IGNORE and not crosses:
                    nats.append(-(model.lm_head.weight @ normed[b, i]).log_softmax(0)[target])
        losses.append(torch.stack(nats).mean())
    return weight * torch.stack(losses).mean(), losses


@pytest.fixture
def trained(tiny, build):
    def make(attention="mla", ffn="moe", **options):
        return build(tiny(attention, ffn, objective={"mtp": {"use": "mtp", "weight": 0.7} | options}))

    return make


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("hidden", ["post-norm", "pre-norm"])
@pytest.mark.parametrize("depth", [1, 2])
def test_loss_and_gradients_equal_the_equations(trained, packed, depth, hidden, segments):
    model = trained(depth=depth, hidden=hidden)
    batch = packed(3, 8, 31, segments=segments, ignored=True)
    ours = model.loss(batch, model.counts(batch))
    total, losses = reference(model, batch, depth, 0.7, hidden)
    assert torch.allclose(ours.total, total, atol=1e-11)
    assert [float(part) for part in ours.parts.values()] == pytest.approx([loss.item() for loss in losses], abs=1e-11)
    assert list(ours.parts) == [f"mtp-{k}" for k in range(1, depth + 1)]
    parameters = [p for _, p in sorted(model.named_parameters())]
    pairs = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours.total, total))
    for (name, _), one, other in zip(sorted(model.named_parameters()), *pairs, strict=True):
        assert (one is None or not one.any()) if other is None else torch.allclose(one, other, atol=1e-10), name


def test_it_predicts_the_token_after_next(trained, packed):
    """Only the last token's target matters to the last position of depth 1."""
    model, batch = trained(), packed(1, 6, 31)
    batch.targets[:, :-1] = IGNORE
    before = model.loss(batch, model.counts(batch)).total
    batch.targets[:, -1] = (batch.targets[:, -1] + 1) % 31
    assert not torch.allclose(before, model.loss(batch, model.counts(batch)).total)
    assert model.counts(batch)["mtp"].tolist() == [1]
    batch.targets[:, -1] = IGNORE
    batch.targets[:, 0] = 3
    assert model.counts(batch)["mtp"].tolist() == [0], "the first target is the main model's alone"


def test_the_two_hidden_states_differ(trained, packed):
    batch = packed(2, 6, 31)
    losses = [model.loss(batch, model.counts(batch)).total for model in (trained(), trained(hidden="pre-norm"))]
    assert not torch.allclose(*losses)


def test_embedding_and_head_are_the_models_own_and_learn_from_it(trained, packed):
    model, batch = trained(), packed(2, 6, 31)
    assert not [name for name in state(model) if "embed_tokens" in name and name.startswith("objectives")]
    model.loss(batch, model.counts(batch)).total.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


def test_its_balance_losses_and_loads_are_counted_with_the_models(tiny, build, packed):
    moe = {"use": "moe", "n_routed_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 9, "aux_loss_alpha": 0.1}
    data = tiny(ffn=moe | {"router": {"use": "sigmoid-group"}}, objective={"mtp": {"use": "mtp"}})
    model, batch = build(data), packed(2, 7, 31)
    loss = model.loss(batch, model.counts(batch))
    layers = [block.mlp for block in model.model.layers] + [model.objectives["mtp"].layers[0].block.mlp]
    assert [int(layer.load.sum()) for layer in layers] == [2 * 7 * 2, 2 * 7 * 2, 2 * 6 * 2]
    assert float(loss.parts["balance"]) > 3 * 0.1 * 0.9
    assert "objectives.mtp.layers.0.block.mlp.max_vio" in model.after_step(lambda load: load)


def test_inference_does_not_run_it(trained):
    model, ids = trained(), torch.randint(31, (1, 5))
    before = model(ids)
    for parameter in model.objectives.parameters():
        parameter.data.fill_(float("nan"))
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_on_the_hub_it_is_the_layers_after_the_last(tiny, layers, depth):
    objective = {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp", "depth": depth}}
    manifest = bestiary.resolve(tiny(layers=layers, objective=objective))
    added = [entry for entry in entries(manifest) if entry.part == "mtp"]
    for j in range(depth):
        names = {piece.hub for entry in added if f".layers.{j}." in entry.name for piece in entry.pieces}
        head = f"model.layers.{layers + j}."
        assert all(name.startswith(head) for name in names)
        assert {"enorm.weight", "eh_proj.weight", "shared_head.norm.weight", "shared_head.head.weight", "embed_tokens.weight"} <= {
            name.removeprefix(head) for name in names
        }
        assert f"{head}self_attn.kv_a_proj_with_mqa.weight" in names
        assert f"{head}mlp.experts.5.down_proj.weight" in names
        assert f"{head}mlp.gate.e_score_correction_bias" in names


def test_copies_on_the_hub_are_named_as_such_and_have_no_parameter(tiny):
    manifest = bestiary.resolve(tiny(objective={"mtp": {"use": "mtp"}}))
    copies = {entry.pieces[0].hub: entry.weight.duplicate_of for entry in entries(manifest) if entry.weight.duplicate_of}
    assert copies == {
        "model.layers.2.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.2.shared_head.head.weight": "lm_head.weight",
    }
    assert not any(entry.weight.duplicate_of for entry in own_entries(manifest).values())


def test_under_a_tied_embedding_both_copies_are_copies_of_it(tiny):
    manifest = bestiary.resolve(tiny(model={"tie_word_embeddings": True}, objective={"mtp": {"use": "mtp"}}))
    assert {entry.weight.duplicate_of for entry in entries(manifest) if entry.weight.duplicate_of} == {"model.embed_tokens.weight"}


def test_it_is_built_like_the_last_layer(tiny, build):
    data = tiny("mla", "dense", layers=3, objective={"mtp": {"use": "mtp"}})
    data["block"]["at"] = {"-1": {"ffn": {"use": "moe", "n_routed_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 5}}}
    data["block"]["at"]["-1"]["ffn"]["router"] = {"use": "softmax-topk"}
    block = build(data).objectives["mtp"].layers[0].block
    assert type(block.mlp).__name__ == "MixtureOfExperts"


@pytest.mark.parametrize("length", [1, 2])
def test_sequences_that_are_too_short_for_a_depth_add_nothing(trained, packed, length):
    model, batch = trained(depth=2), packed(2, length, 31)
    loss = model.loss(batch, model.counts(batch))
    assert loss.total.isfinite()
    assert float(loss.parts["mtp-2"]) == 0
