"""How fast a checkpoint is loaded, and with how much memory: ours beside transformers and beside the machine's own limit.

    python benchmarks/load.py [--manifest deepseek-v3-mini] [--set PATH=VALUE ...] [--fp8] [--repeat 5]

The checkpoint is bf16, or FP8 blocks that become bf16, in a temporary folder, and read from the page cache. The limit is
the time of reading its bytes and copying them once into fresh memory. Every figure is the median over fresh processes, each
of which imports everything first. Memory is the peak of anonymous pages (RssAnon) above what the process had before loading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

METHODS = ("limit", "bestiary", "bestiary-mmap", "transformers")


def read_and_copy(folder: Path) -> object:
    """Reads every shard into a buffer and copies it once, by as many threads as `bestiary.load` takes."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import torch

    parts = [(f, at) for f in sorted(folder.glob("*.safetensors")) for at in range(0, f.stat().st_size, 4 << 20)]

    def part(file: Path, start: int) -> torch.Tensor:
        if not hasattr(local, "buffer"):
            local.buffer = torch.empty(4 << 20, dtype=torch.uint8)
        with open(file, "rb", buffering=0) as stream:
            stream.seek(start)
            got = stream.readinto(local.buffer.numpy().data)
        return local.buffer[:got].clone()

    local = threading.local()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda args: part(*args), parts))


def prepare(method: str) -> Callable[[Path], object]:
    """Imports what a method needs, and returns the call to be measured."""
    import torch

    if method == "limit":
        return read_and_copy
    if method.startswith("bestiary"):
        import bestiary
        from bestiary.registry import fill, plan

        del fill, plan  # they are imported when a load first needs them
        bestiary.create_model("deepseek-v3-nano", device="meta")
        load, reader = bestiary.load, "mmap" if method.endswith("mmap") else "pread"
        return lambda folder: load(folder, reader=reader)
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    with torch.device("meta"):
        AutoModelForCausalLM.from_config(DeepseekV3Config(num_hidden_layers=1, vocab_size=64, hidden_size=64))
    return lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def measure(call: Callable[[Path], object], folder: Path) -> dict[str, float]:
    """Seconds and peak anonymous bytes of one call in this process."""
    before, peak, done = rss_anon(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    held = call(folder)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    peak = max(peak, rss_anon())
    del held
    return {"seconds": seconds, "bytes": peak - before}


def rss_anon() -> int:
    """Anonymous memory of this process in bytes, from /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this benchmark reads RssAnon from Linux' /proc/self/status")


def write_checkpoint(manifest: str, folder: Path, *, set: Sequence[str] = (), fp8: bool = False) -> int:
    """Writes fresh weights; returns the bytes of all tensors."""
    import torch

    import bestiary
    from bestiary.registry.convert.convert import convert
    from bestiary.registry.convert.options import Options

    plain = folder.with_name("bf16") if fp8 else folder
    nbytes = bestiary.save(bestiary.create_model(manifest, set=set, dtype=torch.bfloat16), plain).nbytes
    return convert(plain, folder, Options("fp8")).nbytes if fp8 else nbytes


def run(manifest: str, repeat: int, *, set: Sequence[str] = (), fp8: bool = False) -> dict[str, dict[str, float]]:
    """Medians of every method over `repeat` fresh processes, the methods taking turns."""
    methods = METHODS[:-1] if fp8 else METHODS  # transformers does not read ragged blocks, and needs accelerate for others
    found: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        nbytes = write_checkpoint(manifest, folder, set=set, fp8=fp8)
        read_and_copy(folder)
        for _ in range(repeat):
            for method in methods:
                command = [sys.executable, __file__, "--child", method, "--folder", str(folder)]
                out = subprocess.run(command, capture_output=True, text=True, check=True)
                found[method].append(json.loads(out.stdout.splitlines()[-1]))
    medians = {m: {key: statistics.median(row[key] for row in rows) for key in ("seconds", "bytes")} for m, rows in found.items()}
    for row in medians.values():
        row |= {"GB/s": nbytes / row["seconds"] / 1e9, "memory / checkpoint": row["bytes"] / nbytes}
        row["time / limit"] = row["seconds"] / medians["limit"]["seconds"]
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default="deepseek-v3-mini")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="a change of the manifest")
    parser.add_argument("--fp8", action="store_true", help="store FP8 blocks")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(prepare(options.child), options.folder)))
        return
    rows = run(options.manifest, options.repeat, set=options.set, fp8=options.fp8)
    columns = list(next(iter(rows.values())))
    print(f"{'':<14}" + "".join(f"{column:>22}" for column in columns))
    for method, row in rows.items():
        print(f"{method:<14}" + "".join(f"{row[column]:>22.4g}" for column in columns))


if __name__ == "__main__":
    main()
