"""The kernels of FP8: quantisers against torch bit by bit, products against float64 on the same codes.

Shapes are those of DeepSeek-V3's layers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bestiary.plugins.fp8.backends import AlongTokens
from bestiary.plugins.fp8.backends.kernels import Kernels
from bestiary.plugins.fp8.kernels.tokens import along_tokens, tiles_of
from bestiary.plugins.fp8.kernels.weight_gradient import weight_gradient
from bestiary.plugins.fp8.quantize import Quantised, Rule, quantise
from bestiary.plugins.fp8.swiglu import Gated

from .measure import Case, relative_error, unequal

LAYERS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
"""Outputs and inputs of DeepSeek-V3's matrices."""
TOKENS = (64, 128, 4096)
EXPERTS, ROWS = 8, 4096
"""Experts of one GPU, and rows of each."""
OURS = Kernels()
TILE = (1, 128)
Calls = dict[str, Callable[[], object]]


def quantisers(device: str, rows: int, columns: int) -> Iterator[Case]:
    x = torch.randn(rows, columns, device=device).bfloat16()
    for name, tile in (("1x128", (1, 128)), ("128x1", (128, 1)), ("128x128", (128, 128))):
        run = lambda tile=tile: OURS.quantise(x, tile, Rule())  # noqa: E731
        error = lambda tile=tile: differing(OURS.quantise(x, tile, Rule()), quantise(x, tile, Rule()))  # noqa: E731
        nbytes = (3 + 4 / (tile[0] * tile[1])) * x.numel()
        yield Case(f"quantise {name} of {rows}x{columns}", run, error, 0, nbytes, goal=0.75)


def weights(device: str, experts: int, n: int, k: int) -> Iterator[Case]:
    """Stacked matrices to codes and transposed codes, and back."""
    w = torch.randn(experts, n, k, device=device).bfloat16()
    right = quantise(w, (128, 128), Rule())
    run = lambda: OURS.weight(w, (128, 128), Rule(), turned=True)  # noqa: E731
    error = lambda: differing(run(), right) + differing(run().T, right.T)  # noqa: E731
    yield Case(f"stack {experts}x{n}x{k} with its transpose", run, error, 0, 4 * w.numel(), goal=0.75)
    back = lambda: OURS.values(right, torch.bfloat16)  # noqa: E731
    yield Case(f"dequantise {experts}x{n}x{k}", back, lambda: unequal(back(), right.values(torch.bfloat16)), 0, 3 * w.numel(), goal=0.75)


def tokens(device: str, sizes: list[int], columns: int) -> Iterator[Case]:
    """Codes along tokens, transposed, from numbers and from codes along channels."""
    x = torch.randn(sum(sizes), columns, device=device).bfloat16()
    tiles, shape = tiles_of(sizes, x.device), f"{len(sizes)} x {max(sizes)}x{columns}"
    for name, source, read in (("numbers", x, 2), ("codes", quantise(x, TILE, Rule()), 1)):
        run = lambda source=source: along_tokens(source, tiles, Rule(), x.dtype)  # noqa: E731
        whole = source if isinstance(source, Tensor) else source.values(x.dtype)
        right = [quantise(rows, (128, 1), Rule()) for rows in whole.split(sizes)]
        error = lambda run=run, right=right: unpadded(run(), right)  # noqa: E731
        yield Case(f"tokens from {name}, {shape}", run, error, 0, (read + 1 + 4 / 128) * x.numel(), goal=0.75)


