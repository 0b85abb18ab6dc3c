"""The kernels of FP8 training: quantisers against torch bit by bit, products against float64 on the same codes.

Shapes are those of DeepSeek-V3's layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bestiary.plugins.fp8.backends.kernels import Kernels
from bestiary.plugins.fp8.quantize import Quantised, Rule, quantise

from .measure import Case, relative_error, unequal

LAYERS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
"""Outputs and inputs of DeepSeek-V3's matrices."""
TOKENS = (64, 128, 4096)
EXPERTS, ROWS = 8, 4096
"""Experts of one GPU, and rows of each."""
OURS = Kernels()


def quantisers(device: str, rows: int, columns: int) -> Iterator[Case]:
    x = torch.randn(rows, columns, device=device).bfloat16()
    for name, tile in (("1x128", (1, 128)), ("128x1", (128, 1)), ("128x128", (128, 128))):
        run = lambda tile=tile: OURS.quantise(x, tile, Rule())  # noqa: E731
        error = lambda tile=tile: differing(OURS.quantise(x, tile, Rule()), quantise(x, tile, Rule()))  # noqa: E731
        nbytes = (3 + 4 / (tile[0] * tile[1])) * x.numel()
        yield Case(f"quantise {name} of {rows}x{columns}", run, error, 0, nbytes, goal=0.75)


def products(device: str, m: int, n: int, k: int) -> Iterator[Case]:
    a, b = torch.randn(m, k, device=device).bfloat16(), torch.randn(n, k, device=device).bfloat16()
    x, w = quantise(a, (1, 128), Rule()), quantise(b, (128, 128), Rule())
    forward = lambda: OURS.product(x, w, torch.bfloat16)  # noqa: E731
    peers = {"bf16": lambda: a @ b.T, "fp8 with quantisation": lambda: OURS.product(OURS.quantise(a, (1, 128), Rule()), w, torch.bfloat16)}
    peers |= {"torch scaled_mm, one factor": lambda: one_factor(x.codes, w.codes)}
    error = lambda: norm_error(OURS.product(x, w, torch.float32), x, w)  # noqa: E731
    goal = 0.6 if m <= 64 else 0.4
    yield Case(f"product {m}x{n}x{k}", forward, error, 1e-3, m * k + n * k + 2 * m * n, 2 * m * n * k, "fp8", goal, peers)


def weight_gradients(device: str, m: int, n: int, k: int) -> Iterator[Case]:
    dy, x = torch.randn(m, n, device=device).bfloat16(), torch.randn(m, k, device=device).bfloat16()
    left, right = (quantise(t, (128, 1), Rule()).T for t in (dy, x))
    run = lambda: OURS.product(left, right, torch.float32)  # noqa: E731
    error = lambda: norm_error(run(), left, right)  # noqa: E731
    nbytes, flops = m * (n + k) + 4 * n * k, 2 * m * n * k
    yield Case(f"weight gradient {n}x{k} of {m}", run, error, 1e-3, nbytes, flops, "fp8", 0.2, {"bf16": lambda: dy.T @ x})


def grouped(device: str, experts: int, rows: int, n: int, k: int) -> Iterator[Case]:
    a, b = torch.randn(experts * rows, k, device=device).bfloat16(), torch.randn(experts, n, k, device=device).bfloat16()
    x, w = quantise(a, (1, 128), Rule()), quantise(b, (128, 128), Rule())
    sizes, offsets = [rows] * experts, torch.arange(1, experts + 1, device=device, dtype=torch.int32) * rows
    flops = 2 * experts * rows * n * k
    run = lambda: OURS.grouped(x, w, sizes, torch.bfloat16)  # noqa: E731

    def error() -> float:
        found = OURS.grouped(x, w, sizes, torch.float32)[:rows]
        return norm_error(found, Quantised(x.codes[:rows], x.scale[:rows], x.tile), Quantised(w.codes[0], w.scale[0], w.tile))

    peer = {"bf16 grouped_mm": lambda: torch._grouped_mm(a, b.transpose(1, 2), offs=offsets)}
    yield Case(f"grouped {experts} x {rows}x{n}x{k}", run, error, 1e-3, a.numel() + b.numel(), flops, "fp8", 0.35, peer)


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
        yield from products(device, 70, 260, 300)
        yield from weight_gradients(device, 150, 70, 130)
        yield from grouped(device, 3, 20, 140, 260)
        return
    yield from quantisers(device, 8192, 7168)
    for n, k in LAYERS:
        for m in TOKENS:
            yield from products(device, m, n, k)
    yield from products(device, 4096, 24576, 7168)
    yield from weight_gradients(device, 4096, 4096, 7168)
    yield from weight_gradients(device, 4096, 7168, 2048)
    yield from grouped(device, EXPERTS, ROWS, 4096, 7168)
    yield from grouped(device, EXPERTS, ROWS, 7168, 2048)
