"""A training run in a process of its own: `python -m bestiary.lab.training.worker FOLDER`, the recipe as JSON on its input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from ...core.errors import BestiaryError
from ..checked import table
from ..options import Recipe
from .interrupt import SIGNALS


def train_apart(recipe: Recipe, folder: Path, *, progress: bool) -> int:
    """Trains in a new process and waits for it; Ctrl-C is passed on, so that the run saves itself.

    Returns:
        The exit code: 0 also for a run that diverged, negative for a signal.

    Raises:
        KeyboardInterrupt: there was a Ctrl-C, and the run has ended.
    """
    command = [sys.executable, "-P", "-m", __name__, str(folder), *(["--progress"] if progress else [])]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        child.communicate(json.dumps(table(recipe)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if passed:
        raise KeyboardInterrupt
    return child.returncode


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
