"""Many cases in several processes, with counts of what happened."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .drive import drive


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads hostile checkpoints and counts what happens.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.out:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            counts = drive(given.cases, given.seed, Path(folder))
        given.out.write_text(json.dumps(counts))
        return 0
    return _spread(given.cases, given.seed, given.processes)


def _spread(cases: int, seed: int, processes: int) -> int:
    started, total, failed = time.perf_counter(), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-counts-") as folder:
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.registry.fuzz"]
        shares = [cases // processes + (index < cases % processes) for index in range(processes)]
        outs = [Path(folder) / f"{index}.json" for index in range(processes)]
        running = [
            subprocess.Popen([*command, "--cases", str(share), "--seed", str(seed + index), "--out", str(out)])
            for index, (share, out) in enumerate(zip(shares, outs, strict=True))
        ]
        for process, out in zip(running, outs, strict=True):
            failed += process.wait() != 0
            total += Counter(json.loads(out.read_text())) if out.exists() else Counter()
    for key, count in sorted(total.items()):
        print(f"{count:>9,}  {key}")
    print(f"{sum(total.values()):>9,}  cases in {time.perf_counter() - started:,.0f} s, {failed} of {processes} processes failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