def unpadded(found: Quantised, right: list[Quantised]) -> int:
    """Codes and factors that differ from those of each expert's rows, which take whole tiles."""
    wrong = column = 0
    for q in right:
        rows, tiles = q.codes.shape[0], q.scale.shape[0]
        wrong += unequal(found.codes[:, column : column + rows].T, q.codes)
        wrong += unequal(found.scale[:, column // 128 : column // 128 + tiles].T, q.scale)
        column += 128 * tiles
    return wrong


def norms(device: str, rows: int, size: int) -> Iterator[Case]:
    x, gain = torch.randn(rows, size, device=device).bfloat16(), torch.rand(size, device=device)
    right = torch.nn.functional.rms_norm(x.double(), (size,), gain.double(), 1e-6)

    def run() -> tuple[Tensor, Quantised]:
        made = OURS.norm(x, gain, 1e-6, TILE, Rule())
        assert made is not None
        return made

    def error() -> float:
        y, codes = run()
        return differing(codes, quantise(y, TILE, Rule())) + relative_error(y, right)

    plain = lambda: torch.nn.functional.rms_norm(x, (size,), gain.bfloat16(), 1e-6)  # noqa: E731
    peers: Calls = {"torch, then quantise": lambda: OURS.quantise(plain(), TILE, Rule())}
    yield Case(f"norm {rows}x{size}", run, error, 3e-3, (5 + 4 / 128) * x.numel(), goal=0.75, peers=peers)


def gates(device: str, rows: int, width: int) -> Iterator[Case]:
    """SwiGLU of experts: its result and its inputs as codes, and its gradients from these."""
    x = Gated((torch.randn(rows, 2 * width, device=device).bfloat16(),), torch.rand(rows, 1, device=device).bfloat16())
    run = lambda: OURS.gated(x, TILE, Rule(), numbers=False, codes=True)  # noqa: E731

    def error() -> float:
        made = OURS.gated(x, TILE, Rule(), numbers=True, codes=True)
        assert made.numbers is not None
        kept, right = made.before.inputs[0], quantise(x.inputs[0], TILE, Rule())
        assert isinstance(kept, Quantised)
        wrong = differing(run().rows, quantise(made.numbers, TILE, Rule())) + differing(kept, right)
        return wrong + relative_error(made.numbers, x.hidden())

    peers: Calls = {"torch, then quantise": lambda: OURS.quantise(x.hidden(), TILE, Rule())}
    yield Case(f"swiglu {rows}x{width}", run, error, 1e-3, (4 + 3 * (1 + 4 / 128)) * rows * width, goal=0.75, peers=peers)
    before, grad = run().before, torch.randn(rows, width, device=device).bfloat16()
    back = lambda: OURS.gated_gradients(before, grad)  # noqa: E731

    def slopes() -> float:
        found = zip(back(), before.numbers(OURS.values).gradients(grad), strict=True)
        return max(relative_error(ours, theirs) for ours, theirs in found if ours is not None and theirs is not None)

    nbytes = (2 + 2 * (1 + 4 / 128) + 4) * rows * width
    yield Case(f"swiglu-backward {rows}x{width}", back, slopes, 5e-3, nbytes, goal=0.75)


def products(device: str, m: int, n: int, k: int) -> Iterator[Case]:
    a, b = torch.randn(m, k, device=device).bfloat16(), torch.randn(n, k, device=device).bfloat16()
    x, w = quantise(a, (1, 128), Rule()), quantise(b, (128, 128), Rule())
    forward = lambda: OURS.product(x, w, torch.bfloat16)  # noqa: E731
    peers = {"bf16": lambda: a @ b.T, "fp8 with quantisation": lambda: OURS.product(OURS.quantise(a, (1, 128), Rule()), w, torch.bfloat16)}
    peers |= {"torch scaled_mm, one factor": lambda: one_factor(x.codes, w.codes)}
    error = lambda: norm_error(OURS.product(x, w, torch.float32), x, w)  # noqa: E731
    peers |= deepgemm("fp8_gemm_nt", x, w, torch.empty(m, n, dtype=torch.bfloat16, device=device))
    goal = 0.6 if m <= 64 else 0.5
    yield Case(f"product {m}x{n}x{k}", forward, error, 1e-3, m * k + n * k + 2 * m * n, 2 * m * n * k, "fp8", goal, peers)


def weight_gradients(device: str, sizes: list[int], n: int, k: int) -> Iterator[Case]:
    """Of all experts, or of one dense layer: the product alone, and with the two launches that make its codes."""
    m = sum(sizes)
    dy, x = torch.randn(m, n, device=device).bfloat16(), torch.randn(m, k, device=device).bfloat16()
    sides = AlongTokens(dy, (128, 1), Rule(), dy.dtype), AlongTokens(quantise(x, TILE, Rule()), (128, 1), Rule(), x.dtype)
    tiles = tiles_of(sizes, dy.device)
    left, right = (along_tokens(side.source, tiles, side.rule, side.dtype) for side in sides)
    run = lambda: weight_gradient(left, right, tiles)  # noqa: E731

    def error() -> float:
        exact = torch.stack([a.T @ b for a, b in zip(dy.double().split(sizes), sides[1].numbers(OURS).double().split(sizes), strict=True)])
        whole = OURS.weight_gradient(*sides, sizes)
        ours = [Quantised(q.codes[:, a * 128 : b * 128], q.scale[:, a:b], q.tile) for q in (left, right) for a, b in spans]
        again = torch.stack(
            [a.values().double() @ b.values().double().T for a, b in zip(ours[: len(spans)], ours[len(spans) :], strict=True)]
        )
        return max(relative_error(run(), again), relative_error(whole, again)) if relative_error(whole, exact) < 0.06 else 1.0

    ends = tiles.ends.tolist()
    spans = list(pairwise(ends))
    offsets = torch.tensor(sizes, device=device).cumsum(0, dtype=torch.int32)
    peers: Calls = {"bf16 grouped_mm": lambda: torch._grouped_mm(dy.T, x, offs=offsets)} if len(sizes) > 1 else {"bf16": lambda: dy.T @ x}
    peers |= {"with quantisation": lambda: OURS.weight_gradient(*sides, sizes)}
    nbytes, flops = m * (n + k) + 4 * len(sizes) * n * k, 2 * m * n * k
    yield Case(f"weight-gradient {len(sizes)} x {n}x{k} of {sizes[0]}", run, error, 1e-3, nbytes, flops, "fp8", 0.25, peers)


def grouped(device: str, experts: int, rows: int, n: int, k: int) -> Iterator[Case]:
    a, b = torch.randn(experts * rows, k, device=device).bfloat16(), torch.randn(experts, n, k, device=device).bfloat16()
    x, w = quantise(a, (1, 128), Rule()), quantise(b, (128, 128), Rule())
    sizes, offsets = [rows] * experts, torch.arange(1, experts + 1, device=device, dtype=torch.int32) * rows
    flops = 2 * experts * rows * n * k
    run = lambda: OURS.grouped(x, w, sizes, torch.bfloat16)  # noqa: E731

    def error() -> float:
        found = OURS.grouped(x, w, sizes, torch.float32)[:rows]
        return norm_error(found, Quantised(x.codes[:rows], x.scale[:rows], x.tile), Quantised(w.codes[0], w.scale[0], w.tile))

    peers: Calls = {"bf16 grouped_mm": lambda: torch._grouped_mm(a, b.transpose(1, 2), offs=offsets)}
    owner = torch.arange(experts, device=device, dtype=torch.int32).repeat_interleave(rows)
    peers |= deepgemm("m_grouped_fp8_gemm_nt_contiguous", x, w, torch.empty(len(a), n, dtype=torch.bfloat16, device=device), owner)
    yield Case(f"grouped {experts} x {rows}x{n}x{k}", run, error, 1e-3, a.numel() + b.numel(), flops, "fp8", 0.45, peers)


def masked(device: str, rows: list[int], room: int, n: int, k: int) -> Iterator[Case]:
    """Decoding: a few rows of many experts, counted on the device."""
    x, w = (quantise(torch.randn(len(rows), size, k, device=device).bfloat16(), t, Rule()) for size, t in ((room, TILE), (n, (128, 128))))
    counts, total = torch.tensor(rows, dtype=torch.int32, device=device), sum(rows)
    run = lambda: OURS.masked(x, w, counts, torch.bfloat16)  # noqa: E731

    def error() -> float:
        found = OURS.masked(x, w, counts, torch.float32)
        a, b = (q.values() for q in (x, w))
        right = [a[e, :size].double() @ b[e].double().T for e, size in enumerate(rows)]
        return relative_error(torch.cat([found[e, :size] for e, size in enumerate(rows)]), torch.cat(right))

    out = torch.empty(len(rows), room, n, dtype=torch.bfloat16, device=device)
    peers = deepgemm("m_grouped_fp8_gemm_nt_masked", x, w, out, counts, max(1, total // len(rows)))
    nbytes, flops = w.codes.numel() + total * (k + 2 * n), 2 * total * n * k
    yield Case(f"masked {len(rows)} x {room}x{n}x{k}", run, error, 1e-3, nbytes, flops, "fp8", 0.6, peers)


def deepgemm(name: str, a: Quantised, b: Quantised, out: Tensor, *rest: Any) -> Calls:
    """DeepGEMM's function of that name, if it is installed."""
    if not find_spec("deep_gemm"):
        return {}
    function = getattr(importlib.import_module("deep_gemm"), name)
    return {"DeepGEMM": lambda: function((a.codes, a.scale), (b.codes, b.scale), out, *rest)}


def differing(ours: Quantised, expected: Quantised) -> int:
    """Codes and factors that differ."""
    return unequal(ours.codes, expected.codes) + unequal(ours.scale, expected.scale)


def one_factor(a: Tensor, b: Tensor) -> Tensor:
    """torch's FP8 product with one factor for each operand, which is cuBLAS's fastest."""
    one = torch.ones((), device=a.device)
    return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=False)


def norm_error(found: Tensor, a: Quantised, b: Quantised) -> float:
    """The relative error of `a @ b.T` against float64 on the same codes."""
    return relative_error(found, a.values().double() @ b.values().double().T)


def cases(device: str, small: bool) -> Iterator[Case]:
    """All of them; `small` ones for the interpreter."""
    if small:
        yield from quantisers(device, 130, 300)
        yield from weights(device, 2, 140, 130)
        yield from tokens(device, [3, 0, 140], 70)
        yield from norms(device, 5, 300)
        yield from gates(device, 20, 256)
        yield from products(device, 70, 260, 300)
        yield from weight_gradients(device, [150], 70, 130)
        yield from weight_gradients(device, [20, 20], 70, 130)
        yield from grouped(device, 3, 20, 140, 260)
        yield from masked(device, [3, 0, 20], 20, 140, 144)
        return
    yield from quantisers(device, 8192, 7168)
    yield from weights(device, 32, 4096, 7168)
    for columns in (7168, 2048):
        yield from tokens(device, [ROWS] * EXPERTS, columns)
    yield from norms(device, 8192, 7168)
    yield from norms(device, 8192, 1536)
    yield from gates(device, EXPERTS * ROWS, 2048)
    for n, k in LAYERS:
        for m in TOKENS:
            yield from products(device, m, n, k)
    yield from products(device, 4096, 24576, 7168)
    for n, k in ((4096, 7168), (7168, 2048)):
        yield from weight_gradients(device, [4096], n, k)
        yield from weight_gradients(device, [ROWS] * EXPERTS, n, k)
        yield from grouped(device, EXPERTS, ROWS, n, k)
        yield from masked(device, [24] * 32, 64, n, k)
