"""Where experts of a trained model should lie, from the load that its run measured on held-out text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.distributed.placement import Placement, in_order, place_experts
from ..core.distributed.reach import expert_groups
from ..core.errors import BestiaryError
from ..core.manifest import Manifest
from ..registry.catalog import resolve
from .training.metrics import read_log
from .training.result import METRICS


@dataclass(frozen=True)
class Placed:
    """One layer's experts."""

    layer: int
    load: tuple[float, ...]
    """Share of token copies of each expert."""
    placement: Placement

    @property
    def before(self) -> float | None:
        """Balancedness of experts in order, each once; None where they do not divide among the ranks."""
        experts, ranks = len(self.load), self.placement.ranks
        return None if experts % ranks else in_order(experts, ranks).balancedness(self.load)

    @property
    def after(self) -> float:
        """Balancedness as placed."""
        return self.placement.balancedness(self.load)

    def table(self) -> dict[str, Any]:
        """All of it as data."""
        return {
            "layer": self.layer,
            "balancedness": {"in_order": self.before, "placed": self.after},
            "ranks": [list(experts) for experts in self.placement.by_rank],
        }


def place_run(folder: Path, *, ranks: int, nodes: int = 1, redundant: int = 0) -> list[Placed]:
    """A placement for every layer with experts of a finished or unfinished run.

    Args:
        folder: of the run.
        ranks: that share the experts.
        nodes: that these ranks are on.
        redundant: slots beyond one for each expert.

    Raises:
        BestiaryError: the folder holds no run that measured a load, or numbers do not divide.
    """
    manifest, loads = _read(folder)
    return [
        Placed(
            layer,
            tuple(load),
            place_experts(load, ranks=ranks, slots=len(load) + redundant, groups=expert_groups(manifest, layer)[0], nodes=nodes),
        )
        for layer, load in sorted(loads.items())
    ]


def _read(folder: Path) -> tuple[Manifest, dict[int, list[float]]]:
    metrics, resolved = folder / METRICS, folder / "manifest.json"
    if not metrics.exists() or not resolved.exists():
        raise BestiaryError(f"{folder} holds no run. Give the folder that `bestiary train` wrote to.")
    measured = [line.expert_load for line in read_log(metrics) if line.expert_load]
    if not measured:
        raise BestiaryError(f"{folder}: no evaluation of this run told how experts are used. Its model needs layers with experts.")
    manifest = resolve(json.loads(resolved.read_text(encoding="utf-8")))
    return manifest, {int(layer): load for layer, load in measured[-1].items()}
