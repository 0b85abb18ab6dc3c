"""One file of a new checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...core.blocks import Block
from ..dtypes import SIZES
from ..header import make_header
from ..progress import Advance
from .numbers import strips
from .target import Made, columns


class Writer:
    """Writes files of tensors; scales are computed with their matrix and written when their turn comes."""

    def __init__(self, stored_block: Block | None, block: Block, *, power_of_two: bool, advance: Advance | None) -> None:
        self._blocks, self._power_of_two, self._advance = (stored_block, block), power_of_two, advance
        self._scales: dict[str, Tensor] = {}

    def write(self, path: Path, tensors: Sequence[tuple[str, Made]]) -> None:
        """Writes a file beside its place, and moves it there when it is complete and on the disk.

        Args:
            path: of the file.
            tensors: names in the file, and what they are.
        """
        header, begins = make_header([(name, made.dtype, made.shape, made.nbytes) for name, made in tensors])
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            file.write(header)
            for begin, (_, made) in zip(begins, tensors, strict=True):
                file.seek(begin)
                self._tensor(file.fileno(), begin, made)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def _tensor(self, file: int, begin: int, made: Made) -> None:
        if made.matrix is not None:
            scales = self._scales.pop(made.matrix.name, None)
            _pwrite(file, self._quantise(made.matrix) if scales is None else scales, begin)
            self._tell(made.nbytes)
            return
        size, found = columns(made.shape) * SIZES[made.dtype], []
        for first, rows, scales in self._strips(made):
            _pwrite(file, rows, begin + first * size)
            if scales is not None:
                found.append(scales)
            self._tell(rows.nbytes)
        if found:
            self._scales[made.name] = torch.cat(found)

    def _tell(self, nbytes: int) -> None:
        if self._advance is not None:
            self._advance(nbytes)

    def _quantise(self, codes: Made) -> Tensor:
        """Scales whose matrix is in another file, written before an interruption."""
        return torch.cat([scales for _, _, scales in self._strips(codes) if scales is not None])

    def _strips(self, made: Made) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        return strips(made, *self._blocks, power_of_two=self._power_of_two)


def _pwrite(file: int, tensor: Tensor, offset: int) -> None:
    view = tensor.contiguous().view(torch.uint8).reshape(-1).numpy().data
    while len(view):
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done
