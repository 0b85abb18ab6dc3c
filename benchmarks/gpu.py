"""Every kernel on this machine's GPU: right, and how fast beside its peers and beside the card's own limits.

    python benchmarks/gpu.py [--out FOLDER] [--seconds 400]

Each case is first checked (quantisers against torch bit by bit, products against float64 on the same codes), then timed with CUDA events,
a cold L2 cache and the median of many calls, and printed as a share of what the card itself was measured to do: the bandwidth of
copying 1 GiB, and twice the rate of the best bf16 product. Shapes are those of DeepSeek-V3's layers. Results go to
`benchmarks/results/`, with date and device. Small cases are also checked by the tests, without a GPU, in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bestiary.plugins.fp8.backends.emulation import Emulation
from bestiary.plugins.fp8.backends.kernels import Kernels
from bestiary.plugins.fp8.quantize import Quantised, Rule, quantise

RESULTS = Path(__file__).parent / "results"
LAYERS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
"""Outputs and inputs of DeepSeek-V3's matrices."""
TOKENS = (64, 128, 4096)
EXPERTS, ROWS = 8, 4096
"""Experts of one GPU, and rows of each."""
OURS, TORCH = Kernels(), Emulation()


@dataclass
class Case:
    """One call to be checked and timed."""

    name: str
    run: Callable[[], object]
    error: Callable[[], float]
    """How wrong `run` is: wrong codes, or the relative error of a product in the Frobenius norm."""
    bound: float
    nbytes: float = 0
    """Read and written at least."""
    flops: float = 0
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass
class Row:
    """What was found for one case."""

    name: str
    error: float
    right: bool
    microseconds: float | None = None
    share: float | None = None
    """Of the card's limit."""
    peers: dict[str, float | str] = field(default_factory=dict)
    """Microseconds, or why there are none."""


def quantisers(device: str, rows: int, columns: int) -> Iterator[Case]:
    x = torch.randn(rows, columns, device=device).bfloat16()
    for name, tile in (("1x128", (1, 128)), ("128x1", (128, 1)), ("128x128", (128, 128))):

        def error(tile: tuple[int, int] = tile) -> float:
            ours, expected = OURS.quantise(x, tile, Rule()), quantise(x, tile, Rule())
            return float((ours.codes.view(torch.uint8) != expected.codes.view(torch.uint8)).sum() + (ours.scale != expected.scale).sum())

        per_number = 3 + 4 / (tile[0] * tile[1])
        run = lambda tile=tile: OURS.quantise(x, tile, Rule())  # noqa: E731
        yield Case(f"quantise {name} of {rows}x{columns}", run, error, 0, per_number * x.numel())


def products(device: str, m: int, n: int, k: int) -> Iterator[Case]:
    a, b = torch.randn(m, k, device=device).bfloat16(), torch.randn(n, k, device=device).bfloat16()
    x, w = quantise(a, (1, 128), Rule()), quantise(b, (128, 128), Rule())
    forward = lambda: OURS.product(x, w, torch.bfloat16)  # noqa: E731
    peers = {"bf16": lambda: a @ b.T, "fp8 with quantisation": lambda: OURS.product(OURS.quantise(a, (1, 128), Rule()), w, torch.bfloat16)}
    peers |= {"torch scaled_mm, one factor": lambda: one_factor(x.codes, w.codes)}
    error = lambda: norm_error(OURS.product(x, w, torch.float32), x, w)  # noqa: E731
    yield Case(f"product {m}x{n}x{k}", forward, error, 1e-3, m * k + n * k + 2 * m * n, 2 * m * n * k, peers)


def weight_gradients(device: str, m: int, n: int, k: int) -> Iterator[Case]:
    dy, x = torch.randn(m, n, device=device).bfloat16(), torch.randn(m, k, device=device).bfloat16()
    left, right = (quantise(t, (128, 1), Rule()).T for t in (dy, x))
    run = lambda: OURS.product(left, right, torch.float32)  # noqa: E731
    error = lambda: norm_error(run(), left, right)  # noqa: E731
    yield Case(f"weight gradient {n}x{k} of {m}", run, error, 1e-3, m * (n + k) + 4 * n * k, 2 * m * n * k, {"bf16": lambda: dy.T @ x})


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
    yield Case(f"grouped {experts} x {rows}x{n}x{k}", run, error, 1e-3, a.numel() + b.numel(), flops, peer)


