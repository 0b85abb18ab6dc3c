"""The C++ kernels of FP8 on a CPU compute what torch defines, bit by bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.native import why_not
from bestiary.plugins.fp8 import codes
from bestiary.plugins.fp8.backends import emulation
from bestiary.plugins.fp8.quantize import Quantised, Rule, quantise

pytestmark = pytest.mark.skipif(bool(why_not()), reason="needs a C++ compiler")
TILES = [(1, 128), (128, 1), (128, 128), (1, 5), (3, 300)]


def same(found: Quantised | None, wanted: Quantised) -> bool:
    return (
        found is not None
        and torch.equal(found.codes.view(torch.uint8), wanted.codes.view(torch.uint8))
        and torch.equal(found.scale, wanted.scale)
        and found.tile == wanted.tile
    )


@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 140),
    st.integers(1, 300),
    st.sampled_from(TILES),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1e-4, 2.0**-100]),
    st.integers(0, 2**31),
)
def test_codes_factors_and_numbers(leading, rows, columns, tile, dtype, floor, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-9, 6, columns)
    x = (torch.randn(*leading, rows, columns, generator=generator) * spread).to(dtype)
    x[..., : columns // 7] = 0
    wanted = quantise(x, tile, Rule(floor))
    assert same(codes.quantise(x, tile, Rule(floor)), wanted)
    for to in (torch.float32, torch.bfloat16):
        assert torch.equal(codes.values(wanted, to), wanted.values(to))
        assert torch.equal(codes.values(wanted.T, to), wanted.T.values(to))


def test_every_code_is_decoded_and_found_again():
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    q = Quantised(every, torch.tensor([[0.3]]), (1, 256))
    assert torch.equal(codes.values(q, torch.float32).nan_to_num(7), q.values().nan_to_num(7))
    numbers = every.float().nan_to_num(0)
    midpoints = (numbers.sort().values[:, 1:] + numbers.sort().values[:, :-1]) / 2
    for x in (numbers, midpoints, midpoints.nextafter(torch.tensor(1e9)), torch.tensor([[448.0, 1e-30, 2.0**-10, 3 * 2.0**-10]])):
        x = torch.cat((torch.full((1, 1), 448.0), x), dim=1)
        assert same(codes.quantise(x, (1, 999), Rule()), quantise(x, (1, 999), Rule()))


@pytest.mark.parametrize("amax", [448.0, 447.9, 448.0001, 7.0, 7.0000005, 3.3e38, 1e-4, 2.0**-92 * 7])
def test_factors_beside_powers_of_two(amax):
    x = torch.tensor([[amax, -amax / 3]])
    assert same(codes.quantise(x, (1, 2), Rule(2.0**-100)), quantise(x, (1, 2), Rule(2.0**-100)))


@pytest.mark.parametrize("rule", [Rule(power_of_two=False), Rule(format="e5m2"), Rule(convention="te"), Rule(1e-36)], ids=str)
def test_what_the_kernels_do_not_cover_is_left_to_torch(rule):
    x = torch.randn(5, 130)
    assert codes.quantise(x, (1, 128), rule) is None
    assert same(emulation.Emulation().quantise(x, (1, 128), rule), quantise(x, (1, 128), rule))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_tile_with_no_number_becomes_nan_and_others_do_not(bad):
    x = torch.randn(3, 256)
    x[1, 200] = bad
    found = emulation.Emulation().quantise(x, (1, 128), Rule())
    spoilt = found.values().isnan()
    assert spoilt[1, 128:].all() and spoilt.sum() == 128


@pytest.mark.parametrize("promote", [True, False])
def test_hoppers_sums(monkeypatch, promote):
    """Equal to those in torch up to the order of 32 products, whose sum is cut to 13 bits in both."""
    a, b = torch.randn(7, 1000), torch.randn(70, 1000)
    found = emulation.hopper(a, b, promote=promote).double()
    monkeypatch.setattr(codes, "hopper", lambda *_, **__: None)
    defined, exact = emulation.hopper(a, b, promote=promote).double(), a.double() @ b.double().T
    error = (defined - exact).norm()
    assert (found - defined).norm() < error / 5
    assert error * 0.9 < (found - exact).norm() < error * 1.1
