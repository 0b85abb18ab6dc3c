"""E5M6 over all of its codes, and what it changes in training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bestiary
from bestiary.core.manifest import Manifest
from bestiary.core.weights import After
from bestiary.plugins.baseline.precision import Native
from bestiary.plugins.fp8.e5m6 import LARGEST, decode, encode, keep_e5m6, pack, unpack
from bestiary.plugins.fp8.linear import FP8Linear
from bestiary.plugins.fp8.options import FP8Options
from bestiary.plugins.fp8.recipe import Recipe

CODES = torch.arange(4096, dtype=torch.int32)
FINITE = CODES[(CODES >> 6 & 31) < 31]
POSITIVE = FINITE[FINITE < 2048]
"""Codes of zero and of all positive numbers, in the order of the numbers."""


def number(code: int) -> float:
    """The definition: sign, exponent with bias 15, mantissa of six bits."""
    sign, exponent, mantissa = (-1.0) ** (code >> 11), code >> 6 & 31, code & 63
    if exponent == 31:
        return math.nan if mantissa else sign * math.inf
    return sign * (2.0 ** (exponent - 15) * (1 + mantissa / 64) if exponent else 2.0**-14 * mantissa / 64)


def test_every_code_is_the_number_of_the_definition() -> None:
    expected = torch.tensor([number(code) for code in CODES.tolist()])
    assert torch.allclose(decode(CODES), expected, rtol=0, atol=0, equal_nan=True)
    assert decode(POSITIVE).max() == LARGEST and (decode(POSITIVE).diff() > 0).all()


def test_every_number_is_its_own_code() -> None:
    assert torch.equal(encode(decode(FINITE)), FINITE)
    assert torch.equal(unpack(pack(CODES.view(2, -1))), CODES.view(2, -1))
    assert pack(CODES.view(2, -1)).nbytes == 1.5 * len(CODES)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_lies_between_two_numbers_goes_to_the_nearer_and_from_the_middle_to_the_even_one(sign: float) -> None:
    low, high = POSITIVE[:-1], POSITIVE[1:]
    middle = (decode(low) + decode(high)) / 2
    even, bit = torch.where(low % 2 == 0, low, high), (sign < 0) << 11
    assert torch.equal(encode(sign * middle), even | bit)
    inf, zero = torch.tensor(math.inf), torch.tensor(0.0)
    assert torch.equal(encode(sign * middle.nextafter(zero)), low | bit) and torch.equal(encode(sign * middle.nextafter(inf)), high | bit)


def test_beyond_the_largest_number() -> None:
    x = torch.tensor([65024.0, 65100.0, 65536.0, 1e30, math.inf])
    assert torch.equal(decode(encode(x)), torch.full((5,), LARGEST)) and torch.equal(decode(encode(-x)), torch.full((5,), -LARGEST))
    assert decode(encode(torch.tensor([math.nan, -math.nan]))).isnan().all()


@pytest.mark.parametrize("columns", [1, 5, 128, 130, 257])
def test_a_matrix(columns: int) -> None:
    x = (torch.randn(9, columns) * 10.0 ** torch.randint(-4, 4, (9, 1))).bfloat16()
    kept = keep_e5m6(x, 1e-4)
    assert kept.data.shape == (9, 3 * -(-columns // 2)) and kept.scale.shape == (9, -(-columns // 128))
    assert (kept.scale.log2() % 1 == 0).all(), "factors are powers of two"
    values = kept.values(torch.float32)
    assert torch.equal(kept.values(torch.bfloat16).float(), values), "bf16 holds every kept number"
    assert (values - x.float()).abs().max() <= 2**-7 * x.float().abs().max()
    assert torch.equal(keep_e5m6(values, 1e-4).values(torch.float32), values), "kept again nothing changes"


def test_zeros_and_what_is_no_number() -> None:
    x = torch.randn(3, 256)
    x[0], x[1, 3] = 0.0, math.inf
    values = keep_e5m6(x, 1e-4).values(torch.float32)
    assert not values[0].any() and values[1, :128].isnan().all() and values[1, 128:].isfinite().all() and values[2].isfinite().all()


def run(saved: Any, x: Tensor, dy: Tensor, weight: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor, int]:
    """Output, gradients, and bytes that were kept of the input."""
    held: list[Tensor] = []
    layer, inputs = FP8Linear(x.shape[1], dy.shape[1], Recipe(FP8Options(**options)), saved=saved), x.clone().requires_grad_()
    layer.weight.data.copy_(weight)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        y = layer(inputs)
    y.backward(dy)
    assert inputs.grad is not None and layer.weight.grad is not None
    return (
        y,
        inputs.grad,
        layer.weight.grad,
        sum(t.nbytes for t in held) - weight.numel() - 4 * math.prod(-(-n // 128) for n in weight.shape),
    )


@pytest.mark.parametrize("scales", ["power-of-two", "fp32"])
def test_the_weight_gradient_comes_from_twelve_bits_and_nothing_else_changes(scales: str) -> None:
    torch.manual_seed(0)  # the difference between two errors varies with the numbers, by a tenth
    x, dy, weight = torch.randn(200, 384).bfloat16(), torch.randn(200, 130).bfloat16(), torch.randn(130, 384)
    plain, coded, kept = (run(saved, x, dy, weight, scales=scales) for saved in ("bf16", "fp8", "e5m6"))
    assert torch.equal(kept[0], plain[0]) and torch.equal(kept[1], plain[1])
    exact = dy.double().T @ x.double()
    errors = [float((found[2] - exact).norm() / exact.norm()) for found in (plain, coded, kept)]
    assert not torch.equal(kept[2], plain[2]) and abs(errors[2] - errors[0]) < 0.001
    assert scales == "power-of-two" or errors[1] > errors[2] + 0.005, "E4M3 along channels rounds once more"
    assert (plain[3], kept[3]) == (2 * x.numel(), 1.5 * x.numel() + 4 * 200 * 3)


def test_only_the_projection_after_attention_is_kept_so() -> None:
    set = {"precision.use": "fp8", "precision.saved_attention": "e5m6"}
    for use in ({}, {"block.attention.use": "gqa"}):
        model = bestiary.create_model("deepseek-v3-nano", set={**set, **use}, device="meta")
        kept = {name for name, module in model.named_modules() if isinstance(module, FP8Linear) and module.saved == "e5m6"}
        assert kept == {name for name, _ in model.named_modules() if name.endswith("self_attn.o_proj")} and len(kept) > 1


class Listening(Native):
    """Notes what layers say of their inputs."""

    heard: list[str]

    def linear(self, d_in: int, d_out: int, *, role: Any, bias: bool = False, after: After = "") -> Any:
        self.heard.append(after)
        return super().linear(d_in, d_out, role=role, bias=bias)


@pytest.mark.parametrize("attention", bestiary.list_components("attention"), ids=str)
def test_every_attention_component_says_which_projection_it_is(attention: Any) -> None:
    base = {"mla": {}, "gqa": {"block.attention.use": "gqa"}}
    manifest: Manifest = bestiary.resolve("deepseek-v3-nano", set=base[getattr(attention, "name", attention)])
    precision = Listening(compute=torch.float32, storage=torch.float32)
    precision.heard = []
    with torch.device("meta"):
        manifest.layers[0].attention.build(replace(manifest.site, precision=precision).at(0))
    assert precision.heard.count("attention") == 1 and precision.heard[-1] == "attention"


def test_the_digest_changes_with_it_alone() -> None:
    plain = bestiary.resolve("deepseek-v3-nano", set={"precision.use": "fp8"})
    assert "saved_attention" not in plain.precision.table()
    assert bestiary.resolve("deepseek-v3-nano", set={"precision.use": "fp8", "precision.saved_attention": "e5m6"}).digest != plain.digest
