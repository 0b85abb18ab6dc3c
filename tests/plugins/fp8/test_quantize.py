"""FP8 quantisation against its definition, tile by tile in float64, and against the conventions of others."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.core.blocks import quantise_blocks
from bestiary.plugins.fp8.quantize import FORMATS, Rule, quantise

CODES = torch.arange(256, dtype=torch.uint8)
TILES = [(1, 128), (128, 1), (128, 128), (1, None), (None, 1), (None, None), (5, 7)]


def table(format: str) -> list[float]:
    """All finite numbers of a format, by rising magnitude; the code of the even one of two neighbours has an even place."""
    values = CODES.view(FORMATS[format]).double()
    return sorted({abs(v) for v in values.tolist() if math.isfinite(v)})


def nearest(value: float, numbers: list[float]) -> float:
    magnitude = min(abs(value), numbers[-1])
    place = min(range(len(numbers)), key=lambda i: (abs(numbers[i] - magnitude), i % 2))
    return math.copysign(numbers[place], value)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 11), st.integers(1, 19), st.sampled_from(TILES), st.booleans(), st.sampled_from(["e4m3", "e5m2"]), st.integers(0, 999)
)
def test_every_number_is_the_nearest(
    rows: int, columns: int, tile: tuple[int | None, int | None], power: bool, format: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * 10.0 ** torch.randint(-6, 4, (rows, 1), generator=generator)
    q = quantise(x, tile, Rule(floor=1e-3, power_of_two=power, format=format))  # type: ignore[arg-type]
    r, c = tile[0] or rows, tile[1] or columns
    assert q.codes.shape == x.shape and q.scale.shape == (math.ceil(rows / r), math.ceil(columns / c))
    numbers, largest = table(format), torch.finfo(FORMATS[format]).max
    for i in range(rows):
        for j in range(columns):
            part = x[i // r * r : (i // r + 1) * r, j // c * c : (j // c + 1) * c]
            s = q.scale[i // r, j // c].item()
            exact = max(float(part.abs().amax()), 1e-3) / largest
            if power:
                assert s == 2.0 ** math.ceil(math.log2(exact)) or abs(math.log2(exact) - round(math.log2(exact))) < 1e-6
            else:
                assert s == pytest.approx(exact, rel=1e-7)
            assert q.codes[i, j].double().item() == nearest(torch.tensor(x[i, j].item() / s).float().item(), numbers)


@pytest.mark.parametrize("power", [False, True])
def test_weights_are_those_of_checkpoints(power: bool) -> None:
    weight = torch.randn(300, 200)
    q = quantise(weight, (128, 128), Rule(power_of_two=power))
    codes, scale = quantise_blocks(weight, power_of_two=power)
    assert torch.equal(q.codes.view(torch.uint8), codes.view(torch.uint8)) and torch.equal(q.scale, scale)


@pytest.mark.parametrize("shape", [(3, 256), (2, 130, 140), (1, 1), (0, 128), (256, 3)])
@pytest.mark.parametrize("tile", TILES)
def test_values_and_transpose(shape: tuple[int, ...], tile: tuple[int | None, int | None]) -> None:
    x = torch.randn(shape)
    q = quantise(x, tile, Rule())
    again = q.values()
    assert again.shape == x.shape and torch.equal(q.T.values(), again.mT)
    assert torch.equal(q.values(torch.bfloat16).float(), again), "a code times a power of two is a bf16 number"
    if x.numel() > 10:
        assert (again - x).norm() <= 0.04 * x.norm()
    assert torch.equal(quantise(again, tile, Rule()).values(), again), "quantising again changes nothing"


def test_powers_of_two_do_not_depend_on_the_convention() -> None:
    x = torch.randn(64, 256).bfloat16()
    first, *others = (quantise(x, (1, 128), Rule(convention=name)) for name in ("deepseek-v3", "deepgemm", "te"))
    for other in others:
        assert torch.equal(first.codes.view(torch.uint8), other.codes.view(torch.uint8)) and torch.equal(first.scale, other.scale)


def test_conventions_with_fp32_factors() -> None:
    x = torch.randn(256, 256).bfloat16()
    amax = x.float().view(256, 2, 128).abs().amax(-1)
    division = quantise(x, (1, 128), Rule(power_of_two=False))
    reciprocal = quantise(x, (1, 128), Rule(power_of_two=False, convention="deepgemm"))
    multiplier = quantise(x, (1, 128), Rule(power_of_two=False, convention="te"))
    assert torch.equal(division.scale, amax / 448) and torch.equal(reciprocal.scale, amax / 448)
    assert torch.equal(multiplier.scale, 1 / (448 / amax))
    expected = (x.float().view(256, 2, 128) * (448 / amax)[..., None]).clamp(-448, 448).view(256, 256).to(torch.float8_e4m3fn)
    assert torch.equal(multiplier.codes.view(torch.uint8), expected.view(torch.uint8))
    differ = (division.codes.view(torch.uint8) != reciprocal.codes.view(torch.uint8)).float().mean()
    assert 0 < differ < 0.005, "the conventions differ where a quotient lies between two codes, and only there"


def test_presets_below_the_floor_and_where_else_they_differ() -> None:
    """`te` knows no floor; with powers of two that is all that tells the three apart, with fp32 factors `deepgemm` multiplies as well."""
    small = (torch.randn(8, 128) * 1e-10).bfloat16()
    for power in (True, False):
        division, reciprocal, multiplier = (
            quantise(small, (1, 128), Rule(power_of_two=power, convention=name)) for name in ("deepseek-v3", "deepgemm", "te")
        )
        assert torch.equal(division.scale, reciprocal.scale) and (multiplier.scale < division.scale).all()
        assert (division.values() == 0).float().mean() > 0.5 and (multiplier.values() == 0).float().mean() < 0.01
        assert not power or torch.equal(division.codes.view(torch.uint8), reciprocal.codes.view(torch.uint8))
    x = torch.randn(64, 256).bfloat16()
    reciprocal = quantise(x, (1, 128), Rule(power_of_two=False, convention="deepgemm"))
    scaled = x.float() * (1 / reciprocal.scale).repeat_interleave(128, 1)
    assert torch.equal(reciprocal.codes.view(torch.uint8), scaled.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8))


def test_zeros_and_small_gradients() -> None:
    zero = quantise(torch.zeros(2, 256), (1, 128), Rule())
    assert (zero.values() == 0).all() and (zero.scale > 0).all()
    assert torch.equal(quantise(torch.zeros(2, 8), (1, 8), Rule(power_of_two=False, convention="te")).scale, torch.ones(2, 1))
    small = torch.randn(8, 128) * 1e-10
    assert (quantise(small, (1, 128), Rule()).values() == 0).float().mean() > 0.9, "the published floor loses them"
    assert (quantise(small, (1, 128), Rule(floor=2.0**-100)).values() == 0).float().mean() < 0.01


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("convention", ["deepseek-v3", "deepgemm", "te"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_spoils_its_tile_and_no_other(bad: float, convention: str, power: bool) -> None:
    x = torch.randn(4, 256)
    x[1, 3] = bad
    values = quantise(x, (1, 128), Rule(power_of_two=power, convention=convention)).values()  # type: ignore[arg-type]
    assert values[1, :128].isnan().all()
    rest = torch.ones(4, 256, dtype=torch.bool)
    rest[1, :128] = False
    assert values[rest].isfinite().all()
