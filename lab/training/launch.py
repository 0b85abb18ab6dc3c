"""`bestiary train --nproc`: the same command in several processes, by torch's elastic launcher, which `torchrun` is a front of.

When a process fails, the launcher stops the others and starts all of them again, up to `max_restarts` times; a run then goes on from
its last complete checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from ..recipe import Recipe

POLL = 0.1
"""Seconds between looks at the processes."""


def launch(recipe: Recipe, arguments: Sequence[str], *, processes: int, max_restarts: int = 0) -> None:
    """Runs `bestiary` with these arguments in several processes of this machine.

    Args:
        recipe: what is trained, checked here so that a mistake is told once.
        arguments: of every process.
        processes: how many.
        max_restarts: how often all processes are started again after one failed.

    Raises:
        BestiaryError: the recipe wants another number of processes, or a process failed; names it, and what it held.
    """
    manifest = recipe.manifest()
    needed = manifest.parallelism.build(manifest.site).processes
    if processes != needed:
        fact = f"--nproc {processes}, and parallelism.use = '{manifest.parallelism.use}' is for {needed} processes."
        raise BestiaryError(f"{fact} Say --nproc {needed}, or change set.parallelism.")
    # Without this, restarted processes meet the connections of those that died (pytorch#135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=POLL,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "bestiary", *arguments)
    except ChildFailedError as error:
        raise _told(error, manifest) from None


def _told(error: ChildFailedError, manifest: Manifest) -> BestiaryError:
    rank, first = error.get_first_failure()
    held = manifest.parallelism.build(manifest.site).describe(manifest, rank)
    told = f"rank {rank}, which has {held}, {_how(first)}."
    reason = first.message if isinstance(first.message, str) else dict(first.message).get("message", "")
    rest = "The others were stopped; the same command goes on from the last complete checkpoint."
    return BestiaryError("\n".join(part for part in (told, str(reason).strip(), rest) if part and not part.startswith("Signal")))


def _how(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was ended by {signal.Signals(-failure.exitcode).name}"
    return f"failed with exit code {failure.exitcode}; what it said stands above"
