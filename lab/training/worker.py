"""A training run in a process of its own: `python -m bestiary.lab.training.worker FOLDER`, the recipe as JSON on its input."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from ...core.errors import BestiaryError
from ..checked import table
from ..options import Recipe


def start(recipe: Recipe, folder: Path, *, progress: bool, threads: int | None = None) -> subprocess.Popen[str]:
    """Starts to train in a new process, which Ctrl-C does not reach: an interrupt that is sent to it lets the run save itself.

    Its exit code is 0 also for a run that diverged, and negative for a signal.

    Args:
        recipe: what is trained.
        folder: of the run.
        progress: whether it shows progress on stderr.
        threads: that it computes with; as many as there are cores, or as OMP_NUM_THREADS says, by default.
    """
    command = [sys.executable, "-P", "-m", __name__, str(folder), *(["--progress"] if progress else [])]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True, env=environment)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(json.dumps(table(recipe)))
    return child


def main(arguments: list[str]) -> int:
    """The process itself: the folder, perhaps `--progress`, and the recipe on standard input; returns the exit code."""
    from .train import train
    from .trainer import Diverged

    data = json.loads(sys.stdin.read())
    del data["schema"]
    try:
        train(Recipe.model_validate(data), out=arguments[0], progress="--progress" in arguments, overwrite=True)
    except Diverged as error:
        print(error, file=sys.stderr)
    except BestiaryError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
