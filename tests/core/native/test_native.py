"""The decoding kernels against float64, on odd sizes, and where they stand aside for torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bestiary.core import native
from bestiary.core.native import linear as kernels
from bestiary.plugins.moe import decode
from bestiary.plugins.moe.hookspecs import RouterSite, Routing
from bestiary.plugins.moe.options import SigmoidGroupOptions
from bestiary.plugins.moe.routers import SigmoidGroup

compiled = pytest.mark.skipif(bool(native.why_not()), reason=native.why_not() or "kernels are compiled here")
ROWS = [1, 2, 7, native.FEW_ROWS]
ULP = 2**-8


def bf16(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16)


def near(ours, exact, slack=3):
    """Within a few roundings of the largest value."""
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).abs().max() <= slack * ULP * exact.abs().max()


@compiled
@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (33, 17), (96, 40), (257, 513)])
def test_linear(rows, k, n):
    x, weight = bf16(rows, k), bf16(n, k)
    near(kernels.linear(x, weight), x.double() @ weight.double().T)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
def test_rms_norm(rows):
    x, gain = 30 * bf16(rows, 45), bf16(45)
    exact = F.rms_norm(x.double(), (45,), gain.double(), 1e-6)
    assert torch.allclose(kernels.rms_norm(x, gain, 1e-6).double(), exact, rtol=2 * ULP, atol=1e-6)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
def test_swiglu(rows):
    x, gate, up, down = bf16(rows, 35), bf16(67, 35) / 6, bf16(67, 35) / 6, bf16(35, 67) / 8
    exact = (F.silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)) @ down.double().T
    near(kernels.swiglu(x, gate, up, down), exact)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("groups", "kept", "normalise"), [(1, 1, True), (4, 2, True), (4, 3, False)])
def test_the_router_chooses_what_torch_chooses(rows, groups, kept, normalise):
    options = SigmoidGroupOptions(n_group=groups, topk_group=kept, norm_topk_prob=normalise, routed_scaling_factor=2.5)
    router = SigmoidGroup(options, RouterSite(37, 1, 1, 1, 1e-6, n_routed_experts=16, num_experts_per_tok=3)).bfloat16()
    torch.nn.init.normal_(router.weight)
    router.e_score_correction_bias.normal_()
    x = bf16(rows, 37)
    ours = decode.route_sigmoid_group(x, router.weight, router.e_score_correction_bias, 3, options)
    with torch.enable_grad():
        theirs = router(x)
    for row in range(rows):
        one, other = (dict(zip(r.experts[row].tolist(), r.weights[row].tolist(), strict=True)) for r in (ours, theirs))
        assert one == pytest.approx(other, abs=1e-4)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
def test_experts(rows):
    x, gate_up, down = bf16(rows, 35), bf16(6, 2 * 19, 35) / 6, bf16(6, 35, 19) / 4
    chosen = torch.stack([torch.randperm(6)[:3] for _ in range(rows)])
    routing = Routing(torch.rand(rows, 3), chosen)
    exact = torch.zeros(rows, 35, dtype=torch.float64)
    for row in range(rows):
        for expert, weight in zip(chosen[row].tolist(), routing.weights[row].double(), strict=True):
            gate, up = (gate_up[expert].double() @ x[row].double()).chunk(2)
            exact[row] += weight * (down[expert].double() @ (F.silu(gate) * up))
    near(decode.experts(x, routing, gate_up, down), exact)


@compiled
@pytest.mark.parametrize("attention", ["mla", "gqa"])
@pytest.mark.parametrize("chunks", [[5, 1, 1, 1, 1, 1], [5, 3, 2], [1] * 10])
def test_a_model_decodes_with_kernels_as_it_does_in_float64(tiny, build, attention, chunks):
    exact, low = (build(tiny(attention, "dense"), dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    low.load_state_dict(exact.state_dict())
    exact.load_state_dict(low.state_dict())
    ids = torch.randint(31, (2, 10))
    cache, parts = low.new_cache(2, 10), []
    with torch.no_grad():
        for chunk in ids.split(chunks, dim=1):
            parts.append(low(chunk, cache=cache))
        full = exact(ids)
    assert (torch.cat(parts, dim=1).double() - full).norm() <= 0.03 * full.norm()
    assert cache.length == 10


@pytest.mark.parametrize(
    "x", [torch.randn(2, 8), bf16(native.FEW_ROWS + 1, 8), bf16(8, 2).T, bf16(0, 8)], ids=["fp32", "many", "strided", "none"]
)
@torch.no_grad()
def test_what_the_kernels_are_not_for_is_left_to_torch(x):
    assert not native.few_rows(x)
    assert kernels.linear(x, bf16(3, 8)) is None


def test_where_a_gradient_is_wanted_torch_does_it():
    assert not native.few_rows(bf16(1, 8))


@torch.no_grad()
def test_a_wrong_width_is_left_to_torch_to_refuse():
    assert kernels.linear(bf16(1, 8), bf16(3, 9)) is None


@torch.no_grad()
def test_without_kernels_a_model_decodes_all_the_same(tiny, build, monkeypatch):
    model, ids = build(tiny(), dtype=torch.bfloat16), torch.randint(31, (1, 4))
    with_kernels = model(ids)
    monkeypatch.setenv("BESTIARY_NATIVE", "0")
    assert native.why_not() == "switched off by BESTIARY_NATIVE=0"
    for module in (kernels, decode):
        monkeypatch.setattr(module, "_kernels", lambda: None)
    without = model(ids)
    assert (with_kernels.double() - without.double()).norm() <= 0.05 * without.double().norm()


@torch.no_grad()
def test_a_source_that_does_not_compile_leaves_torch_to_it(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("this is no C++")
    assert native.library(source) is None
