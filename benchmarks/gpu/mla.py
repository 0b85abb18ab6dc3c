"""The kernels of latent attention, of DeepSeek-V3's shapes: prompts and their gradients, and decoding on a paged cache, against float64.

Least work is counted: half the matrix of scores in forward and backward passes, and in the latter every product once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bestiary.plugins.attention_mla.kernels.launch import Kernels
from bestiary.plugins.attention_mla.kernels.tiles import PAGE

from .measure import Case, relative_error

OURS = Kernels()
BOUND = 1e-2
"""bf16 rounds inputs of the products, probabilities and results."""
Widths = tuple[int, int, int]


def exact(q: Tensor, kv: Tensor, k_pe: Tensor, grad: Tensor, nope: int, scale: float) -> list[Tensor]:
    """Outputs and the gradients of `q`, `kv` and `k_pe` in float64, one head of one sequence at a time, so that memory stays small."""
    out, (q_grad, kv_grad, k_pe_grad) = grad.double(), (torch.zeros_like(t, dtype=torch.float64) for t in (q, kv, k_pe))
    hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu(1)
    for one in range(q.shape[0]):
        for head in range(q.shape[2]):
            a, b, b_pe = (t.detach().double().requires_grad_() for t in (q[one, :, head], kv[one, :, head], k_pe[one]))
            score = (a @ torch.cat((b[:, :nope], b_pe), dim=1).T * scale).masked_fill(hidden, float("-inf"))
            y = score.softmax(-1) @ b[:, nope:]
            slopes = torch.autograd.grad(y, (a, b, b_pe), grad[one, :, head].double())
            out[one, :, head], q_grad[one, :, head], kv_grad[one, :, head] = y.detach(), *slopes[:2]
            k_pe_grad[one] += slopes[2]
    return [out, q_grad, kv_grad, k_pe_grad]


def prompts(device: str, length: int, heads: int, widths: Widths) -> Iterator[Case]:
    nope, rope, value = widths
    shapes = ((1, length, heads, nope + rope), (1, length, heads, nope + value), (1, length, rope))
    q, kv, k_pe = given = [torch.randn(shape, device=device).bfloat16().requires_grad_() for shape in shapes]
    grad, scale = torch.randn(1, length, heads, value, device=device).bfloat16(), (nope + rope) ** -0.5
    forward = lambda: OURS.attention(q, kv, k_pe, nope=nope, scale=scale)[0]  # noqa: E731
    backward = gradients(forward, given, grad)
    k = torch.cat((kv[..., :nope], k_pe[:, :, None].expand(-1, -1, heads, -1)), dim=-1)
    a, b, v = expanded = [t.detach().transpose(1, 2).contiguous().requires_grad_() for t in (q, k, kv[..., nope:])]
    peer = lambda: scaled_dot_product_attention(a, b, v, is_causal=True, scale=scale)  # noqa: E731
    pairs, shape = length * length * heads, f"{length} x {heads} heads"
    nbytes = 2 * sum(t.numel() for t in (*given, grad))

    def error(which: slice) -> float:
        found = [forward().detach(), *backward()][which]
        right = exact(q, kv, k_pe, grad, nope, scale)[which]
        return max(relative_error(a, b) for a, b in zip(found, right, strict=True))

    right = lambda: error(slice(1))  # noqa: E731
    yield Case(f"prefill {shape}", forward, right, BOUND, nbytes, pairs * sum(widths), goal=0.45, peers={"sdpa": peer})
    flops, slopes = pairs * (3 * (nope + rope) + 2 * value), lambda: error(slice(1, 4))
    peers = {"sdpa": gradients(peer, expanded, grad.transpose(1, 2))}
    yield Case(f"prefill-backward {shape}", backward, slopes, BOUND, 2 * nbytes, flops, goal=0.3, peers=peers)


def gradients(forward: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> Callable[[], Any]:
    """The backward pass alone: the forward pass runs once, at the first call."""
    made: list[Tensor] = []

    def backward() -> Any:
        if not made:
            made.append(forward())
        return torch.autograd.grad(made[0], inputs, grad, retain_graph=True)

    return backward


def decoding(device: str, lengths: list[int], heads: int, latent: int, rope: int, goal: float) -> Iterator[Case]:
    """One new position of every sequence, on pages that lie anywhere."""
    pages = [-(-length // PAGE) for length in lengths]
    pool = torch.randn(sum(pages), PAGE, latent + rope, device=device).bfloat16()
    order, table = torch.randperm(sum(pages), dtype=torch.int32), torch.zeros(len(lengths), max(pages), dtype=torch.int32)
    ends = [sum(pages[:i]) for i in range(len(pages) + 1)]
    for row, (first, end) in enumerate(pairwise(ends)):
        table[row, : end - first] = order[first:end]
    table, seen = table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device)
    q, scale = torch.randn(len(lengths), heads, latent + rope, device=device).bfloat16(), 192**-0.5
    run = lambda: OURS.decode(q, pool, seen, latent=latent, scale=scale, table=table)[0]  # noqa: E731

    def error() -> float:
        rows = []
        for row, length in enumerate(lengths):
            own = pool[table[row].long()].flatten(0, 1)[:length].double()
            rows.append((q[row].double() @ own.T * scale).softmax(-1) @ own[:, :latent])
        return relative_error(run(), torch.stack(rows))

    nbytes = 2 * (sum(lengths) * (latent + rope) + q.numel() + q.numel() // (latent + rope) * latent)
    flops = 2 * sum(lengths) * heads * (2 * latent + rope)
    others = peers(q, pool, table, seen, latent, scale)
    yield Case(f"decode {len(lengths)} x {max(lengths)}, {heads} heads", run, error, BOUND, nbytes, flops, goal=goal, peers=others)


def peers(q: Tensor, pool: Tensor, table: Tensor, seen: Tensor, latent: int, scale: float) -> dict[str, Callable[[], object]]:
    """torch on a cache without pages, where all lengths are equal, and FlashMLA if it is installed."""
    found: dict[str, Callable[[], object]] = {}
    if int(seen.min()) == table.shape[1] * PAGE:
        whole = pool[table.long()].flatten(1, 2)[:, None]
        found["sdpa"] = lambda: scaled_dot_product_attention(q[:, None], whole, whole[..., :latent], scale=scale)
    if find_spec("flash_mla"):
        flash = importlib.import_module("flash_mla")
        plan: list[object] = []

        def call() -> object:
            if not plan:
                plan.extend(flash.get_mla_metadata(seen, q.shape[1], 1))
            return flash.flash_mla_with_kvcache(q[:, None], pool[:, :, None], table, seen, latent, *plan, softmax_scale=scale)

        found["FlashMLA"] = call
    return found


def cases(device: str, small: bool) -> Iterator[Case]:
    """All of them; `small` ones for the interpreter."""
    if small:
        yield from prompts(device, 45, 3, (9, 4, 5))
        yield from decoding(device, [70, 1, 130], 5, 24, 6, 0.4)
        yield from decoding(device, [128, 128], 20, 24, 6, 0.4)
        return
    yield from prompts(device, 4096, 128, (128, 64, 128))
    for heads, goal in ((16, 0.4), (128, 0.3)):
        yield from decoding(device, [4096] * 128, heads, 512, 64, goal)
