"""`python -m benchmarks.fp8`: what FP8 training, emulated on a CPU, costs beside bf16: steps of the same model on the same rows, in turns.

Times are of forward and backward passes, medians over rounds; the optimizer is the same for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import bestiary
from bestiary.core.contracts import Batch

PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"use": "bf16"},
    "fp8": {"use": "fp8"},
    "fp8, fp32 factors": {"use": "fp8", "scales": "fp32"},
    "fp8, Hopper's sums": {"use": "fp8", "accumulation": "hopper"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="deepseek-v3-micro", help="a manifest")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = {name: step(options.model, precision, options.rows, options.length) for name, precision in PRECISIONS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, run in steps.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(found) for name, found in times.items()}
    table = Table(title=f"{options.model}, {options.rows} x {options.length} tokens, {options.threads} thread(s), forward and backward")
    for heading in ("precision", "s", "times bf16"):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for name, seconds in medians.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / medians['bf16']:.2f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "seconds": medians}, indent=2) + "\n")


def step(model: str, precision: dict[str, Any], rows: int, length: int) -> Callable[[], None]:
    """One step of a model, already warm."""
    changes = {f"precision.{name}": value for name, value in precision.items()}
    built = bestiary.create_model(bestiary.resolve(model, set=changes), seed=0).train()
    tokens = torch.randint(256, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def run() -> None:
        built.zero_grad()
        built.parallelism.step(built, batch)

    run()
    return run


if __name__ == "__main__":
    main()
