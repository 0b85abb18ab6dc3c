"""FP8 layers against explicit sums over blocks in float64, and what runs how often."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bestiary.core.weight_gradients import WeightGradients
from bestiary.plugins.fp8.backends.emulation import Emulation, hopper
from bestiary.plugins.fp8.grouped import FP8GroupedLinear
from bestiary.plugins.fp8.linear import FP8Linear
from bestiary.plugins.fp8.options import FP8Options
from bestiary.plugins.fp8.quantize import Rule, quantise
from bestiary.plugins.fp8.recipe import Recipe

SHAPES = [(7, 130, 257), (128, 256, 128), (1, 5, 3), (200, 384, 100)]
POW2, FP32 = {"scales": "power-of-two"}, {"scales": "fp32"}


def block_sum(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """The FP8 GEMM as the kernel does it: raw codes over 128 columns, then both factors; `[M, K]` and `[N, K]`, in float64."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for block, start in enumerate(range(0, a.shape[1], 128)):
        part = a[:, start : start + 128].double() @ b[:, start : start + 128].double().T
        rows = a_scale[:, block].double()
        columns = b_scale[:, block].double()
        total += part * rows[:, None] * columns[None]
    return total


def reference(x: Tensor, w: Tensor, dy: Tensor, scales: dict[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Output and both gradients of the published recipe, from codes."""
    power = scales["scales"] == "power-of-two"
    rule, back = Rule(power_of_two=power), Rule(floor=2.0**-100, power_of_two=power)
    qx, qw, qdy = quantise(x, (1, 128), rule), quantise(w, (128, 128), rule), quantise(dy, (1, 128), back)
    spread = qw.scale.repeat_interleave(128, 0)[: w.shape[0]]
    y = block_sum(qx.codes.float(), qx.scale, qw.codes.float(), spread)
    across = qw.scale.repeat_interleave(128, 1)[:, : w.shape[1]]
    dx = block_sum(qdy.codes.float(), qdy.scale, qw.codes.float().T, across.T)
    again = quantise(qx.values(torch.bfloat16), (128, 1), rule)
    tokens = quantise(dy, (128, 1), back)
    dw = block_sum(tokens.codes.float().T, tokens.scale.T, again.codes.float().T, again.scale.T)
    return y, dx, dw


def layer(n: int, k: int, **options: Any) -> FP8Linear:
    made = FP8Linear(k, n, Recipe(FP8Options(**options)))
    torch.nn.init.normal_(made.weight, std=0.05)
    return made


@pytest.mark.parametrize("scales", [POW2, FP32])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_three_products(m: int, n: int, k: int, scales: dict[str, str]) -> None:
    made = layer(n, k, **scales)
    x = torch.randn(m, k).bfloat16().requires_grad_()
    dy = (torch.randn(m, n) * 1e-4).bfloat16()
    y = made(x)
    y.backward(dy)
    assert made.weight.grad is not None and x.grad is not None
    assert (y.dtype, x.grad.dtype, made.weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    expected_y, expected_dx, expected_dw = reference(x.detach(), made.weight.detach(), dy, scales)
    for found, expected, bound in ((y, expected_y, 4e-3), (x.grad, expected_dx, 4e-3), (made.weight.grad, expected_dw, 1e-6)):
        assert (found.double() - expected).norm() <= bound * expected.norm()
    assert torch.equal(y, made(x.unflatten(0, (1, m)))[0])


def test_close_to_the_product_of_plain_numbers() -> None:
    made = layer(256, 384)
    x, dy = torch.randn(200, 384).bfloat16().requires_grad_(), torch.randn(200, 256).bfloat16()
    y = made(x)
    y.backward(dy)
    plain = x.detach().double()
    weight = made.weight.detach().double()
    for found, expected in ((y, plain @ weight.T), (x.grad, dy.double() @ weight), (made.weight.grad, dy.double().T @ plain)):
        assert found is not None and 0.005 < (found.double() - expected).norm() / expected.norm() < 0.045


@pytest.mark.parametrize("sizes", [[3, 0, 130, 7], [0, 0, 0, 1], [128, 128, 0, 256]])
def test_experts_are_dense_layers(sizes: list[int]) -> None:
    recipe = Recipe(FP8Options())
    experts = FP8GroupedLinear(4, 140, 36, recipe)
    torch.nn.init.normal_(experts.weight, std=0.1)
    x = torch.randn(sum(sizes), 140).bfloat16().requires_grad_()
    dy = torch.randn(sum(sizes), 36).bfloat16()
    y = experts(x, torch.tensor(sizes))
    y.backward(dy)
    assert x.grad is not None and experts.weight.grad is not None
    start = 0
    for expert, size in enumerate(sizes):
        alone = FP8Linear(140, 36, recipe)
        alone.weight.data.copy_(experts.weight[expert])
        rows = x.detach()[start : start + size].clone().requires_grad_()
        out = alone(rows)
        out.backward(dy[start : start + size])
        assert torch.equal(out, y[start : start + size]) and rows.grad is not None and alone.weight.grad is not None
        assert torch.equal(rows.grad, x.grad[start : start + size]) and torch.equal(alone.weight.grad, experts.weight.grad[expert])
        start += size


def test_masked_rows_are_those_of_each_expert() -> None:
    backend, rows = Emulation(), [3, 0, 20]
    x, w = torch.randn(3, 20, 140).bfloat16(), quantise(torch.randn(3, 36, 140), (128, 128), Rule())
    found = backend.masked(quantise(x, (1, 128), Rule()), w, torch.tensor(rows, dtype=torch.int32), torch.bfloat16)
    assert found.shape == (3, 20, 36)
    valid = torch.cat([x[expert, :size] for expert, size in enumerate(rows)])
    right = backend.grouped(quantise(valid, (1, 128), Rule()), w, rows, torch.bfloat16)
    assert torch.equal(torch.cat([found[expert, :size] for expert, size in enumerate(rows)]), right)


class Counting(Emulation):
    """A backend that counts its products."""

    products = 0

    def product(self, *arguments: Any) -> Any:
        self.products += 1
        return super().product(*arguments)

    def grouped(self, *arguments: Any) -> Any:
        self.products += 1
        return super().grouped(*arguments)


@pytest.mark.parametrize("kind", ["dense", "grouped"])
def test_split_backward_runs_every_product_once(kind: str) -> None:
    recipe = Recipe(FP8Options())
    recipe.backend = counting = Counting()
    made = FP8Linear(130, 20, recipe) if kind == "dense" else FP8GroupedLinear(1, 130, 20, recipe)
    torch.nn.init.normal_(made.weight)
    x = torch.randn(9, 130).bfloat16().requires_grad_()
    arguments = () if kind == "dense" else (torch.tensor([9]),)
    made(x, *arguments).sum().backward()
    assert counting.products == 3
    whole, whole_x = made.weight.grad, x.grad
    made.weight.grad, x.grad, counting.products = None, None, 0
    store = WeightGradients()
    with store.splitting():
        y = made(x, *arguments)
    with store.deferring():
        y.sum().backward()
    assert counting.products == 2 and made.weight.grad is None and x.grad is not None
    store.run_all()
    assert counting.products == 3 and made.weight.grad is not None and whole is not None and whole_x is not None
    assert torch.equal(made.weight.grad, whole) and torch.equal(x.grad, whole_x)


def test_saved_for_backward_is_fp8() -> None:
    saved: list[Tensor] = []
    made = layer(64, 256)
    x = torch.randn(512, 256).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        made(x)
    assert sum(t.nbytes for t in saved) < 1.05 * (x.numel() + made.weight.numel())


@pytest.mark.parametrize(
    "options",
    [
        {"activations": "tensor", "gradients": "tensor", "weights": "tensor"},
        {"activations": "row", "gradients": "row", "weights": "row"},
        {"gradients": "block"},
        {"gradient_format": "e5m2"},
        {"saved_input": "bf16"},
        {"accumulation": "hopper"},
        {"accumulation": "hopper-unpromoted"},
        {"scales": "fp32", "preset": "te"},
        {"scales": "fp32", "preset": "deepgemm"},
    ],
)
def test_variants_compute_and_differ(options: dict[str, Any]) -> None:
    x, dy = ((torch.randn(130, n) * torch.randn(130, n).mul(2).exp()).bfloat16() for n in (256, 140))  # a wide range: subnormal codes
    results = []
    weight = torch.randn(140, 256) * torch.rand(140, 1).exp2() * 0.05
    for made in (layer(140, 256), layer(140, 256, **options)):
        made.weight.data.copy_(weight)
        inputs = x.clone().requires_grad_()
        y = made(inputs)
        y.backward(dy)
        assert inputs.grad is not None and made.weight.grad is not None
        results.append((y.float(), inputs.grad.float(), made.weight.grad))
    assert any(not torch.equal(a, b) for a, b in zip(*results, strict=True))
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 0.2 * a.norm()


def test_sums_without_promotion_lose_digits() -> None:
    errors = []
    a, b = torch.rand(16, 4096), torch.rand(16, 4096)
    exact = a.double() @ b.double().T
    for promote in (True, False):
        errors.append(float(((hopper(a, b, promote=promote).double() - exact) / exact).abs().max()))
    assert errors[0] < 3e-4 < 2e-3 < errors[1] < 5e-2
    assert torch.allclose(hopper(a[:, :40], b[:, :40], promote=True).double(), a[:, :40].double() @ b[:, :40].double().T, rtol=3e-4)


def test_no_second_derivatives() -> None:
    made, x = layer(4, 4), torch.randn(2, 4).bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(made(x).float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()
