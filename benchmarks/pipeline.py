"""`python -m benchmarks.pipeline`: steps per second of four processes with every schedule, and what overlap hides of late exchanges.

On one machine exchanges between experts are quick, so each is made late by a given time, as it would be between nodes. torch's own
`ScheduleDualPipeV` runs the same stages of the same model with the same late exchanges.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleDualPipeV

import bestiary
from bestiary import testing
from bestiary.core.contracts import Batch
from bestiary.core.exchange import finish
from bestiary.plugins.dualpipe.stage import example

RANKS, MICRO_BATCHES, LENGTH = 4, 16, 256
SCHEDULES: dict[str, dict[str, Any]] = {
    "1f1b": {"use": "pipeline", "schedule": "1f1b"},
    "interleaved": {"use": "pipeline", "schedule": "interleaved"},
    "zb1p": {"use": "pipeline", "schedule": "zb1p"},
    "zb-v": {"use": "pipeline", "schedule": "zb-v"},
    "interleaved-overlap": {"use": "pipeline", "schedule": "interleaved-overlap"},
    "dualpipe-v, no overlap": {"use": "dualpipe-v", "overlap": "none"},
    "dualpipe-v": {"use": "dualpipe-v"},
    "dualpipe": {"use": "dualpipe"},
}
TORCHS = "torch's ScheduleDualPipeV"
MODEL = {
    "model.num_hidden_layers": 8,
    "block.ffn.n_routed_experts": 8,
    "precision.use": "fp32",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 20.0], help="milliseconds that each exchange is late")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    rates: dict[str, dict[str, float]] = {}
    with testing.Processes(RANKS, timeout=120) as processes:
        for latency in arguments.latency:
            for name, options in SCHEDULES.items():
                layout = options | {"pp": RANKS, "micro_batches": MICRO_BATCHES, "latency": latency}
                rates.setdefault(name, {})[f"{latency:g} ms"] = min(processes.run(steps, layout, arguments.rounds, False))
            layout = SCHEDULES["dualpipe-v"] | {"pp": RANKS, "micro_batches": MICRO_BATCHES, "latency": latency}
            rates.setdefault(TORCHS, {})[f"{latency:g} ms"] = min(processes.run(steps, layout, arguments.rounds, True))
    table = Table(title=f"steps per second, {RANKS} processes, {MICRO_BATCHES} micro-batches of {LENGTH} tokens")
    for heading in ("schedule", *next(iter(rates.values()))):
        table.add_column(heading, justify="left" if heading == "schedule" else "right")
    for name, row in rates.items():
        table.add_row(name, *(f"{rate:.3f}" for rate in row.values()))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "steps per second": rates}, indent=2) + "\n")


def steps(layout: dict[str, Any], rounds: int, theirs: bool) -> float:
    """Steps per second of one rank, the median of its rounds."""
    data = bestiary.resolve("deepseek-v3-nano", set=MODEL).table()
    objectives = {key: part for key, part in data["objective"].items() if key != "mtp"}  # its block stops nowhere
    sections = {name: data[name] for name in ("schema", "model", "block", "precision")}
    model = bestiary.create_model({**sections, "objective": objectives, "parallelism": layout}).train()
    tokens = torch.randint(256, (MICRO_BATCHES, LENGTH + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    step = _torchs(model, batch) if theirs else lambda: model.parallelism.step(model, batch)
    step()
    times = []
    for _ in range(rounds):
        model.zero_grad()
        torch.distributed.barrier()
        begin = time.perf_counter()
        step()
        torch.distributed.barrier()
        times.append(time.perf_counter() - begin)
    return 1 / statistics.median(times)


class _Whole(nn.Module):
    """A stage as a plain module: exchanges are waited for where they stand."""

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        for segment in self.stage.segments(int(index[0])):
            x = finish(segment.run(x))
        return x


def _torchs(model: Any, batch: Batch) -> Any:
    """A step by torch's schedule, its stages and its own split of backward passes."""
    ours = model.parallelism
    ours._prepare(model, batch)
    like, ids = (
        example(1, LENGTH, model.manifest.model.hidden_size, torch.float32),
        torch.empty(1, LENGTH, dtype=torch.int64, device="meta"),
    )
    stages = []
    for number, stage in sorted(ours.stages.items()):
        last = number == 2 * RANKS - 1
        loss = torch.empty((), device="meta", requires_grad=True)
        stages.append(
            PipelineStage(
                _Whole(stage),
                number,
                2 * RANKS,
                model.device,
                input_args=ids if number == 0 else like,
                output_args=loss if last else like,
                group=ours.mesh.dense.get_group("pipeline"),
            )
        )
    schedule = ScheduleDualPipeV(stages, MICRO_BATCHES, loss_fn=lambda output, target: output, scale_grads=False)
    indices = torch.arange(MICRO_BATCHES)

    def step() -> None:
        ours._fill(model, batch, model.counts(batch), observe=False)
        arguments = (batch.input_ids,) if 0 in ours.stages else ()
        schedule.step(*arguments, index=indices, target=indices, return_outputs=False)

    return step


if __name__ == "__main__":
    main()
