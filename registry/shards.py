"""A model's tensors as the Hub names them, split into files that are written one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.assemble import state
from ..core.blocks import Block, Blocks, Index
from ..core.errors import BestiaryError
from ..core.table import entries, own_entries
from ..core.weights import Entry
from .layout import QUANTISED, SCALE, original

if TYPE_CHECKING:
    from ..core.backbone import CausalLM


@dataclass(frozen=True)
class Slice:
    """A Hub tensor: a region of a parameter, and the dtype to write it in."""

    parameter: Tensor
    region: tuple[int | slice, ...]
    dtype: torch.dtype
    copied: bool
    """Whether the Hub stores the same numbers twice."""
    decode: Callable[[], Tensor] | None = None
    """Makes its numbers where the parameter holds FP8 codes that are not to be saved as such."""

    def tensor(self) -> Tensor:
        """Its numbers on the CPU, sharing memory with the model where nothing has to be converted."""
        numbers = self.decode() if self.decode else self.parameter.detach()[self.region]
        found = numbers.to("cpu", self.dtype).contiguous()
        return found.clone() if self.copied else found

    def outline(self) -> Tensor:
        """A tensor of its shape and dtype without storage."""
        return torch.empty_like(self.parameter[self.region], dtype=self.dtype, device="meta")


class Shards:
    """The files that a model is written to."""

    def __init__(self, model: CausalLM, max_shard_size: int | str, dtype: torch.dtype | None) -> None:
        from huggingface_hub import split_torch_state_dict_into_shards

        self._slices = dict(_slices(model, dtype))
        outlines = {name: part.outline() for name, part in self._slices.items()}
        split = split_torch_state_dict_into_shards(outlines, max_shard_size=max_shard_size)
        self.files: dict[str, list[str]] = split.filename_to_tensors
        """File to names of tensors."""
        self.tensors, self.nbytes = len(outlines), sum(outline.nbytes for outline in outlines.values())
        self.index: dict[str, Any] | None = None
        """The content of the index; None when there is a single file."""
        if split.is_sharded:
            self.index = {"metadata": {"total_size": self.nbytes}, "weight_map": split.tensor_to_filename}
        self.block = _block(model) if dtype is None else None
        """Rows and columns of the FP8 blocks that are written; None when there are none."""
        self.dtype = _most(outlines)
        """The dtype of most numbers that are not FP8 blocks."""

    def write(self, name: str, path: Path) -> None:
        """Writes one file."""
        from safetensors.torch import save_file

        save_file({tensor: self._slices[tensor].tensor() for tensor in self.files[name]}, path, metadata={"format": "pt"})


def _slices(model: CausalLM, dtype: torch.dtype | None) -> Iterator[tuple[str, Slice]]:
    tensors, manifest = state(model), model.manifest
    for entry in entries(manifest):
        if entry.name in model.blocks:
            yield from _held(entry, model.blocks[entry.name], tensors, dtype)
            continue
        copied = bool(entry.weight.duplicate_of)
        parameter = tensors[original(entry, manifest) if copied else entry.name]
        kept = dtype or parameter.dtype
        if entry.weight.role == "state":
            kept = torch.promote_types(kept, torch.float32)
        for piece in entry.pieces:
            yield piece.hub, Slice(parameter, piece.region, kept, copied)


def _held(entry: Entry, blocks: Blocks, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[tuple[str, Slice]]:
    """The tensors of a parameter in FP8 blocks: codes and factors in the first layout that cuts no block, or numbers."""
    codes, factors, shape = tensors[entry.name], tensors[entry.name + SCALE], entry.weight.shape
    if dtype is not None:
        for piece in entry.pieces:
            yield piece.hub, Slice(codes, piece.region, dtype, False, partial(_decoded, blocks, codes, factors, piece.region, dtype))
        return
    layouts = ([(piece, blocks.scale_region(piece.region, shape)) for piece in layout] for layout in entry.layouts())
    for piece, region in next(layout for layout in layouts if all(region is not None for _, region in layout)):
        yield piece.hub, Slice(codes, piece.region, codes.dtype, copied=False)
        yield piece.hub + SCALE, Slice(factors, region or (), factors.dtype, copied=False)


def _decoded(blocks: Blocks, codes: Tensor, factors: Tensor, region: Index, dtype: torch.dtype) -> Tensor:
    """The numbers of a region, from the whole matrices in which it lies."""
    lead, rows = region[: codes.ndim - 2], region[codes.ndim - 2 :]
    return blocks.numbers(codes.detach()[lead], factors.detach()[lead], dtype)[rows]


def _block(model: CausalLM) -> Block | None:
    """The size of the FP8 blocks that a model is kept in.

    Raises:
        BestiaryError: some of its matrices are not FP8, and a checkpoint of FP8 blocks says that all are.
    """
    if not model.blocks:
        return None
    matrices = (entry.name for entry in own_entries(model.manifest).values() if entry.weight.role in QUANTISED)
    plain = [name for name in matrices if name not in model.blocks]
    if plain:
        fact = f"{len(plain):,} matrices are not FP8, such as {plain[0]}, and the others are."
        raise BestiaryError(f"save: {fact} Save plain numbers with dtype=torch.bfloat16; `bestiary convert --to fp8` makes blocks of all.")
    return next(iter(model.blocks.values())).block


def _most(outlines: dict[str, Tensor]) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for name, outline in outlines.items():
        if not (outline.dtype == torch.float8_e4m3fn or name.endswith(SCALE)):
            counts[outline.dtype] += outline.numel()
    return counts.most_common(1)[0][0]
