"""Runs as tasks of a Ray cluster: the one that RAY_ADDRESS names, or one on this machine for as long as the study takes.

A task starts the same process as the local engine does, on the node where Ray puts it. Folders of runs, data and manifests
are paths, so that nodes need a file system that they share.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ....core.errors import BestiaryError
from ...options import Recipe
from ...progress import console
from ...training.interrupt import Interrupt
from ...training.worker import start
from . import Job
from .local import share

PAUSE = 0.5
"""Seconds between looks at the cluster."""


class Ray:
    """Runs on a Ray cluster.

    Raises:
        BestiaryError: Ray is not installed.
    """

    def __init__(self, jobs: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise BestiaryError("The engine 'ray' needs Ray. Install it: pip install bestiary[ray].") from error
        self.ray, self.jobs = ray, jobs

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """Every run with its exit code, as it ends."""
        with self._cluster(), Interrupt() as interrupt:
            waiting, running, told = list(jobs), dict[Any, Job](), False
            try:
                while running or (waiting and not interrupt.requested):
                    while waiting and len(running) < (self.jobs or len(jobs)) and not interrupt.requested:
                        job = waiting.pop(0)
                        running[self._submit(job)] = job
                    if interrupt.requested and not told:
                        told = self._cancel(running)
                    ended, _ = self.ray.wait(list(running), timeout=PAUSE)
                    for reference in ended:
                        job = running.pop(reference)
                        code = self._code(reference, job, quiet=interrupt.requested)
                        if not (interrupt.requested and code):
                            yield job, code
            finally:
                if not told:
                    self._cancel(running)
                if running:
                    self.ray.wait(list(running), num_returns=len(running))
        if interrupt.requested:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        """A cluster that is there already stays when the study ends."""
        ray = self.ray
        if ray.is_initialized():
            yield
            return
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": True, "logging_level": "warning"}
        if "RAY_ADDRESS" in os.environ:
            ray.init(logging_level="warning")
        else:
            ray.init(address="local", num_cpus=share(1), **quiet)
        try:
            yield
        finally:
            ray.shutdown()

    def _submit(self, job: Job) -> Any:
        """A task with its part of the cluster: a GPU where there are any, and the processors of `jobs` equal parts."""
        have = self.ray.cluster_resources()
        largest = max((node["Resources"].get("CPU", 1) for node in self.ray.nodes() if node["Alive"]), default=1)
        threads = max(1, int(min(have.get("CPU", 1) // self.jobs, largest))) if self.jobs else 1
        gpus = 1 if have.get("GPU") and job.recipe.train.device != "cpu" else 0
        task = self.ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(train_there)
        return task.remote(job.recipe, job.folder.resolve(), threads)

    def _code(self, reference: Any, job: Job, *, quiet: bool) -> int:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            if not quiet:
                console.print(f"{job.name}: {error}", soft_wrap=True, highlight=False)
            return 1

    def _cancel(self, running: dict[Any, Job]) -> bool:
        for reference in running:
            self.ray.cancel(reference)
        return True


def train_there(recipe: Recipe, folder: Path, threads: int) -> int:
    """The task: trains in a process of its own, and passes on that it is cancelled."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Ray's workers ignore it, which loses the exit code
    child = start(recipe, folder, progress=False, threads=threads)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        return child.wait()
