"""Trains `deepseek-v3-nano` in four processes and in one, and draws both curves: they are the same.

    python examples/four_processes.py [--out runs/four-processes] [--picture curves.svg] [--set train.steps=10 ...]

Two pipeline ranks in a V (DualPipeV) and two data ranks that share the experts, on the Python standard library's own sources. The recipe
computes in float64, in which another order of sums changes the sixteenth digit: small enough to send no token to another expert.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from bestiary.lab.style import COLOURS, STYLE
from bestiary.lab.training.metrics import Line
from bestiary.lab.training.result import read_run

RECIPE = Path(__file__).parent / "recipes" / "nano-4-processes.toml"
ALONE = ["set.parallelism.use=local", "set.parallelism.micro_batches=8"]
"""The same micro-batches, one after another."""
LIMIT = 1e-9
"""Largest relative difference of two losses."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/four-processes"), help="folder of both runs")
    parser.add_argument("--picture", type=Path, help="where the curves are drawn; in --out by default")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="a change of the recipe, for both")
    options = parser.parse_args()
    four = train(options.out / "four", options.set, "--nproc", "4")
    one = train(options.out / "one", [*options.set, *ALONE])
    apart = [abs(a.loss - b.loss) / b.loss for a, b in zip(four, one, strict=True) if a.loss is not None and b.loss is not None]
    picture = options.picture or options.out / "curves.svg"
    draw(four, one, apart, picture)
    print(f"{len(apart)} steps; the losses of four processes and of one differ by {max(apart):.1e} at most. Both curves: {picture}")
    if max(apart) > LIMIT:
        sys.exit(f"that is more than {LIMIT:g}")


def train(out: Path, changes: list[str], *options: str) -> list[Line]:
    """The steps of a run of the recipe."""
    sets = [word for change in changes for word in ("--set", change)]
    subprocess.run([sys.executable, "-m", "bestiary", "train", str(RECIPE), "--out", str(out), *options, *sets], check=True)
    return [line for line in read_run(out).lines() if line.kind == "train"]


def draw(four: list[Line], one: list[Line], apart: list[float], path: Path) -> None:
    """Both curves, and how far they are apart."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for lines, name, colour, width in ((one, "one process", COLOURS[1], 4.0), (four, "four processes", COLOURS[0], 1.2)):
            upper.plot([line.step for line in lines], [line.loss for line in lines], color=colour, linewidth=width, label=name)
        upper.set_ylabel("loss, nats")
        upper.legend(frameon=False)
        lower.semilogy([line.step for line in one], [max(value, 1e-17) for value in apart], ".", color=COLOURS[2])
        lower.set_ylabel("relative\ndifference")
        lower.set_xlabel("step")
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
