"""Carries out a plan: reads bytes from files into parameters, by several threads.

Where stored and wanted numbers are the same and the region is contiguous, the kernel copies straight from the page cache into
the parameter. Everything else goes through one small buffer per thread, so that memory stays at the parameters' size
whatever the checkpoint looks like.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import BestiaryError
from .dequantise import check_scales, dequantise, spread_columns
from .dtypes import FLOATS, stored_dtype
from .header import AGAIN, Stored
from .plan import Read

BUFFER = 8 << 20
"""Bytes of a thread's buffer, more only where a single FP8 block row needs it."""

DECODED = 1 << 18
"""FP8 codes that are decoded together: few calls for small tensors, and what is made on the way stays in the cache."""

BATCH = 4 << 20
"""Bytes that one task reads at least: many small tensors, or one large one."""

MOST = 512
"""Tensors in one system call; Linux takes 1024."""

Straight = tuple[Stored, memoryview]
"""A stored tensor and the memory that takes it as it is."""

Advance = Callable[[int], object]

ReaderName = Literal["pread", "mmap"]


def fill(
    reads: Sequence[Read],
    parameters: Mapping[str, Tensor],
    *,
    threads: int | None = None,
    reader: ReaderName = "pread",
    advance: Advance | None = None,
) -> None:
    """Fills `parameters` as `reads` say.

    Args:
        reads: from a plan.
        parameters: by name, allocated, in the dtypes of the plan.
        threads: how many read at once; as many as there are processors, at most 8, by default.
        reader: `pread` asks the system for bytes; `mmap` copies from mapped files, which some local disks like better.
        advance: called with the bytes read since it was last called, from any thread.

    Raises:
        BestiaryError: a file ends early, or FP8 scales are unusable.
    """
    ordered = sorted(reads, key=lambda read: (str(read.source.file), read.source.offset))
    workers = threads or min(8, os.cpu_count() or 1)

    def run(batch: list[Read]) -> None:
        worker = idle.get()
        try:
            straight: list[Straight] = []
            for read in batch:
                plain = read.op in ("copy", "keep") and read.columns is None and read.target in memory
                span = _span(parameters[read.target], read.region) if plain else None
                if span is None:
                    worker.read(read, parameters[read.target].detach()[read.region])
                else:
                    straight.append((read.source, memory[read.target][span.start : span.stop]))
            worker.scatter(straight)
        finally:
            idle.put(worker)

    memory = {name: _bytes(p.detach()) for name, p in parameters.items() if p.device.type == "cpu" and p.is_contiguous()}
    idle: SimpleQueue[_Reader] = SimpleQueue()
    with ExitStack() as readers, ThreadPoolExecutor(workers, thread_name_prefix="load") as pool:
        for _ in range(workers):
            idle.put(readers.enter_context(READERS[reader](advance)))
        futures = [pool.submit(run, batch) for batch in _batches(ordered)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_equal(a: Stored, b: Stored, *, advance: Advance | None = None) -> bool:
    """Whether two stored tensors hold the same bytes."""
    if a.nbytes != b.nbytes:
        return False
    mine, other = torch.empty(BUFFER, dtype=torch.uint8), torch.empty(BUFFER, dtype=torch.uint8)
    with _Reader(advance) as first, _Reader(advance) as second:
        for start in range(0, a.nbytes, BUFFER):
            size = min(BUFFER, a.nbytes - start)
            first.bytes(a, start, _bytes(mine[:size]))
            second.bytes(b, start, _bytes(other[:size]))
            if not torch.equal(mine[:size], other[:size]):
                return False
    return True


def _batches(reads: Sequence[Read]) -> Iterator[list[Read]]:
    batch: list[Read] = []
    size = 0
    for read in reads:
        batch.append(read)
        size += read.nbytes
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _span(parameter: Tensor, region: tuple[int | slice, ...]) -> range | None:
    """The bytes of a region of a contiguous parameter, as offsets, or None where they are not in one piece."""
    offset, size, rest = 0, parameter.numel(), parameter.shape
    for position, index in enumerate(region):
        inner = size // rest[0]
        start, stop = (index, index + 1) if isinstance(index, int) else index.indices(rest[0])[:2]
        offset, size = offset + start * inner, (stop - start) * inner
        if not isinstance(index, int) and (position + 1 < len(region) or index.step not in (None, 1)):
            return None
        rest = rest[1:]
    return range(offset * parameter.itemsize, (offset + size) * parameter.itemsize)


def _neighbours(parts: Sequence[Straight]) -> Iterator[list[Straight]]:
    """Runs of tensors that follow one another without a gap in one file."""
    run: list[Straight] = []
    for stored, view in parts:
        last = run[-1][0] if run else None
        if last is None or (stored.file, stored.offset) != (last.file, last.offset + last.nbytes) or len(run) == MOST:
            if run:
                yield run
            run = []
        run.append((stored, view))
    if run:
        yield run


class _Reader:
    """One thread's open file and buffer."""

    def __init__(self, advance: Advance | None) -> None:
        self._advance = advance
        self._file: FileIO | None = None
        self._buffer: Tensor | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, read: Read, out: Tensor) -> None:
        if read.op == "dequantise":
            self._dequantise(read, out)
        elif read.columns is not None:
            self._columns(read, out)
        else:
            self._through_buffer(read.source, out)

    def scatter(self, parts: Sequence[Straight]) -> None:
        """Whole tensors as they are stored; neighbours in a file by one system call."""
        for run in _neighbours(parts):
            source = run[0][0]
            got = os.preadv(self._open(source).fileno(), [view for _, view in run], source.offset)
            if self._advance is not None:
                self._advance(got)
            for stored, view in run:
                if got < len(view):  # a signal or the file's end came in between
                    self.bytes(stored, max(got, 0), view[max(got, 0) :])
                got -= len(view)

    def bytes(self, source: Stored, start: int, view: memoryview) -> None:
        """Bytes of a stored tensor from `start` on."""
        stream = self._open(source)
        stream.seek(source.offset + start)
        while len(view):
            got = stream.readinto(view)
            if not got:
                raise BestiaryError(f"{source.file}: the file ends inside of tensor {source.name}. {AGAIN}")
            view = view[got:]
            if self._advance is not None:
                self._advance(got)

    def _open(self, source: Stored) -> FileIO:
        if self._file is None or self._file.name != source.file:
            if self._file is not None:
                self._file.close()
            self._file = FileIO(source.file)
        return self._file

    def _scratch(self, nbytes: int) -> Tensor:
        if self._buffer is None or self._buffer.numel() < nbytes:
            self._buffer = torch.empty(max(BUFFER, nbytes), dtype=torch.uint8)
        return self._buffer[:nbytes]

    def _through_buffer(self, source: Stored, out: Tensor) -> None:
        dtype = stored_dtype(source.dtype)
        start = 0
        for piece in _pieces(out, BUFFER // dtype.itemsize):
            scratch = self._scratch(piece.numel() * dtype.itemsize)
            self.bytes(source, start, _bytes(scratch))
            piece.copy_(scratch.view(dtype).view(piece.shape))
            start += scratch.numel()

    def _dequantise(self, read: Read, out: Tensor) -> None:
        assert read.scale is not None
        scale = self._whole(read.scale)
        check_scales(scale, read.scale.name, str(read.scale.file))
        height, columns = read.block[0], read.columns or (0, out.shape[-1])
        matrices = zip(out.view(-1, *out.shape[-2:]), scale.view(-1, *scale.shape[-2:]), strict=True)
        row = 0
        for matrix, blocks in matrices:
            spread = spread_columns(blocks, read.block, read.source.shape[-1])[:, columns[0] : columns[1]]
            for rows, of in _block_rows(matrix, height, read.skip):
                stored = self._rows(read, row, len(rows))
                dequantise(stored.view(torch.float8_e4m3fn).view(rows.shape), spread[of], rows)
                row += len(rows)

    def _columns(self, read: Read, out: Tensor) -> None:
        dtype = getattr(torch, FLOATS[read.source.dtype])
        row = 0
        for rows in out.split(max(1, BUFFER // (out.shape[-1] * dtype.itemsize))):
            rows.copy_(self._rows(read, row, len(rows)).view(dtype).view(rows.shape))
            row += len(rows)

    def _rows(self, read: Read, first: int, count: int) -> Tensor:
        """The bytes of some rows, of the columns that are read, one row after the other."""
        width = read.source.shape[-1]
        size = read.source.nbytes // (math.prod(read.source.shape[:-1]) * width)
        start, stop = read.columns or (0, width)
        scratch = self._scratch(count * (stop - start) * size)
        if read.columns is None:
            self.bytes(read.source, first * width * size, _bytes(scratch))
            return scratch
        for index, row in enumerate(scratch.view(count, -1)):
            self.bytes(read.source, ((first + index) * width + start) * size, _bytes(row))
        return scratch

    def _whole(self, source: Stored) -> Tensor:
        tensor = torch.empty(source.shape, dtype=getattr(torch, FLOATS[source.dtype]))
        self.bytes(source, 0, _bytes(tensor))
        return tensor


class _Mapped(_Reader):
    """The same through a mapping of the file, whose pages are the page cache's own."""

    _pages: Tensor | None = None
    _path: Path | None = None

    def scatter(self, parts: Sequence[Straight]) -> None:
        for stored, view in parts:
            self.bytes(stored, 0, view)

    def bytes(self, source: Stored, start: int, view: memoryview) -> None:
        begin = source.offset + start
        found = self._mapping(source)[begin : begin + len(view)]
        if len(found) != len(view):
            raise BestiaryError(f"{source.file}: the file ends inside of tensor {source.name}. {AGAIN}")
        if len(view):
            torch.frombuffer(view, dtype=torch.uint8).copy_(found)
        if self._advance is not None:
            self._advance(len(view))

    def _mapping(self, source: Stored) -> Tensor:
        if self._pages is None or self._path != source.file:
            with source.file.open("rb") as file:  # copy-on-write, because torch wants memory that it may write to
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._pages, self._path = torch.frombuffer(pages, dtype=torch.uint8), source.file
        return self._pages


READERS: dict[str, type[_Reader]] = {"pread": _Reader, "mmap": _Mapped}


def _block_rows(matrix: Tensor, height: int, skip: int) -> Iterator[tuple[Tensor, slice]]:
    """Rows to be decoded together, whole FP8 blocks or a part of one, and which blocks; the first block lacks its first `skip` rows."""
    many = max(1, DECODED // (height * matrix.shape[1])) * height
    start = block = 0
    while start < len(matrix):
        whole = (len(matrix) - start) // height * height
        rows = min(height - skip, len(matrix) - start) if skip or not whole else min(many, whole)
        blocks = -(-rows // height)
        yield matrix[start : start + rows], slice(block, block + blocks)
        start, block, skip = start + rows, block + blocks, 0


def _pieces(out: Tensor, most: int) -> Iterator[Tensor]:
    """Views of `out` in the order of its elements, of at most `most` elements each where it can be cut."""
    if out.is_contiguous():
        yield from out.view(-1).split(most)
    elif out.numel() <= most or out.ndim < 2:
        yield out
    else:
        yield from chain.from_iterable(_pieces(row, most) for row in out.unbind(0))
