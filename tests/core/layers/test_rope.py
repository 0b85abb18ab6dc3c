"""Rotary position embedding: against transformers, against complex numbers, and DeepSeek's constants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import bestiary
from bestiary.core.contracts import Context
from bestiary.core.layers.rope import RopeOptions, frequencies, magnitude, rotate, softmax_multiplier, tables, yarn_mscale, yarn_range

FACTORS, ORIGINALS, THETAS = st.floats(1.0, 64.0), st.integers(16, 8192), st.floats(50.0, 1e6)
TEMPERATURE = st.none() | st.floats(0.1, 2.0)
SCALINGS = {
    "linear": {"factor": FACTORS},
    "llama3": {
        "factor": FACTORS,
        "low_freq_factor": st.floats(0.5, 2.0),
        "high_freq_factor": st.floats(2.5, 8.0),
        "original_max_position_embeddings": ORIGINALS,
    },
    "yarn": {
        "factor": FACTORS,
        "original_max_position_embeddings": ORIGINALS,
        "beta_fast": st.floats(4.0, 64.0),
        "beta_slow": st.floats(0.5, 3.0),
        "mscale": TEMPERATURE,
        "mscale_all_dim": TEMPERATURE,
        "attention_factor": st.none() | st.floats(0.5, 2.0),
        "truncate": st.booleans(),
    },
}


def reference(options, dim):
    """transformers' frequencies and magnitude."""
    scaling = options.scaling
    parameters = {"rope_type": "default", "rope_theta": options.theta}
    if scaling is None:
        return [options.theta ** (-2 * i / dim) for i in range(dim // 2)], 1.0
    parameters |= {key: value for key, value in scaling.table().items() if key != "type"} | {"rope_type": scaling.type}
    config = LlamaConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim, max_position_embeddings=8192, rope_parameters=parameters)
    frequency, factor = ROPE_INIT_FUNCTIONS[scaling.type](config, torch.device("cpu"))
    return frequency.tolist(), factor


@pytest.mark.parametrize("kind", [None, *SCALINGS])
@given(data=st.data(), theta=THETAS, dim=st.integers(1, 64).map(lambda half: 2 * half))
def test_frequencies_and_magnitude_equal_those_of_transformers(kind, data, theta, dim):
    scaling = None if kind is None else {"type": kind, **data.draw(st.fixed_dictionaries(SCALINGS[kind]))}
    options = RopeOptions(theta=theta, scaling=scaling)
    if kind == "yarn":
        low, high = yarn_range(theta, options.scaling, dim)
        assume(abs(high - low) > 0.01)  # a ramp of no width is a division by almost nothing in both
    expected, factor = reference(options, dim)
    assert frequencies(options, dim) == pytest.approx(expected, rel=2e-5)
    assert magnitude(options) == pytest.approx(factor, rel=1e-6)


V3 = bestiary.resolve("deepseek-v3").layers[0].attention.options
V2 = bestiary.resolve("deepseek-v2").layers[0].attention.options
K2 = bestiary.resolve("kimi-k2").layers[0].attention.options


def softmax_scale(options):
    return (options.qk_nope_head_dim + options.qk_rope_head_dim) ** -0.5 * softmax_multiplier(options.rope)


@pytest.mark.parametrize(("options", "low", "high"), [(V3, 10, 23), (K2, 19, 20)])
def test_yarn_passes_between_the_published_pairs(options, low, high):
    assert yarn_range(options.rope.theta, options.rope.scaling, options.qk_rope_head_dim) == (low, high)


@pytest.mark.parametrize(("options", "scale"), [(V3, 0.1352338), (V2, 0.1147214), (K2, 0.1308608)])
def test_the_softmax_scale_holds_yarns_temperature_squared(options, scale):
    assert softmax_scale(options) == pytest.approx(scale, abs=5e-8)
    assert magnitude(options.rope) == 1.0


def test_without_yarn_the_softmax_scale_is_the_plain_one():
    plain = V3.model_copy(update={"rope": RopeOptions()})
    assert softmax_scale(plain) == pytest.approx(0.0721688, abs=5e-8)


def test_deepseek_v3_keeps_fast_pairs_and_slows_the_last_by_its_factor():
    stretched, base = frequencies(V3.rope, 64), frequencies(RopeOptions(), 64)
    assert stretched[:11] == pytest.approx(base[:11], rel=1e-12)
    assert stretched[23:] == pytest.approx([f / 40 for f in base[23:]], rel=1e-12)
    assert all(b / 40 < s < b for s, b in zip(stretched[11:23], base[11:23], strict=True))


def test_a_factor_of_one_has_no_temperature():
    assert yarn_mscale(1.0, 0.707) == 1.0
    assert yarn_mscale(40.0, 0.707) == pytest.approx(1.260804, abs=1e-6)


def turned(x, angle):
    """Neighbouring pairs as complex numbers, turned: `[B, S, H, d]` and `[S, d / 2]`."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 9))
def test_interleaved_rotation_is_complex_multiplication(batch, length, heads, half):
    x = torch.randn(batch, length, heads, 2 * half, dtype=torch.float64)
    angle = torch.randn(length, half, dtype=torch.float64)
    table = (angle.cos()[None], angle.sin()[None])
    assert torch.allclose(rotate(x, table, interleaved=True), turned(x, angle), atol=1e-14)
    assert torch.allclose(rotate(x[:, :, 0], table, interleaved=True), turned(x, angle)[:, :, 0], atol=1e-14)


@given(st.integers(1, 9), st.integers(1, 9))
def test_half_split_rotation_is_interleaved_rotation_of_permuted_weights(length, half):
    x = torch.randn(1, length, 2, 2 * half, dtype=torch.float64)
    angle = torch.randn(length, half, dtype=torch.float64)
    table = (angle.cos()[None], angle.sin()[None])
    order = [*range(0, 2 * half, 2), *range(1, 2 * half, 2)]
    assert torch.equal(rotate(x[..., order], table, interleaved=False), rotate(x, table, interleaved=True)[..., order])


def test_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    options = RopeOptions(theta=100.0)

    def score(i, j):
        turn = [rotate(t, tables(options, 8, Context(torch.tensor([[p]]))), interleaved=True) for t, p in ((q, i), (k, j))]
        return float((turn[0] * turn[1]).sum())

    assert score(7, 4) == pytest.approx(score(103, 100), abs=1e-4)
    assert score(7, 4) != pytest.approx(score(7, 5), abs=1e-2)


def test_tables_are_fp32_one_per_pass_and_hold_the_magnitude():
    options = RopeOptions(scaling={"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64})
    context = Context(torch.tensor([[0, 3, 1000]]))
    cos, sin = tables(options, 6, context)
    assert tables(options, 6, context)[0] is cos
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == (1, 3, 3)
    assert torch.allclose(cos.square() + sin.square(), torch.full((1, 3, 3), (0.1 * math.log(8) + 1) ** 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_input_is_kept(dtype):
    table = (torch.ones(1, 2, 2), torch.zeros(1, 2, 2))
    x = torch.randn(1, 2, 1, 4, dtype=dtype)
    assert torch.equal(rotate(x, table, interleaved=True), x)
