"""The other bricks: linear, stacked linear, RMSNorm, SwiGLU, cross-entropy, attention on heads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bestiary.core.contracts import IGNORE
from bestiary.core.layers.attend import QUERIES, attend
from bestiary.core.layers.cross_entropy import ROWS, summed_cross_entropy
from bestiary.core.layers.grouped import GroupedLinear
from bestiary.core.layers.linear import Linear
from bestiary.core.layers.norm import RMSNorm
from bestiary.core.layers.swiglu import swiglu


def gradients(function, *tensors):
    """The output and the gradient of a fixed random projection of it with respect to each tensor."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    torch.manual_seed(1)
    return [out, *torch.autograd.grad((out * torch.randn_like(out)).sum(), leaves)]


def equal(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one.double(), other.double(), atol=tolerance, rtol=tolerance)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


# Linear


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_torchs_in_the_dtype_of_its_input(bias):
    layer, x = Linear(5, 3, bias=bias), random(2, 4, 5, dtype=torch.bfloat16)
    torch.nn.init.normal_(layer.weight)
    if bias:
        torch.nn.init.normal_(layer.bias)
    expected = F.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16() if bias else None)
    assert torch.equal(layer(x), expected)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.dense(torch.bfloat16), layer.weight.bfloat16())


# Stacked linear


def loop(x, weight, counts):
    return torch.cat([rows @ w.T for rows, w in zip(x.split(counts), weight, strict=True)])


COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)


@given(COUNTS, st.integers(1, 9), st.integers(1, 9))
def test_stacked_linear_equals_a_loop_over_experts_with_gradients(counts, d_in, d_out):
    layer = GroupedLinear(len(counts), d_in, d_out).double()
    x, weight = random(sum(counts), d_in), random(len(counts), d_out, d_in)
    ours = gradients(lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x, torch.tensor(counts))), x, weight)
    equal(ours, gradients(lambda x, w: loop(x, w, counts), x, weight), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d_in", "d_out"), [(8, 16), (5, 7)])
def test_stacked_linear_works_in_every_dtype_on_every_size(dtype, d_in, d_out):
    counts = [3, 0, 1, 4]
    x, weight = random(8, d_in, dtype=dtype), random(4, d_out, d_in, dtype=dtype)
    layer = GroupedLinear(4, d_in, d_out).to(dtype)
    ours = gradients(lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x, torch.tensor(counts))), x, weight)
    equal(ours, gradients(lambda x, w: loop(x, w, counts), x, weight), 1e-5 if dtype == torch.float32 else 3e-2)


def test_an_expert_without_rows_has_a_gradient_of_zero():
    layer = GroupedLinear(3, 2, 2)
    torch.nn.init.normal_(layer.weight)
    layer(random(4, 2, dtype=torch.float32), torch.tensor([4, 0, 0])).sum().backward()
    assert layer.weight.grad[0].abs().sum() > 0
    assert layer.weight.grad[1:].abs().sum() == 0


# RMSNorm


def plain_norm(x, weight, eps=1e-5):
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 5), (2, 3, 2, 4)])
def test_rms_norm_equals_its_formula_with_gradients(shape):
    norm = RMSNorm(shape[-1], eps=1e-5)
    x, weight = random(*shape), random(shape[-1])
    ours = gradients(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), x, weight)
    equal(ours, gradients(plain_norm, x, weight), 1e-12)


def test_rms_norm_passes_the_gradient_check():
    norm = RMSNorm(5, eps=1e-6)
    x, weight = random(3, 5).requires_grad_(), random(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), (x, weight))


def test_rms_norm_takes_its_mean_in_fp32():
    norm, x = RMSNorm(512, eps=1e-6), random(3, 512, dtype=torch.bfloat16) * 50
    torch.nn.init.normal_(norm.weight)
    wide = plain_norm(x.double(), norm.weight.double(), 1e-6)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = norm(x)
        assert y.dtype == torch.bfloat16
        assert torch.allclose(y.double(), wide, rtol=2**-7, atol=1e-6)


