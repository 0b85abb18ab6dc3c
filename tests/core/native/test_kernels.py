"""Decoding kernels against plain fp32 products, on awkward sizes, with and without the processor's bf16 instructions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import bestiary
from bestiary.core import native
from bestiary.core.native.linear import linear, rms_norm, swiglu
from bestiary.plugins.moe import decode as moe
from bestiary.plugins.moe.hookspecs import Routing

pytestmark = pytest.mark.skipif(bool(native.why_not()), reason=f"kernels cannot be compiled: {native.why_not()}")
BF16 = torch.bfloat16
ROWS = [1, 2, 3, 7, 8, 13, 16]


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def close(ours, reference):
    """Within a rounding of bf16, of sums that cancel."""
    error = (ours.float() - reference).abs().max()
    return error <= 0.01 * reference.abs().max() + 1e-6


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 31), (33, 65), (70, 200), (129, 96)])
def test_linear(rows, n, k):
    x, weight = torch.randn(rows, k, dtype=BF16), torch.randn(n, k, dtype=BF16)
    ours = linear(x, weight)
    assert ours is not None and ours.shape == (rows, n)
    assert close(ours, x.float() @ weight.float().T)


@pytest.mark.parametrize("rows", ROWS)
def test_swiglu(rows):
    x, gate, up, down = (torch.randn(shape, dtype=BF16) / 6 for shape in ((rows, 37), (45, 37), (45, 37), (37, 45)))
    g, u = x.float() @ gate.float().T, x.float() @ up.float().T
    assert close(swiglu(x, gate, up, down), (torch.nn.functional.silu(g) * u).to(BF16).float() @ down.float().T)


@pytest.mark.parametrize("size", [1, 31, 64, 130])
def test_rms_norm(size):
    x, gain = torch.randn(5, size, dtype=BF16), torch.randn(size, dtype=BF16)
    assert close(rms_norm(x, gain, 1e-6), torch.nn.functional.rms_norm(x.float(), (size,), gain.float(), 1e-6))


@pytest.mark.parametrize("rows", ROWS)
def test_experts_with_idle_and_crowded_ones(rows):
    count, d, hidden, k = 6, 35, 22, 2
    gate_up, down = torch.randn(count, 2 * hidden, d, dtype=BF16) / 6, torch.randn(count, d, hidden, dtype=BF16) / 5
    x, chosen, weights = torch.randn(rows, d, dtype=BF16), torch.stack([torch.randperm(4)[:k] for _ in range(rows)]), torch.rand(rows, k)
    reference = torch.zeros(rows, d)
    for t in range(rows):
        for e, w in zip(chosen[t].tolist(), weights[t].tolist(), strict=True):
            g, u = (x[t].float() @ gate_up[e].float().T).chunk(2)
            reference[t] += down[e].float() @ (torch.nn.functional.silu(g) * u * w)
    assert close(moe.experts(x, Routing(weights, chosen), gate_up, down), reference)


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("normalised", [True, False])
def test_routing_is_the_routers(groups, kept, normalised):
    changes = {"n_group": groups, "topk_group": kept, "norm_topk_prob": normalised, "routed_scaling_factor": 1.7}
    sizes = {"block.ffn.n_routed_experts": 12, "block.ffn.num_experts_per_tok": 3}
    model = bestiary.create_model(
        "deepseek-v3-nano", set=sizes | {f"block.ffn.router.{key}": value for key, value in changes.items()}, dtype=BF16
    )
    gate = model.model.layers[-1].mlp.gate
    gate.weight.normal_()
    gate.e_score_correction_bias.normal_(0, 0.3)
    x = torch.randn(9, model.manifest.model.hidden_size, dtype=BF16)
    ours, plain = gate(x), gate(x.repeat(2, 1))  # eighteen rows are too many for the kernel
    assert ours.scores is None and plain.scores is not None
    assert torch.equal(ours.experts, plain.experts[:9])
    assert torch.allclose(ours.weights, plain.weights[:9], atol=1e-5)


EVERY_EXPERT = {
    "block.ffn.n_routed_experts": 4,
    "block.ffn.num_experts_per_tok": 4,
    "block.ffn.router.n_group": 1,
    "block.ffn.router.topk_group": 1,
}
"""Roundings of bf16 may choose other experts, which is no error of a kernel."""


@pytest.mark.parametrize("changes", [{}, {"block.attention.rope_interleave": False}, {"block.attention.use": "gqa"}], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_by_kernels_is_as_near_to_fp32_as_torch_is(changes, batch, monkeypatch):
    changes = changes | EVERY_EXPERT
    model = bestiary.create_model("deepseek-v3-nano", set=changes, dtype=BF16)
    exact = bestiary.create_model("deepseek-v3-nano", set=changes, dtype=torch.float32)
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    ids = torch.randint(256, (batch, 24))
    reference, kernels = decode(exact, ids), decode(model, ids)
    monkeypatch.setattr(native, "FEW_ROWS", 0)
    plain = decode(model, ids)
    assert not torch.equal(kernels, plain)
    assert (kernels - reference).abs().mean() < 1.5 * (plain - reference).abs().mean() + 1e-4


def decode(model, ids):
    """Logits of a prompt, single steps, and a step of several tokens, in fp32."""
    cache = model.new_cache(len(ids), ids.shape[1])
    steps = [ids[:, :12], *(ids[:, i : i + 1] for i in range(12, 20)), ids[:, 20:]]
    return torch.cat([model(step, cache=cache) for step in steps], dim=1).float()


def test_gradients_wide_inputs_and_other_dtypes_are_left_to_torch():
    weight = torch.randn(8, 8, dtype=BF16)
    assert linear(torch.randn(native.FEW_ROWS + 1, 8, dtype=BF16), weight) is None
    assert linear(torch.randn(1, 8), weight) is None
    assert linear(torch.randn(1, 8, dtype=BF16), weight.float()) is None
    assert linear(torch.randn(8, 2, dtype=BF16).T, weight) is None
    with torch.enable_grad():
        assert linear(torch.randn(1, 8, dtype=BF16), weight) is None


def test_infinities_and_nan_pass_through():
    x = torch.ones(1, 40, dtype=BF16)
    x[0, 3] = float("nan")
    assert linear(x, torch.ones(2, 40, dtype=BF16)).isnan().all()
    x[0, 3] = float("inf")
    assert linear(x, torch.ones(2, 40, dtype=BF16)).isinf().all()


def test_the_process_keeps_its_denormal_numbers():
    linear(torch.ones(1, 8, dtype=BF16), torch.ones(8, 8, dtype=BF16))
    assert float(torch.tensor(1e-40) * 1) != 0


@pytest.mark.skipif("BESTIARY_TEST_PORTABLE" in os.environ, reason="this is the portable run")
def test_portable_code_computes_the_same():
    environment = os.environ | {"CXXFLAGS": "-DBESTIARY_PORTABLE", "BESTIARY_TEST_PORTABLE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "linear or swiglu or experts or routing or decoding",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_without_a_compiler_the_reason_is_said_and_torch_does_the_work(monkeypatch):
    monkeypatch.setenv("BESTIARY_NATIVE", "0")
    assert "BESTIARY_NATIVE" in native.why_not()
    assert native.library(native.HEADERS / "no-such.cpp") is None
