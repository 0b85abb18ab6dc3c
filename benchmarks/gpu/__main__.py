"""Every kernel on this machine's GPU: right, and how fast beside its peers and beside the card's own limits.

    python -m benchmarks.gpu [--only fp8 moe mla] [--name WORD] [--out FOLDER] [--seconds 400]

Each case is first checked (quantisers against torch bit by bit, products against float64 on the same codes), then timed with CUDA events,
a cold L2 cache and the median of many calls, and printed as a share of what the card itself was measured to do: the bandwidth of
copying 1 GiB, and the rate of the best bf16 product, or twice that in FP8. Shapes are those of DeepSeek-V3's layers. Results go to
`benchmarks/results/`, with date and device. Small cases are also checked by the tests, without a GPU, in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from .measure import Case, Row, checked, limits, report, table, timed

RESULTS = Path(__file__).parent.parent / "results"
PLUGINS = ("fp8", "moe", "mla")


def cases(plugins: list[str], word: str) -> Iterator[Case]:
    """Those of some plugins whose names hold a word."""
    for plugin in plugins:
        yield from (case for case in importlib.import_module(f".{plugin}", __package__).cases("cuda", small=False) if word in case.name)


def measured(options: argparse.Namespace, card: dict[str, float]) -> list[Row]:
    """Checks, times and prints one case after another, until time is up."""
    started, rows = time.monotonic(), []
    for case in cases(options.only, options.name):
        if time.monotonic() - started > options.seconds:
            print(f"stopped after {options.seconds:.0f} s; {case.name} and what follows were left out")
            break
        row = checked(case)
        timed(case, row, card)
        rows.append(row)
        print(report(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PLUGINS, default=PLUGINS, help="plugins whose kernels are measured")
    parser.add_argument("--name", default="", help="cases whose names hold this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=400, help="no case begins later")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here. The tests check the kernels without one: TRITON_INTERPRET=1 pytest tests/plugins/fp8/kernels")
    torch.manual_seed(0)
    card, device = limits("cuda"), torch.cuda.get_device_name()
    print(f"{device}: copy {card['copy'] / 1e12:.2f} TB/s, bf16 {card['bf16'] / 1e12:.0f} TFLOPS")
    rows = measured(options, card)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"device": device, "date": now, "torch": torch.__version__, "limits": card, "rows": [asdict(row) for row in rows]}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"gpu-{device.lower().replace(' ', '-')}.json").write_text(json.dumps(found, indent=2) + "\n")
    Console().print(table(rows, f"{device}, torch {torch.__version__}, {now}"))
    if not all(row.right for row in rows):
        sys.exit("some kernels are wrong")


if __name__ == "__main__":
    main()
