"""Processes that compute together on this machine, kept from one test to the next, since starting them costs seconds."""

from __future__ import annotations

import contextlib
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import distributed as dist
from torch import multiprocessing
from torch._C._distributed_c10d import FileStore
from torch.distributed.tensor import debug

POLL = 0.01
"""Seconds between looks at the processes."""


class ProcessesFailed(RuntimeError):
    """What processes raised, each with its rank and traceback."""


class Processes:
    """A pool of processes connected by gloo. Each call makes a new world of as many as it needs."""

    def __init__(self, count: int, *, timeout: float = 60.0) -> None:
        """
        Args:
            count: processes, the most that a call may use.
            timeout: seconds that a rank waits for another.
        """
        self.count, self.timeout = count, timeout
        self._folder = tempfile.TemporaryDirectory(prefix="bestiary-processes-")
        self._calls = 0
        self._workers: list[tuple[Any, Connection]] = []

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stop()
        self._folder.cleanup()

    def run(self, work: Callable[..., Any], *arguments: Any, world: int | None = None) -> list[Any]:
        """`work(*arguments)` in each process of a world, which `torch.distributed` connects; results by rank.

        Args:
            work: a function that a new process can import.
            arguments: for all of them.
            world: how many processes; all by default.

        Raises:
            ProcessesFailed: with every traceback. Processes that do not end within twice the timeout are killed.
        """
        size = self.count if world is None else world
        if size > self.count:
            raise ValueError(f"{size} processes are asked of a pool of {self.count}.")
        if not self._workers:
            self._start()
        self._calls += 1
        meeting = str(Path(self._folder.name, f"world-{self._calls}"))
        workers = self._workers[:size]
        for rank, (_, pipe) in enumerate(workers):
            pipe.send((work, arguments, rank, size, meeting, self.timeout))
        found = self._collect(workers)
        failures = {rank: error for rank, (result, error) in found.items() if error is not None}
        if failures:
            self._stop()
            raise ProcessesFailed("\n".join(f"rank {rank} of {size}: {error}" for rank, error in sorted(failures.items())))
        return [found[rank][0] for rank in range(size)]

    def _collect(self, workers: list[tuple[Any, Connection]]) -> dict[int, tuple[Any, str | None]]:
        found: dict[int, tuple[Any, str | None]] = {}
        until = time.monotonic() + 2 * self.timeout
        while len(found) < len(workers):
            for rank, (process, pipe) in enumerate(workers):
                if rank in found:
                    continue
                if pipe.poll():
                    with contextlib.suppress(EOFError):
                        found[rank] = pipe.recv()
                        continue
                if not process.is_alive():
                    found[rank] = None, f"ended with exit code {process.exitcode}"
                elif time.monotonic() > until:
                    found[rank] = None, f"still running after {2 * self.timeout:g} seconds"
            time.sleep(POLL)
        return found

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for _ in range(self.count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._workers.append((process, here))

    def _stop(self) -> None:
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()
        self._workers = []


def _serve(pipe: Connection) -> None:
    """What a process of the pool does until it is killed, or nobody is left to ask."""
    torch.set_num_threads(1)
    while True:
        try:
            work, arguments, rank, size, meeting, timeout = pipe.recv()
        except EOFError:
            return
        store = FileStore(meeting, size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
        try:
            reply = work(*arguments), None
        except BaseException:
            reply = None, traceback.format_exc()
        finally:
            dist.destroy_process_group()
            _forget_groups()
        pipe.send(reply)


def _forget_groups() -> None:
    """DTensor remembers how operations spread over a mesh, and takes a mesh of the next world for that of the last."""
    for name in ("_clear_python_sharding_prop_cache", "_clear_fast_path_sharding_prop_cache", "_clear_sharding_prop_cache"):
        if (clear := getattr(debug, name, None)) is not None:
            clear()