def test_eps_keeps_a_zero_vector_finite():
    norm = RMSNorm(4, eps=1e-6)
    torch.nn.init.ones_(norm.weight)
    x = torch.zeros(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


# SwiGLU


@given(st.integers(1, 5), st.integers(1, 9))
def test_gated_product_equals_its_formula_with_gradients(rows, width):
    gate_up = random(rows, 2 * width)
    ours = gradients(swiglu, gate_up)
    equal(ours, gradients(lambda t: F.silu(t[:, :width]) * t[:, width:], gate_up), 1e-12)


# Cross-entropy


@pytest.mark.parametrize("rows", [1, 7, ROWS, 2 * ROWS + 3])
def test_cross_entropy_equals_torchs_sum_with_gradients(rows):
    logits, targets = 5 * random(rows, 11), torch.randint(11, (rows,))
    targets[::3] = IGNORE
    ours = gradients(lambda t: summed_cross_entropy(t, targets), logits)
    equal(ours, gradients(lambda t: F.cross_entropy(t, targets, reduction="sum", ignore_index=IGNORE), logits), 1e-12)


def test_cross_entropy_of_bf16_logits_is_fp32():
    logits, targets = random(9, 40, dtype=torch.bfloat16), torch.randint(40, (9,))
    loss, grad = gradients(lambda t: summed_cross_entropy(t, targets), logits)
    assert loss.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(F.cross_entropy(logits.float(), targets, reduction="sum").item(), rel=1e-6)


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = summed_cross_entropy(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_targets_that_are_all_ignored_cost_nothing():
    logits = random(3, 5).requires_grad_()
    loss = summed_cross_entropy(logits, torch.full((3,), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


# Attention on heads


def plain_attention(q, k, v, scale, mask):
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    score = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    return score.softmax(dim=-1) @ v


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_its_formula_with_gradients(heads, shared, causal):
    q, k, v = random(2, heads, 6, 5), random(2, shared, 6, 5), random(2, shared, 6, 3)
    lower = torch.ones(6, 6, dtype=torch.bool).tril()
    mask = None if causal else lower | (torch.rand(2, 1, 6, 6) < 0.3)
    ours = gradients(lambda q, k, v: attend(q, k, v, scale=0.4, mask=mask, causal=causal), q, k, v)
    equal(ours, gradients(lambda q, k, v: plain_attention(q, k, v, 0.4, lower if causal else mask), q, k, v), 1e-12)


@pytest.mark.parametrize("length", [1, 7, QUERIES, 2 * QUERIES + 5])
@pytest.mark.parametrize("shared", [4, 2])
def test_blocked_bf16_attention_stays_near_float64_with_gradients(length, shared):
    q, k, v = (random(1, heads, length, width, dtype=torch.bfloat16) for heads, width in ((4, 16), (shared, 16), (shared, 8)))
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    ours = gradients(lambda q, k, v: attend(q, k, v, scale=0.25, mask=None, causal=True), q, k, v)
    torch.manual_seed(1)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    out = plain_attention(*leaves, 0.25, mask)
    noise = torch.randn_like(ours[0]).double()
    exact = [out, *torch.autograd.grad((out * noise).sum(), leaves)]
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() <= 0.02 * other.norm()


def test_probabilities_that_are_computed_again_give_the_same_gradients_and_are_not_kept(monkeypatch):
    length = 2 * QUERIES + 5
    q, k, v = (random(1, 2, length, width, dtype=torch.bfloat16) for width in (16, 16, 8))
    results, sizes = [], []
    for longest in (length, length - 1):
        monkeypatch.setattr("bestiary.core.layers.attend.LONGEST", longest)
        results.append(gradients(lambda q, k, v: attend(q, k, v, scale=0.25, mask=None, causal=True), q, k, v))
        sizes.append(0)

        def count(tensor):
            sizes[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            attend(*(t.requires_grad_() for t in (q, k, v)), scale=0.25, mask=None, causal=True)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert sizes[1] == q.numel() + k.numel() + v.numel() < sizes[0]
