"""Processes on this machine, one after another or several at once, which then share the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from ...progress import console
from ...training.interrupt import Interrupt
from ...training.worker import start
from . import Job

PAUSE = 0.05
"""Seconds between looks at the processes."""


class Local:
    """Runs on this machine."""

    def __init__(self, jobs: int = 1, *, progress: bool = True) -> None:
        self.jobs, self.progress = jobs, progress

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """Every run with its exit code, as it ends."""
        waiting, running = list(jobs), dict[Job, subprocess.Popen[str]]()
        alone = self.jobs == 1
        with Interrupt() as interrupt:
            told = False
            try:
                while running or (waiting and not interrupt.requested):
                    while waiting and len(running) < self.jobs and not interrupt.requested:
                        job = waiting.pop(0)
                        if self.progress:
                            console.print(f"{job.name}: {job.recipe.steps:,} steps", highlight=False)
                        threads = None if alone else share(self.jobs)
                        running[job] = start(job.recipe, job.folder, progress=alone and self.progress, threads=threads)
                    if interrupt.requested and not told:
                        told = _tell(running)
                    for job in [job for job, child in running.items() if child.poll() is not None]:
                        code = running.pop(job).returncode
                        if not (interrupt.requested and code):
                            yield job, code
                    time.sleep(PAUSE)
            finally:
                if not told:
                    _tell(running)
                for child in running.values():
                    child.wait()
        if interrupt.requested:
            raise KeyboardInterrupt


def share(jobs: int) -> int:
    """Threads of each of `jobs` processes: the cores, or what OMP_NUM_THREADS allows, divided among them."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(allowed) if allowed.isdigit() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def _tell(running: dict[Job, subprocess.Popen[str]]) -> bool:
    for child in running.values():
        child.send_signal(signal.SIGINT)
    return True
