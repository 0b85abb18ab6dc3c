"""Whether a checkpoint is what it claims to be: checksums, headers, completeness, copies, scales and, if asked for, every number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BestiaryError, Problem
from .checkpoint import open_checkpoint
from .dtypes import FLOATS, FP8
from .progress import Advance, byte_bar
from .pull import fetch_weights
from .record import manifest_of
from .repository import Folder, RemoteFile, open_repository

if TYPE_CHECKING:
    from .plan import Plan, Read

STRIP = 8 << 20


@dataclass
class VerifyReport:
    """What was looked at, and everything that is wrong."""

    reference: str
    folder: Path
    commit: str
    checksums: int = 0
    """Files whose content has the checksum that the repository states."""
    tensors: int = 0
    values: bool = False
    """Whether every number was looked at."""
    problems: list[Problem] = field(default_factory=list)


def verify(reference: str | Path, *, values: bool = False, progress: bool = False) -> VerifyReport:
    """Checks a checkpoint and reports all that is wrong, not the first thing only.

    Args:
        reference: `organisation/name[@revision]`, whose files are fetched unless they are in the cache, `file:path[@revision]`, or
            a folder, for which nobody states checksums.
        values: read every number, and name tensors that hold one that is not finite.
        progress: show a bar.

    Raises:
        BestiaryError: it cannot be reached, or holds no weights.
    """
    repository = open_repository(reference)
    folder = repository.path if isinstance(repository, Folder) else fetch_weights(repository, progress=progress)
    report = VerifyReport(str(reference), folder, repository.commit, values=values)
    stated = [file for file in repository.files() if (file.sha256 or file.sha1) and (folder / file.path).is_file()]
    with byte_bar("checksums", sum(file.size for file in stated), progress) as advance:
        for file in stated:
            if (problem := _checksum(folder, file, advance)) is None:
                report.checksums += 1
            else:
                report.problems.append(problem)
    try:
        plan = _plan(folder, report)
    except BestiaryError as error:
        report.problems += [problem for problem in error.problems if problem not in report.problems]
        return report
    _contents(plan, report, progress)
    return report


def _checksum(folder: Path, file: RemoteFile, advance: Advance | None) -> Problem | None:
    size = (folder / file.path).stat().st_size
    sink = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode())
    with (folder / file.path).open("rb") as stream:
        while data := stream.read(STRIP):
            sink.update(data)
            if advance is not None:
                advance(len(data))
    expected = file.sha256 or file.sha1
    if sink.hexdigest() == expected:
        return None
    fact = f"its content has the checksum {sink.hexdigest()[:12]}, and {expected[:12]} is stated: it was damaged or edited."
    real = (folder / file.path).resolve()
    return Problem(fact, str(folder / file.path), f"Remove {real} and fetch it again.")


def _plan(folder: Path, report: VerifyReport) -> Plan:
    from .plan import make_plan

    manifest, checkpoint = manifest_of(folder), open_checkpoint(folder)
    report.tensors = len(checkpoint.tensors)
    return make_plan(manifest, checkpoint, stored_as=manifest, compare=True)


def _contents(plan: Plan, report: VerifyReport, progress: bool) -> None:
    """Copies, scales, and numbers."""
    from .fill import check_equal

    total = sum(read.source.nbytes for read in plan.reads) if report.values else 0
    total += sum(2 * kept.nbytes for kept, _ in plan.equal) + sum(read.scale.nbytes for read in plan.reads if read.scale)
    with byte_bar("contents", total, progress) as advance:
        for kept, copy in plan.equal:
            if not check_equal(kept, copy, advance=advance):
                fact = f"{copy.name} differs from {kept.name}, of which it should be a copy."
                report.problems.append(Problem(fact, str(copy.file), "Ask who made it which of the two is right."))
        for read in plan.reads:
            report.problems += _wrong(read, report.values, advance)


def _wrong(read: Read, values: bool, advance: Advance | None) -> Iterator[Problem]:
    import torch

    from .dequantise import check_scales

    if read.scale is not None:
        scale = torch.frombuffer(bytearray(_bytes(read.scale.file, read.scale.offset, read.scale.nbytes)), dtype=torch.uint8)
        try:
            check_scales(scale.view(getattr(torch, FLOATS[read.scale.dtype])), read.scale.name, str(read.scale.file))
        except BestiaryError as error:
            yield from error.problems
        if advance is not None:
            advance(read.scale.nbytes)
    if not values:
        return
    dtype = torch.float8_e4m3fn if read.source.dtype == FP8 else getattr(torch, FLOATS[read.source.dtype])
    bad = 0
    for start in range(0, read.source.nbytes, STRIP):
        data = _bytes(read.source.file, read.source.offset + start, min(STRIP, read.source.nbytes - start))
        numbers = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)
        bad += int((~torch.isfinite(numbers.float())).sum())
        if advance is not None:
            advance(len(data))
    if bad:
        fact = f"{read.source.name}: {bad:,} of its numbers are not finite."
        yield Problem(fact, str(read.source.file), "Training diverged, or the file is damaged: take other weights.")


def _bytes(file: Path, start: int, size: int) -> bytes:
    from .repository import pread

    return pread(file, start, start + size)
