"""A picture of one run: loss, held-out bits per byte, gradient norm and learning rate, speed, expert load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..style import COLOURS, STYLE
from .metrics import Line
from .result import RunResult

CURVES = "curves.png"


def plot_run(run: RunResult) -> Path:
    """Draws the run's metrics so far.

    Returns:
        The path of `curves.png` in the run's folder.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = run.lines()
    taken = [line for line in lines if line.kind == "train"]
    held_out = [line for line in lines if line.kind == "eval"]
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 7), layout="constrained")
        figure.suptitle(f"{run.folder.name}: {run.summary.model}, {run.summary.status}", x=0.01, ha="left", fontweight="bold")
        panels = figure.subplots(2, 3)
        _losses(panels[0, 0], taken)
        _bits(panels[0, 1], taken, held_out)
        _balance(panels[0, 2], taken)
        _gradients(panels[1, 0], taken)
        _speed(panels[1, 1], taken)
        _experts(panels[1, 2], held_out, figure)
        figure.savefig(run.folder / CURVES, dpi=120)
    return run.folder / CURVES


def _losses(axes: Any, taken: list[Line]) -> None:
    names = list(dict.fromkeys(name for line in taken for name in line.parts))
    for name, colour in zip(names, COLOURS, strict=False):
        axes.plot(_tokens(taken), [line.parts.get(name, float("nan")) for line in taken], color=colour, linewidth=0.9, label=name)
    _finish(axes, "loss by part, nats")
    axes.set_yscale("log")
    axes.legend(frameon=False)


def _bits(axes: Any, taken: list[Line], held_out: list[Line]) -> None:
    axes.plot(_tokens(taken), [line.bits_per_byte for line in taken], color=COLOURS[0], linewidth=0.6, alpha=0.4, label="training")
    axes.plot(_tokens(held_out), [line.bits_per_byte for line in held_out], color=COLOURS[1], marker="o", markersize=4, label="held out")
    averaged = [line for line in held_out if line.bits_per_byte_average is not None]
    if averaged:
        axes.plot(
            _tokens(averaged), [line.bits_per_byte_average for line in averaged], color=COLOURS[2], label="held out, averaged weights"
        )
    _finish(axes, "bits per byte")
    axes.legend(frameon=False)


def _balance(axes: Any, taken: list[Line]) -> None:
    layers = list(dict.fromkeys(layer for line in taken for layer in line.max_vio))
    for layer, colour in zip(layers, [*COLOURS] * (1 + len(layers) // len(COLOURS)), strict=False):
        values = [line.max_vio.get(layer, float("nan")) for line in taken]
        axes.plot(_tokens(taken), values, color=colour, linewidth=0.7, label=f"layer {layer}")
    _finish(axes, "MaxVio of each step")
    if layers:
        axes.legend(frameon=False, fontsize=7, ncols=2)


def _gradients(axes: Any, taken: list[Line]) -> None:
    axes.plot(_tokens(taken), [line.grad_norm for line in taken], color=COLOURS[0], linewidth=0.8, label="gradient norm")
    rate = axes.twinx()
    rate.plot(_tokens(taken), [line.lr for line in taken], color=COLOURS[1], linewidth=1.2)
    rate.set_ylabel("learning rate", color=COLOURS[1])
    _finish(axes, "gradient norm before clipping")


def _speed(axes: Any, taken: list[Line]) -> None:
    axes.plot(_tokens(taken), [line.tokens_per_second for line in taken], color=COLOURS[0], linewidth=0.8)
    axes.set_ylim(bottom=0)
    ratios = [line.mfu / line.tokens_per_second for line in taken if line.mfu and line.tokens_per_second]
    if ratios:
        share = axes.secondary_yaxis("right", functions=(lambda speed: speed * ratios[0], lambda mfu: mfu / ratios[0]))
        share.set_ylabel("MFU, causal")
    _finish(axes, "tokens/s")


def _experts(axes: Any, held_out: list[Line], figure: Any) -> None:
    last = next((line for line in reversed(held_out) if line.expert_load), None)
    if last is None:
        axes.set_axis_off()
        return
    rows = [[share * len(load) for share in load] for load in last.expert_load.values()]
    image = axes.imshow(rows, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    axes.set_yticks(range(len(rows)), list(last.expert_load))
    axes.grid(False)
    axes.set(title="held-out load of each expert, 1 is even", xlabel="expert", ylabel="layer")
    figure.colorbar(image, ax=axes)


def _tokens(lines: list[Line]) -> list[int]:
    return [line.tokens for line in lines]


def _finish(axes: Any, title: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_title(title)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