def one_factor(a: Tensor, b: Tensor) -> Tensor:
    """torch's FP8 product with one factor for each operand, which is cuBLAS's fastest."""
    one = torch.ones((), device=a.device)
    return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=False)


def norm_error(found: Tensor, a: Quantised, b: Quantised) -> float:
    """Against float64, in slices of rows, so that memory stays small."""
    wrong = right = 0.0
    matrix = b.values().double().T
    for start in range(0, len(found), 512):
        rows = Quantised(a.codes[start : start + 512], a.scale[start : start + 512], a.tile)
        exact = (rows.values() if a.tile[0] == 1 else a.values()[start : start + 512]).double() @ matrix
        wrong += float((found[start : start + 512].double() - exact).square().sum())
        right += float(exact.square().sum())
    return (wrong / right) ** 0.5 if right else wrong


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


def median(call: Callable[[], object]) -> float:
    """Microseconds, with events and a cold L2 cache."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=20, rep=100, return_mode="median")) * 1e3


def limits(device: str) -> dict[str, float]:
    """Bytes per second of copying, and FLOPs per second of bf16 products, as measured here."""
    big = torch.empty(1 << 29, dtype=torch.int16, device=device)
    to = torch.empty_like(big)
    copy = 2 * big.nbytes / median(lambda: to.copy_(big)) * 1e6
    rates = []
    for size in (4096, 8192):
        a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
        rates.append(2 * size**3 / median(lambda a=a, b=b: a @ b) * 1e6)
    return {"copy": copy, "bf16": max(rates)}


def checked(case: Case) -> Row:
    """Whether a case is right."""
    error = case.error()
    return Row(case.name, error, error <= case.bound)


def timed(case: Case, row: Row, card: dict[str, float]) -> None:
    """Fills in times and the share of the card's limit, that of memory or of products, whichever takes longer."""
    row.microseconds = median(case.run)
    least = max(case.nbytes / card["copy"], case.flops / (2 * card["bf16"])) * 1e6
    row.share = least / row.microseconds
    for name, call in case.peers.items():
        try:
            row.peers[name] = median(call)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            row.peers[name] = str(error).splitlines()[0][:100]


def report(row: Row) -> str:
    """One line."""
    line = f"{row.name:<40} {'ok' if row.right else 'WRONG':<6} {row.error:>9.2g}"
    if row.microseconds is None or row.share is None:
        return line
    peers = ", ".join(f"{name} {value:.0f} us" if isinstance(value, float) else f"{name}: {value}" for name, value in row.peers.items())
    return f"{line} {row.microseconds:>10.1f} us {row.share:>7.0%}  {peers}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=400, help="no case begins later")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here. The tests check the kernels without one: TRITON_INTERPRET=1 pytest tests/plugins/fp8/kernels")
    torch.manual_seed(0)
    started, rows = time.monotonic(), []
    card, device = limits("cuda"), torch.cuda.get_device_name()
    print(f"{device}: copy {card['copy'] / 1e12:.2f} TB/s, bf16 {card['bf16'] / 1e12:.0f} TFLOPS")
    for case in cases("cuda", small=False):
        if time.monotonic() - started > options.seconds:
            print(f"stopped after {options.seconds:.0f} s; {case.name} and what follows were left out")
            break
        row = checked(case)
        timed(case, row, card)
        rows.append(row)
        print(report(row), flush=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    table = {"device": device, "date": now, "torch": torch.__version__, "limits": card, "rows": [asdict(row) for row in rows]}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"gpu-{device.lower().replace(' ', '-')}.json").write_text(json.dumps(table, indent=2) + "\n")
    if not all(row.right for row in rows):
        sys.exit("some kernels are wrong")


if __name__ == "__main__":
    main()
