"""A model's tensors as the Hub names them, split into files that are written one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.assemble import state
from ..core.table import entries
from .layout import original

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

    def tensor(self) -> Tensor:
        """Its numbers on the CPU, sharing memory with the model where nothing has to be converted."""
        found = self.parameter.detach()[self.region].to("cpu", self.dtype).contiguous()
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
        self.dtype = _most(outlines)
        """The dtype of most numbers."""

    def write(self, name: str, path: Path) -> None:
        """Writes one file."""
        from safetensors.torch import save_file

        save_file({tensor: self._slices[tensor].tensor() for tensor in self.files[name]}, path, metadata={"format": "pt"})


def _slices(model: CausalLM, dtype: torch.dtype | None) -> Iterator[tuple[str, Slice]]:
    tensors, manifest = state(model), model.manifest
    for entry in entries(manifest):
        copied = bool(entry.weight.duplicate_of)
        parameter = tensors[original(entry, manifest) if copied else entry.name]
        kept = dtype or parameter.dtype
        if entry.weight.role == "state":
            kept = torch.promote_types(kept, torch.float32)
        for piece in entry.pieces:
            yield piece.hub, Slice(parameter, piece.region, kept, copied)


def _most(outlines: dict[str, Tensor]) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for outline in outlines.values():
        counts[outline.dtype] += outline.numel()
    return counts.most_common(1)[0][0]
