"""The kernels of the mixture of experts, of DeepSeek-V3's shapes: routing and plans against torch, rows and products against float64.

Least work is counted: a token's row is read once however many copies of it are made, and a plan and a routing read and write their tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bestiary.plugins.moe.dispatch import TORCH
from bestiary.plugins.moe.hookspecs import RouterSite, Routing
from bestiary.plugins.moe.kernels.launch import Kernels
from bestiary.plugins.moe.options import SigmoidGroupOptions
from bestiary.plugins.moe.routers import SigmoidGroup

from .measure import Case, relative_error, unequal

OURS = Kernels()
ROUNDED = 6e-3
"""bf16 rounds results."""
TILE = 128
"""Columns of a factor of FP8 codes."""


def routers(device: str, tokens: int, count: int, k: int, groups: int, kept: int) -> Iterator[Case]:
    logits, bias = torch.randn(tokens, count, device=device), torch.rand(count, device=device)
    options = SigmoidGroupOptions(n_group=groups, topk_group=kept, routed_scaling_factor=2.5)
    module = SigmoidGroup(options, RouterSite(1, 1, 1, 1, 1e-6, n_routed_experts=count, num_experts_per_tok=k)).to(device)
    module.e_score_correction_bias.copy_(bias)
    module.logits = lambda x: x
    run, peer = lambda: OURS.route(logits, bias, k, options), lambda: module(logits)

    def error() -> float:
        return unlike(run(), module(logits.double()))

    shape, nbytes = f"{tokens} x {count}, {k} of {kept} of {groups}", tokens * (4 * count + 12 * k)
    yield Case(f"router {shape}", run, error, 1e-5, nbytes, peers={"torch": peer})
    own, slope = logits.clone().requires_grad_(), torch.randn(tokens, k, device=device)
    ours, theirs = OURS.route(own, bias, k, options), module(own)
    gradient = lambda found: lambda: torch.autograd.grad(found.weights, own, slope, retain_graph=True)[0]  # noqa: E731

    def gradient_error() -> float:
        wide = logits.double().requires_grad_()
        shares = wide.sigmoid().gather(1, ours.experts)
        exact = torch.autograd.grad(2.5 * shares / shares.sum(dim=1, keepdim=True), wide, slope.double())[0]
        return relative_error(gradient(ours)(), exact)

    yield Case(f"router-backward {shape}", gradient(ours), gradient_error, 1e-5, 2 * nbytes, peers={"torch": gradient(theirs)})


def unlike(found: Routing, exact: Routing) -> float:
    """The relative error of the weights of tokens with the same experts; infinite if more than a thousandth, near ties, have others."""
    same = (found.experts == exact.experts).all(dim=1)
    if float(same.double().mean()) < 0.999:
        return float("inf")
    return relative_error(found.weights[same], exact.weights[same])


def moves(device: str, tokens: int, width: int, count: int, k: int) -> Iterator[Case]:
    shape, chosen = f"{tokens}x{width}, {k} of {count}", torch.rand(tokens, count, device=device).topk(k, dim=1).indices
    run, peer = lambda: OURS.plan(chosen, count, 1), lambda: TORCH.plan(chosen, count, 1)
    differing = lambda: sum(unequal(a, b) for a, b in zip(run(), peer(), strict=True))  # noqa: E731
    yield Case(f"plan {shape}", run, differing, 0, 8 * (3 * tokens * k + count), peers={"torch": peer})
    place, source, _ = TORCH.plan(chosen, count, 1)
    x, both = torch.randn(tokens, width, device=device).bfloat16(), (1 + k) * tokens * width
    run, peer = lambda: OURS.copy(x, source, place), lambda: TORCH.copy(x, source, place)
    yield Case(
        f"permute {shape}", run, lambda: unequal(OURS.copy(x, source, place), x[source]), 0, 2 * both, goal=0.75, peers={"torch": peer}
    )
    yield from codes(x, source, place, shape)
    yield from sums(torch.randn(tokens * k, width, device=device).bfloat16(), source, place, shape)


def codes(x: Tensor, source: Tensor, place: Tensor, shape: str) -> Iterator[Case]:
    """FP8 codes with their factors."""
    fp8, factors = x.to(torch.float8_e4m3fn), torch.rand(len(x), -(-x.shape[1] // TILE), device=x.device)
    run, bits = lambda: OURS.copy_codes(fp8, factors, source, place), fp8.view(torch.uint8)

    def differing() -> int:
        found, beside = run()
        return unequal(found, bits[source]) + unequal(beside, factors[source])

    nbytes = (1 + len(source) / len(x)) * (fp8.nbytes + factors.nbytes)
    yield Case(f"permute-fp8 {shape}", run, differing, 0, nbytes, goal=0.75, peers={"torch": lambda: (bits[source], factors[source])})


def sums(rows: Tensor, source: Tensor, place: Tensor, shape: str) -> Iterator[Case]:
    """Each token's rows, without weights and with them, and the gradients of the latter."""
    (tokens, k), width = place.shape, rows.shape[1]
    weights, nbytes = torch.rand(tokens, k, device=rows.device), 2 * (1 + k) * tokens * width
    plain, weighted = lambda: OURS.sum(rows, source, place), lambda: OURS.sum(rows, source, place, weights)
    error = lambda: relative_error(plain(), rows[place].double().sum(dim=1))  # noqa: E731
    peer = {"torch": lambda: TORCH.sum(rows, source, place)}
    yield Case(f"unpermute {shape}", plain, error, ROUNDED, nbytes, goal=0.75, peers=peer)
    error = lambda: relative_error(weighted(), rows[place].double().mul_(weights[..., None]).sum(dim=1))  # noqa: E731
    peer = {"torch": lambda: (rows[place] * weights[..., None]).sum(dim=1)}
    yield Case(f"unpermute-weighted {shape}", weighted, error, ROUNDED, nbytes, goal=0.75, peers=peer)
    own = (rows.clone().requires_grad_(), weights.clone().requires_grad_())
    made, slope = OURS.sum(own[0], source, place, own[1]), torch.randn(tokens, width, device=rows.device).bfloat16()
    run = lambda: torch.autograd.grad(made, own, slope, retain_graph=True)  # noqa: E731

    def slopes() -> float:
        rows_grad, weights_grad = run()
        products = rows[place].double().mul_(slope[:, None]).sum(dim=2)
        return max(relative_error(rows_grad[place], slope[:, None].double() * weights[..., None]), relative_error(weights_grad, products))

    yield Case(f"unpermute-backward {shape}", run, slopes, ROUNDED, 2 * (1 + 2 * k) * tokens * width, goal=0.75)


