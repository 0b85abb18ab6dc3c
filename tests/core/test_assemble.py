"""From a manifest to a model: what is refused, what is allocated, and how it starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import bestiary
from bestiary.core.assemble import assemble, state
from bestiary.core.component import Component, Options
from bestiary.core.errors import BestiaryError
from bestiary.core.manifest import Layer
from bestiary.core.weights import Weight, linear


def with_ffn(manifest, component):
    """The manifest with another ffn component in every layer."""
    part = replace(manifest.layers[0].ffn, component=component, options=component.options())
    return replace(manifest, layers=tuple(Layer(layer.attention, part) for layer in manifest.layers))


class Square(nn.Module):
    def __init__(self, options, site, out=None, keep=True):
        super().__init__()
        self.proj = site.linear(site.hidden_size, site.hidden_size if out is None else out)
        self.register_buffer("seen", torch.zeros(3), persistent=keep)

    def forward(self, x, context):
        return self.proj(x)


def square(name="square", weights=None, **how):
    declared = weights or (lambda options, site: [*linear("proj", site.hidden_size, site.hidden_size), Weight("seen", (3,), "state")])
    return Component(name, Options, lambda options, site: Square(options, site, **how), declared)


def refused(manifest):
    with pytest.raises(BestiaryError) as caught:
        assemble(manifest, device="meta")
    return str(caught.value)


@pytest.fixture
def manifest(tiny):
    return bestiary.resolve(tiny())


def test_a_component_that_declares_what_it_builds_is_accepted(manifest):
    model = assemble(with_ffn(manifest, square()), device="meta")
    assert state(model)["model.layers.1.mlp.proj.weight"].shape == (14, 14)


def test_parameters_that_are_built_but_not_declared_are_named(manifest):
    message = refused(with_ffn(manifest, square(weights=lambda options, site: linear("proj", 14, 14))))
    assert "model.layers.0.mlp.seen: built as (3,), declared as nothing." in message
    assert message.endswith(
        "Make the component's `weights` list exactly the parameters and persistent buffers of the module that `build` makes."
    )


def test_parameters_that_are_declared_but_not_built_are_named(manifest):
    message = refused(with_ffn(manifest, square(keep=False)))
    assert "model.layers.1.mlp.seen: built as nothing, declared as (3,)." in message


def test_a_declared_shape_must_be_the_built_one(manifest):
    message = refused(with_ffn(manifest, square(weights=lambda options, site: [*linear("proj", 14, 15), Weight("seen", (3,))])))
    assert "model.layers.0.mlp.proj.weight: built as (14, 14), declared as (15, 14)." in message


def test_a_component_that_changes_the_shape_is_refused(manifest):
    message = refused(with_ffn(manifest, square("wide", out=15)))
    assert message.startswith(
        "layer 0, mlp: 'wide' turns (2, 4, 14) torch.bfloat16 into (2, 4, 15) torch.bfloat16; its slot must keep shape"
    )


def test_a_component_that_changes_the_dtype_is_refused(manifest):
    class Float(Square):
        def forward(self, x, context):
            return self.proj(x).float()

    message = refused(with_ffn(manifest, replace(square("float"), build=Float)))
    assert "'float' turns (2, 4, 14) torch.bfloat16 into (2, 4, 14) torch.float32" in message


def test_the_largest_model_is_built_on_meta_with_exactly_its_published_parameters():
    model = bestiary.create_model("deepseek-v3", device="meta")
    own = {name: tensor for name, tensor in state(model).items() if not name.startswith("objectives.")}
    assert sum(tensor.numel() for tensor in own.values()) == 671_026_419_200
    assert sum(t.numel() for name, t in state(model).items() if name not in own) == 11_610_068_224
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert own["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape == (576, 7168)
    assert own["model.layers.3.mlp.experts.gate_up_proj.weight"].shape == (256, 4096, 7168)


# How parameters start


def test_a_seed_gives_the_same_model_and_another_seed_another(tiny):
    one, same, other = (bestiary.create_model(tiny(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_parameters_that_two_variants_share_start_equally(tiny):
    base = bestiary.create_model(tiny("mla", "moe")).state_dict()
    variants = [tiny("gqa", "moe"), tiny("mla", "dense"), tiny("mla", "moe", layers=3), tiny(objective={"mtp": {"use": "mtp"}})]
    for data in variants:
        other = bestiary.create_model(data).state_dict()
        shared = [name for name in base if name in other and other[name].shape == base[name].shape]
        assert "model.embed_tokens.weight" in shared
        assert all(torch.equal(base[name], other[name]) for name in shared)


def test_matrices_are_normal_with_the_manifests_deviation_gains_one_and_biases_zero(tiny):
    own = bestiary.create_model(tiny(), set={"model.initializer_range": 0.3, "model.hidden_size": 64, "model.vocab_size": 999}).state_dict()
    embedding = own["model.embed_tokens.weight"]
    assert float(embedding.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(embedding.mean())) < 0.01
    assert own["model.norm.weight"].eq(1).all()
    assert own["model.layers.0.mlp.gate.e_score_correction_bias"].eq(0).all()


def test_a_tied_head_is_the_embedding(tiny, build):
    model = build(tiny(model={"tie_word_embeddings": True}))
    assert "lm_head.weight" not in model.state_dict()
    ids = torch.randint(31, (1, 4))
    assert torch.equal(model(ids), model.hidden(ids).normed @ model.model.embed_tokens.weight.T)


# Dtypes


def dtypes(model):
    return {tensor.dtype for tensor in state(model).values()}


def test_training_keeps_fp32_masters_and_computes_in_the_precisions_dtype(tiny):
    model = bestiary.create_model(tiny(precision={"use": "bf16"}))
    assert dtypes(model) == {torch.float32}
    assert model(torch.randint(31, (1, 4))).dtype == torch.bfloat16
    assert bestiary.create_model(tiny(precision={"use": "fp32"}))(torch.randint(31, (1, 4))).dtype == torch.float32


def test_a_dtype_asked_for_is_used_for_all_but_selection_biases(tiny):
    model = bestiary.create_model(tiny(), dtype=torch.bfloat16)
    wide = {name for name, tensor in state(model).items() if tensor.dtype != torch.bfloat16}
    assert wide == {f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in range(2)}
    assert dtypes(bestiary.create_model(tiny(), dtype=torch.float64)) == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_leaves_selection_biases_in_fp32_with_their_values(tiny, dtype):
    model = bestiary.create_model(tiny())
    gate = model.model.layers[0].mlp.gate
    gate.e_score_correction_bias.copy_(5 + 0.001 * torch.arange(6))
    before = gate.e_score_correction_bias.clone()
    model.to(dtype)
    assert gate.weight.dtype == dtype
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(gate.e_score_correction_bias, before)
    assert "model.layers.0.mlp.gate.e_score_correction_bias" in model.state_dict()
