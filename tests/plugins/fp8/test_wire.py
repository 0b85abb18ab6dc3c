"""Rows that travel as codes: what arrives is what a layer would have made of them anyway."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bestiary
from bestiary.core.exchange import coded_gradient
from bestiary.plugins.fp8.grouped import FP8GroupedLinear
from bestiary.plugins.fp8.options import FP8Options
from bestiary.plugins.fp8.recipe import Recipe


@given(
    st.sampled_from(["deepseek-v3", "deepgemm", "te"]),
    st.tuples(st.integers(0, 5), st.integers(1, 300)),
    st.integers(-40, 12),
    st.integers(0, 10**6),
)
def test_a_layer_makes_the_same_numbers_of_what_arrives(preset, shape, exponent, seed):
    recipe = Recipe(FP8Options(preset=preset, dispatched_gradients="fp8"))
    spread = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    rows = (spread * torch.linspace(-6, 6, shape[1]).exp2()).bfloat16()
    for codec, quantise in ((recipe.wire.inputs, recipe.activation), (recipe.wire.gradients, recipe.gradient)):
        codes = codec.encode(rows)
        arrived = codec.decode(codes, shape[1], torch.bfloat16)
        assert codes.dtype == torch.uint8
        assert codes.shape == (shape[0], shape[1] + 4 * -(-shape[1] // 128))
        assert torch.equal(quantise(arrived).values(), quantise(rows).values())
        assert torch.equal(arrived.float(), quantise(rows).values())


def test_what_is_not_finite_stays_visible():
    codec = Recipe(FP8Options()).wire.inputs
    rows = torch.ones(2, 200, dtype=torch.bfloat16)
    rows[1, 5] = torch.inf
    arrived = codec.decode(codec.encode(rows), 200, torch.bfloat16)
    assert arrived[0].eq(1).all()
    assert arrived[1, :128].isnan().all()
    assert arrived[1, 128:].eq(1).all()


def test_a_gradient_is_rounded_as_if_it_had_travelled():
    recipe = Recipe(FP8Options(dispatched_gradients="fp8"))
    x, grad = torch.zeros(3, 130, requires_grad=True), torch.randn(3, 130).bfloat16().float()
    coded_gradient(x, recipe.wire.gradients).backward(grad)
    assert torch.equal(x.grad, recipe.gradient(grad).values())
    assert not torch.equal(x.grad, grad)


@pytest.mark.parametrize("options", [{"scales": "fp32"}, {"activations": "row"}, {"saved_input": "bf16"}])
def test_rows_travel_as_they_are_where_codes_would_lose_something(options):
    assert FP8GroupedLinear(2, 3, 4, Recipe(FP8Options())).wire.inputs is not None
    assert FP8GroupedLinear(2, 3, 4, Recipe(FP8Options(**options))).wire.inputs is None


def test_gradients_travel_as_codes_only_if_asked_for_and_only_if_nothing_is_lost():
    assert Recipe(FP8Options()).wire.gradients is None
    asked = {"precision.use": "fp8", "precision.dispatched_gradients": "fp8"}
    plain = bestiary.resolve("deepseek-v3-nano", set={"precision.use": "fp8"})
    assert bestiary.resolve("deepseek-v3-nano", set=asked).digest != plain.digest
    assert "dispatched_gradients" not in plain.precision.table()
    with pytest.raises(bestiary.BestiaryError, match=r"Set gradients = 'tile' and scales = 'power-of-two'"):
        bestiary.resolve("deepseek-v3-nano", set=asked | {"precision.gradients": "block"})
