"""`make bench`: ours beside transformers on `deepseek-v3-mini` in bf16, each with its share of the machine's limit.

Engines take turns, so that a slow spell of a shared machine falls on all of them; each figure is the best of its rounds,
and the limits are measured before and after.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import bestiary
from benchmarks import limits, load
from benchmarks.worker import CONTEXT, MODES, PROMPT, TRAIN_BATCH, TRAIN_LENGTH
from bestiary.core.accounting import account
from bestiary.core.manifest import Manifest

ENGINES = {
    "train": ["ours", "transformers:grouped_mm", "transformers:grouped_mm+compile"],
    "train+adamw": ["ours", "transformers:grouped_mm"],
    "prefill": ["ours", "transformers:grouped_mm"],
    "decode-1": ["ours", "transformers:batched_mm", "transformers:batched_mm+compile"],
    "decode-8": ["ours", "transformers:batched_mm", "transformers:batched_mm+compile"],
}
"""The variants of transformers that were fastest when all were tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--only", choices=["ours", "transformers"], help="one engine only")
    parser.add_argument("--eager", action="store_true", help="leave out compiled variants, which take minutes to compile")
    parser.add_argument("--no-load", action="store_true", help="leave out loading")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    console, manifest = Console(), bestiary.resolve("deepseek-v3-mini")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "mini"
        bestiary.save(bestiary.create_model(manifest, dtype=torch.bfloat16), checkpoint, max_shard_size="64MB")
        machine = limits.measure()
        rates = measure(checkpoint, arguments)
        machine = _better(machine, limits.measure())
    report(console, manifest, machine, rates)
    loading = {} if arguments.no_load else load.run(manifest.name, arguments.rounds + 1)
    report_loading(console, loading)
    if arguments.json:
        figures = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        arguments.json.write_text(
            json.dumps({**figures, "limits": vars(machine), "tokens per second": rates, "loading": loading}, indent=2) + "\n"
        )


def measure(checkpoint: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The best rate of every engine in every mode."""
    tasks = [
        (mode, engine)
        for _ in range(arguments.rounds)
        for mode in arguments.modes
        for engine in ENGINES[mode]
        if (not arguments.only or engine.startswith(arguments.only)) and not (arguments.eager and "compile" in engine)
    ]
    rates: dict[str, dict[str, float]] = {mode: {} for mode in arguments.modes}
    for mode, engine in track(tasks, description="measuring", console=Console(stderr=True)):
        command = [sys.executable, "-m", "benchmarks.worker", engine, mode, str(checkpoint)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        rate = json.loads(done.stdout.splitlines()[-1])["rate"]
        rates[mode][engine] = max(rate, rates[mode].get(engine, 0.0))
    return rates


def report(console: Console, manifest: Manifest, machine: limits.Limits, rates: dict[str, dict[str, float]]) -> None:
    """Prints the table."""
    console.print(
        f"machine: {machine.flops / 1e9:.0f} GFLOP/s bf16, reads {machine.read / 1e9:.1f} GB/s, copies {machine.copy / 1e9:.1f} GB/s, "
        f"{torch.get_num_threads()} threads"
    )
    table = Table(title="tokens per second, deepseek-v3-mini, bf16", title_justify="left")
    for heading in ("mode", "engine", "tokens/s", "of the limit", "MFU", "non-causal", "ours is"):
        table.add_column(heading, justify="left" if heading in ("mode", "engine") else "right")
    for mode, engines in rates.items():
        limit = _limit(manifest, machine, mode)
        for engine, rate in engines.items():
            ratio = f"{engines['ours'] / rate:.2f} x" if engine != "ours" and "ours" in engines else ""
            table.add_row(mode, engine, f"{rate:,.0f}", f"{rate / limit:.1%}", *_mfu(manifest, machine, mode, rate), ratio)
        table.add_section()
    console.print(table)


def _mfu(manifest: Manifest, machine: limits.Limits, mode: str, rate: float) -> list[str]:
    """Counted training FLOPs as a share of the product rate: causal attention, and the full square; nothing but training has it."""
    if not mode.startswith("train"):
        return ["", ""]
    figures = account(manifest, sequence_length=TRAIN_LENGTH)
    return [f"{rate * flops / machine.flops:.1%}" for flops in (figures.flops_training, figures.flops_training_noncausal)]


def report_loading(console: Console, loading: dict[str, dict[str, float]]) -> None:
    """Prints what `benchmarks/load.py` measured."""
    if not loading:
        return
    table = Table(
        title="loading the same checkpoint from the page cache; limit: reading its bytes and copying them once", title_justify="left"
    )
    table.add_column("engine")
    for heading in ("seconds", "GB/s", "time / limit", "peak memory / checkpoint"):
        table.add_column(heading, justify="right")
    for engine, row in loading.items():
        table.add_row(engine, *(f"{row[key]:.3g}" for key in ("seconds", "GB/s", "time / limit", "memory / checkpoint")))
    console.print(table)


def _limit(manifest: Manifest, machine: limits.Limits, mode: str) -> float:
    tokens = TRAIN_BATCH * TRAIN_LENGTH
    match mode:
        case "train" | "train+adamw":
            return limits.training(manifest, machine, length=TRAIN_LENGTH, optimizer="adamw" in mode, tokens=tokens)
        case "prefill":
            return limits.prefill(manifest, machine, length=PROMPT)
        case _:
            return limits.decoding(manifest, machine, batch=int(mode.rpartition("-")[2]), context=CONTEXT)


def _better(a: limits.Limits, b: limits.Limits) -> limits.Limits:
    return limits.Limits(max(a.flops, b.flops), max(a.read, b.read), max(a.copy, b.copy))


if __name__ == "__main__":
    main()
