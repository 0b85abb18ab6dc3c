"""Blockwise FP8 against its definition, block by block in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.core.blocks import decode_e4m3, dequantise_blocks, quantise_blocks, round_up_to_power_of_two

CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
"""Every number of E4M3; two of them are NaN."""


def nearest(values: torch.Tensor) -> torch.Tensor:
    """The closest numbers of E4M3, ties to the even code, from a table of all of them."""
    table = CODES[~CODES.float().isnan()].double()
    table, order = table.sort(stable=True)
    table = table.unique()
    bits = {float(v): int(b) for b, v in enumerate(CODES.double().tolist()) if not math.isnan(v)}
    out = []
    for value in values.flatten().tolist():
        distance = (table - value).abs()
        best = [float(v) for v in table[distance == distance.min()]]
        out.append(min(best, key=lambda v: bits[v] & 1))
    del order
    return torch.tensor(out, dtype=torch.float64).view(values.shape)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 19),
    columns=st.integers(1, 21),
    block=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-9, 1e-3, 1.0, 1e4]),
    power=st.booleans(),
)
def test_definition(rows: int, columns: int, block: tuple[int, int], seed: int, size: float, power: bool) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    codes, scale = quantise_blocks(weight, block, power_of_two=power)
    assert codes.shape == weight.shape and scale.shape == (math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            place = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            amax = max(float(weight[place].abs().max()), 1e-4)
            expected = torch.tensor(amax, dtype=torch.float32) / 448
            if power:
                expected = torch.tensor(2.0 ** math.ceil(math.log2(float(expected))))
            assert scale[i, j] == expected
            scaled = (weight[place] / expected).clamp(-448, 448)
            assert torch.equal(codes[place].double(), nearest(scaled.double()))
            back = dequantise_blocks(codes, scale, block)[place]
            assert torch.equal(back, codes[place].float() * scale[i, j])


@pytest.mark.parametrize("power", [False, True])
def test_every_code_survives(power: bool) -> None:
    numbers = CODES[~CODES.float().isnan()].float()[:, None].repeat(1, 3)
    codes, scale = quantise_blocks(numbers, (254, 1), power_of_two=power)
    assert torch.equal(scale, torch.ones(1, 3)) and torch.equal(codes.float(), numbers)


def test_zero_blocks_stacks_and_types() -> None:
    weight = torch.zeros(3, 5, 7, dtype=torch.bfloat16)
    weight[1] = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    codes, scale = quantise_blocks(weight, (2, 4))
    assert scale.shape == (3, 3, 2) and not codes[0].float().any() and (scale > 0).all()
    one, its = quantise_blocks(weight[1], (2, 4))
    assert torch.equal(codes[1].float(), one.float()) and torch.equal(scale[1], its)
    assert dequantise_blocks(codes, scale, (2, 4), torch.bfloat16).dtype == torch.bfloat16


def test_powers_of_two() -> None:
    exact = torch.tensor([2.0**n for n in range(-100, 100)])
    assert torch.equal(round_up_to_power_of_two(exact), exact)
    assert torch.equal(round_up_to_power_of_two(torch.nextafter(exact, torch.tensor(0.0))), exact)
    assert torch.equal(round_up_to_power_of_two(torch.nextafter(exact, torch.tensor(float("inf")))), exact * 2)
    weight = torch.randn(33, 40, generator=torch.Generator().manual_seed(3)) * 7
    first, scale = quantise_blocks(weight, (16, 16), power_of_two=True)
    numbers = dequantise_blocks(first, scale, (16, 16))
    assert torch.equal(dequantise_blocks(*quantise_blocks(numbers, (16, 16), power_of_two=True), (16, 16)), numbers)


def test_every_code_decodes_as_torch_does() -> None:
    expected = CODES.float()
    assert torch.equal(decode_e4m3(CODES).nan_to_num(1e9), expected.nan_to_num(1e9)) and int(decode_e4m3(CODES).isnan().sum()) == 2
    finite = CODES[~expected.isnan()]
    assert torch.equal(decode_e4m3(finite), finite.float())
    assert torch.equal(decode_e4m3(finite[:252].view(12, 21).T), finite[:252].view(12, 21).T.float())  # not contiguous
    assert decode_e4m3(finite[:0].view(0, 3)).shape == (0, 3)
