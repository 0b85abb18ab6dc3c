"""Plans and loads for one rank of many: only its parts, straight into storage of their size."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.layout import Layout
from ..core.manifest import Manifest
from ..core.table import own_entries
from .catalog import Settings
from .checkpoint import open_checkpoint
from .coverage import uncovered
from .indexed import checkpoint_of
from .layout import SCALE
from .plan import Plan, Read, make_plan
from .progress import byte_bar
from .pull import fetch_configs, needed, pull, rank_layout
from .ranks import Cutter, Shares, check_ranks, held_by
from .record import manifest_of
from .regions import Region
from .report import LoadReport, make_report
from .repository import open_repository

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RankWeights:
    """What a rank holds."""

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]
    """By parameter name, each of the size of its region."""
    regions: Mapping[str, Region]
    """Where in the whole parameter each lies."""
    report: LoadReport


@dataclass(frozen=True)
class RankPlan:
    """What a rank reads, and what it holds of each parameter."""

    rank: int
    reads: Sequence[Read]
    regions: Mapping[str, Region]
    held: int
    """Bytes of its parameters."""
    whole: int
    """Bytes that a rank would read that held everything."""

    @property
    def files(self) -> int:
        return len({read.source.file for read in self.reads})

    @property
    def tensors(self) -> int:
        return len({part.name for read in self.reads for part in (read.source, read.scale) if part})

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(read.nbytes for read in self.reads)


def plan_ranks(manifest: Manifest, plan: Plan, layout: Layout, ranks: Sequence[int]) -> Iterator[RankPlan]:
    """The plans of some ranks, cut from that of the whole model.

    Raises:
        BestiaryError: the model cannot be cut as the layout says.
    """
    check_ranks(manifest, layout)
    shapes = {name: entry.weight.shape for name, entry in own_entries(manifest).items()}
    cutter, shares, whole = Cutter(plan.reads, shapes), Shares(manifest, layout), plan.nbytes
    for rank in ranks:
        regions = shares.of(rank)
        held = sum(_numel(region) * plan.dtypes[name].itemsize for name, region in regions.items())
        yield RankPlan(rank, cutter.reads(regions), regions, held, whole)


def plan_reference(
    reference: str | Path, *, of: int, layout: str = "", ranks: Sequence[int] | None = None, set: Settings = ()
) -> Iterator[RankPlan]:
    """What ranks read of a checkpoint, from its index or headers alone, proved to fill every element exactly once.

    Args:
        reference: as for `bestiary.load`; no weights are fetched.
        of: number of ranks.
        layout: how they share the model; by default each holds an equal part of every parameter.
        ranks: which to plan; all by default.
        set: changes to the manifest, as for `bestiary.load`.

    Raises:
        BestiaryError: the reference or layout is wrong, or the checkpoint does not fit the manifest.
    """
    wanted = range(of) if ranks is None else ranks
    places = rank_layout(max(wanted, default=0), of, layout)
    repository = open_repository(reference)
    folder = fetch_configs(repository)
    stored_as, manifest = manifest_of(folder), manifest_of(folder, set=set)
    plan = make_plan(manifest, checkpoint_of(repository, folder, stored_as), stored_as=stored_as)
    for rank in plan_ranks(manifest, plan, places, wanted):
        if wrong := uncovered(rank.reads, rank.regions):
            raise AssertionError(f"rank {rank.rank}: {wrong[:3]}")
        yield rank


def load_rank(
    reference: str | Path,
    *,
    rank: int,
    of: int,
    layout: str = "",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    threads: int | None = None,
    locked: bool = False,
    progress: bool = False,
) -> RankWeights:
    """What one rank holds of a model, read from the files that it needs; only these are fetched or need be there.

    Args:
        reference: as for `bestiary.load`.
        rank: from 0.
        of: number of ranks.
        layout: how they share the model, such as `pp=4,ep=8`; by default each holds an equal part of every parameter.
        dtype: as for `bestiary.load`.
        device: where the tensors go; the CPU by default.
        threads: how many read at once.
        locked: refuse other versions of the plugins than those that `bestiary.json` names, instead of warning.
        progress: show bars.

    Raises:
        BestiaryError: as `bestiary.load` does, or the model cannot be cut so.
    """
    import torch

    from .fill import fill

    started = time.perf_counter()
    places = rank_layout(rank, of, layout)
    folder = pull(reference, rank=rank, of=of, layout=layout, locked=locked, progress=progress)
    manifest = manifest_of(folder)
    regions = held_by(manifest, places, rank)
    names = needed(manifest, layout=places, rank=rank)
    checkpoint = open_checkpoint(folder, names | {name + SCALE for name in names})
    plan = make_plan(manifest, checkpoint, dtype=dtype, regions=regions)
    shapes = {name: entry.weight.shape for name, entry in own_entries(manifest).items()}
    plan.reads = Cutter(plan.reads, shapes).reads(regions)
    tensors = {
        name: torch.empty([cut.stop - cut.start for cut in region], dtype=plan.dtypes[name], device=device or "cpu")
        for name, region in regions.items()
    }
    with byte_bar("loading", plan.nbytes, progress) as advance:
        fill(plan.reads, tensors, threads=threads, advance=advance)
    return RankWeights(manifest, tensors, regions, make_report(folder, plan, time.perf_counter() - started))


def _numel(region: Region) -> int:
    return math.prod(cut.stop - cut.start for cut in region)
