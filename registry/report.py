"""What a load did: every tensor, and a summary to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .dtypes import FLOATS
from .plan import Plan, Read, Skipped

if TYPE_CHECKING:
    import torch

    from .header import Stored
    from .surgery import Converted


@dataclass(frozen=True)
class LoadReport:
    """What was taken from where, and what was not; `str` summarises it."""

    folder: Path
    taken: tuple[Read, ...]
    """Every tensor that was read; its `op` says whether as stored, in another dtype, or from FP8 blocks; `keep` is of blocks that stay."""
    dtypes: dict[str, torch.dtype]
    """Of every parameter and persistent buffer, after loading."""
    duplicates: tuple[tuple[Stored, str], ...]
    """Stored copies, which were not read, and the parameter that each is a copy of."""
    skipped: tuple[Skipped, ...]
    initialised: tuple[str, ...]
    """Parameters with fresh values."""
    converted: tuple[Converted, ...]
    """Parameters that weight surgery made from those of another component, with what was lost."""
    seconds: float
    here: Mapping[str, str] = field(default_factory=dict)
    """What the precision component comes to on this machine, such as which kernels compute, where the model trains."""

    @property
    def nbytes(self) -> int:
        """Bytes read."""
        return sum(read.nbytes for read in self.taken)

    def __str__(self) -> str:
        lines = [f"{self.folder}: {len(self.taken):,} tensors, {self.nbytes:,} bytes in {self.seconds:.2f} s"]
        for (op, stored, kept), (count, nbytes) in self._operations().items():
            change = f" to {kept}" if stored != kept and op != "keep" else ""
            lines.append(f"  {op:<12}{count:>7,} tensors {nbytes:>17,} bytes  {stored}{change}")
        lines += [f"  {key:<12}{said}" for key, said in self.here.items()]
        lines += _listed("duplicate", [f"{stored.name} = {original}" for stored, original in self.duplicates])
        lines += _listed("skipped", [f"{skip.source.name}: {skip.why}" for skip in self.skipped])
        lines += _listed("converted", [f"{one.name}: {one.rule}, error {one.error:.3g}" for one in self.converted])
        lines += _listed("initialised", list(self.initialised))
        return "\n".join(lines)

    def _operations(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        counts: Counter[tuple[str, str, str]] = Counter()
        sizes: Counter[tuple[str, str, str]] = Counter()
        for read in self.taken:
            kept = str(self.dtypes[read.target]).removeprefix("torch.")
            stored = FLOATS.get(read.source.dtype, read.source.dtype)
            counts[read.op, stored, kept] += 1
            sizes[read.op, stored, kept] += read.nbytes
        return {key: (count, sizes[key]) for key, count in counts.items()}


def make_report(
    folder: Path, plan: Plan, seconds: float, converted: Sequence[Converted] = (), here: Mapping[str, str] | None = None
) -> LoadReport:
    """The report of a plan that was carried out."""
    duplicates, skipped, initialised = tuple(plan.duplicates), tuple(plan.skipped), tuple(plan.initialised)
    return LoadReport(folder, tuple(plan.reads), plan.dtypes, duplicates, skipped, initialised, tuple(converted), seconds, here or {})


def _listed(title: str, lines: list[str], shown: int = 8) -> list[str]:
    rows = [f"  {title:<12}{line}" for line in lines[:shown]]
    return rows if len(lines) <= shown else [*rows, f"  {title:<12}and {len(lines) - shown:,} more"]