def products(device: str, sizes: list[int], n: int, k: int) -> Iterator[Case]:
    """All experts' products, and their gradients."""
    rows, experts = sum(sizes), len(sizes)
    x, grad = torch.randn(rows, k, device=device).bfloat16(), torch.randn(rows, n, device=device).bfloat16()
    weight, counts = torch.randn(experts, n, k, device=device).bfloat16(), torch.tensor(sizes, device=device)
    ends, shape = counts.cumsum(0, dtype=torch.int32), f"{experts} x {max(sizes)}x{n}x{k}"
    flops, nbytes = 2 * rows * n * k, 2 * (x.numel() + grad.numel() + weight.numel())
    forward = lambda: OURS.grouped(x, weight, counts, None)  # noqa: E731
    backward = gradients(x, weight, counts, grad)
    kinds = {
        "grouped": (forward, lambda a, w, g: a @ w.T, lambda: torch._grouped_mm(x, weight.transpose(1, 2), offs=ends)),
        "grouped-input-gradient": (lambda: backward(0), lambda a, w, g: g @ w, lambda: torch._grouped_mm(grad, weight, offs=ends)),
        "grouped-weight-gradient": (lambda: backward(1), lambda a, w, g: g.T @ a, lambda: torch._grouped_mm(grad.T, x, offs=ends)),
    }
    for name, (run, right, peer) in kinds.items():
        error = lambda run=run, right=right: worst(run(), right, x, weight, grad, sizes)  # noqa: E731
        yield Case(f"{name} {shape}", run, error, ROUNDED, nbytes, flops, goal=0.45, peers={"torch grouped_mm": peer})


def gradients(x: Tensor, weight: Tensor, counts: Tensor, grad: Tensor) -> Callable[[int], Tensor]:
    """One of the two gradients of the products."""
    inputs = (x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_())
    made = [OURS.grouped(inputs[0], weight, counts, None), OURS.grouped(x, inputs[1], counts, None)]
    return lambda which: torch.autograd.grad(made[which], inputs[which], grad, retain_graph=True)[0]


def worst(
    found: Tensor, right: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, grad: Tensor, sizes: list[int]
) -> float:
    """The largest error of the first and the last expert, in float64."""
    parts = found.split(sizes) if len(found) == len(x) else found
    errors = []
    for expert in {0, len(sizes) - 1}:
        given = (x.split(sizes)[expert], weight[expert], grad.split(sizes)[expert])
        errors.append(relative_error(parts[expert], right(*(t.double() for t in given))))
    return max(errors)


def cases(device: str, small: bool) -> Iterator[Case]:
    """All of them; `small` ones for the interpreter."""
    if small:
        yield from routers(device, 5, 12, 3, 3, 2)
        yield from moves(device, 9, 300, 6, 2)
        yield from products(device, [5, 0, 40], 70, 90)
        return
    for tokens in (4096, 8192):
        yield from routers(device, tokens, 256, 8, 8, 4)
        yield from moves(device, tokens, 7168, 256, 8)
    for n, k in ((4096, 7168), (7168, 2048)):
        yield from products(device, [4096] * 8, n, k)
