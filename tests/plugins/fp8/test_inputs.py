"""What enters FP8 layers: SwiGLU's inputs, of which codes are kept, and tensors that several layers read."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bestiary.core.layers.grouped import GroupedLinear
from bestiary.core.layers.linear import Linear
from bestiary.core.layers.swiglu import silu_product, swiglu
from bestiary.plugins.fp8.backends.emulation import Emulation
from bestiary.plugins.fp8.grouped import FP8GroupedLinear
from bestiary.plugins.fp8.linear import FP8Linear
from bestiary.plugins.fp8.options import FP8Options
from bestiary.plugins.fp8.recipe import Recipe

SIZES = [3, 0, 50, 7]


def layers(**options: Any) -> tuple[Recipe, FP8Linear, FP8GroupedLinear]:
    recipe = Recipe(FP8Options(**options))
    dense, experts = FP8Linear(200, 36, recipe), FP8GroupedLinear(4, 200, 36, recipe)
    for made in (dense, experts):
        torch.nn.init.normal_(made.weight, std=0.1)
    return recipe, dense, experts


def gradients(y: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    return [y, *torch.autograd.grad(y, [*inputs, weight], torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))]


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape).mul(3).bfloat16().requires_grad_() for shape in shapes]


@pytest.mark.parametrize("options", [{}, {"saved_swiglu": "bf16"}, {"saved_input": "bf16"}, {"scales": "fp32"}, {"activations": "row"}])
def test_swiglu_before_a_layer_is_swiglu_and_the_layer(options: dict[str, str]) -> None:
    """Against autograd's own composition, where hooks turn what SwiGLU's two formulas save into codes: equal to the last bit.

    The one exception is the gradient of routing weights, for which SwiGLU's result is computed again and not kept as codes, too.
    """
    recipe, dense, experts = layers(**options)

    def pack(x: Tensor) -> Tensor:
        plain = options.get("saved_swiglu") == "bf16" or x.shape[-1] == 1
        return x if plain else recipe.activation(x.reshape(-1, x.shape[-1])).values(torch.bfloat16).view(x.shape)

    gate, up = leaves((2, 5, 200), (2, 5, 200))
    found = gradients(dense.gated(gate, up), [gate, up], dense.weight)
    with saved_tensors_hooks(pack, lambda x: x):
        hidden = silu_product(gate, up)
    for ours, theirs in zip(found, gradients(dense(hidden), [gate, up], dense.weight), strict=True):
        assert torch.equal(ours, theirs)

    gate_up, weights = leaves((sum(SIZES), 400), (sum(SIZES), 1))
    found = gradients(experts.gated(gate_up, weights, torch.tensor(SIZES)), [gate_up, weights], experts.weight)
    with saved_tensors_hooks(pack, lambda x: x):
        hidden = swiglu(gate_up) * weights
    right = gradients(experts(hidden, torch.tensor(SIZES)), [gate_up, weights], experts.weight)
    assert [torch.equal(a, b) for a, b in zip(found, right, strict=True)] == [True, True, options.get("saved_swiglu") == "bf16", True]
    assert (found[2] - right[2]).norm() < 0.1 * right[2].norm()


def test_plain_layers_take_the_same_call() -> None:
    dense, experts = Linear(200, 36), GroupedLinear(4, 200, 36)
    for made in (dense, experts):
        torch.nn.init.normal_(made.weight)
    gate, up, gate_up, weights = torch.randn(5, 200), torch.randn(5, 200), torch.randn(60, 400), torch.rand(60, 1)
    assert torch.equal(dense.gated(gate, up), dense(silu_product(gate, up)))
    counts = torch.tensor(SIZES)
    assert torch.equal(experts.gated(gate_up, weights, counts), experts(swiglu(gate_up) * weights, counts))


def test_swiglu_keeps_codes() -> None:
    """Three bytes for each number of the result: codes of gate, of up, and of the result, which the weight gradient reads."""
    held = []
    for saved in ("fp8", "bf16"):
        _, _, experts = layers(saved_swiglu=saved)
        gate_up, weights = leaves((600, 400), (600, 1))
        with saved_tensors_hooks(lambda x: held.append(x) or x, lambda x: x):
            experts.gated(gate_up, weights, torch.tensor([600, 0, 0, 0]))
        of_rows = sum(t.nbytes for t in held if t.shape[0] == 600)
        assert of_rows < (3.3 if saved == "fp8" else 5.3) * 600 * 200
        held.clear()


def test_two_layers_quantise_what_both_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, first, _ = layers()
    second = FP8Linear(200, 8, recipe)
    torch.nn.init.normal_(second.weight)
    shapes: list[tuple[int, ...]] = []
    quantise = Emulation.quantise
    monkeypatch.setattr(Emulation, "quantise", lambda self, x, *rest: shapes.append(tuple(x.shape)) or quantise(self, x, *rest))
    x = torch.randn(3, 4, 200).bfloat16()
    before = first(x), second(x)
    assert shapes.count((12, 200)) == 1
    assert torch.equal(second(x.clone()), before[1]) and shapes.count((12, 200)) == 2
    with torch.no_grad():
        x.neg_()
    assert torch.equal(first(x), -before[0]) and shapes.count((12, 200)) == 3, "written to since"
    with torch.inference_mode():
        still = torch.randn(12, 200).bfloat16()
        assert torch.equal(first(still), first(still)) and shapes.count((12, 200)) == 5, "torch does not count writes here"


def test_codes_live_no_longer_than_their_tensor() -> None:
    recipe, _, _ = layers()
    x = torch.randn(4, 200).bfloat16()
    codes = weakref.ref(recipe.activation(x).codes)
    assert codes() is not None
    del x
    gc.collect()
    assert codes() is None
