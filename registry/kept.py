"""FP8 blocks that stay as a checkpoint has them: codes as a parameter of a byte each, factors as another beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from ..core.table import own_entries
from .dequantise import check_scales
from .dtypes import FP8, stored_dtype
from .header import Stored
from .layout import QUANTISED, SCALE
from .plan import Plan, Read

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.backbone import CausalLM
    from ..core.blocks import Blocks
    from ..core.contracts import HoldsBlocks


def keep_blocks(model: CausalLM, plan: Plan) -> None:
    """Has model and plan keep FP8 matrices that would be dequantised, where the model's precision component computes from them.

    What is FP8 only in part, or stored otherwise than by rows, is dequantised.

    Args:
        model: whole, on meta; its layers get room for codes and factors.
        plan: of its load.
    """
    if not getattr(model.precision, "holds_blocks", False):
        return
    reads: dict[str, list[Read]] = {}
    for read in plan.reads:
        reads.setdefault(read.target, []).append(read)
    for name, entry in own_entries(model.manifest).items():
        mine = reads.get(name, [])
        if entry.weight.role not in QUANTISED or (blocks := _blocks(entry.weight.shape, mine)) is None:
            continue
        cast("HoldsBlocks", model.get_submodule(name.rpartition(".")[0])).hold(blocks)
        model.blocks[name] = blocks
        plan.dtypes |= {name: stored_dtype(FP8), name + SCALE: stored_dtype(cast(Stored, mine[0].scale).dtype)}
        reads[name] = [kept for read in mine for kept in _kept(read, blocks, entry.weight.shape)]
    plan.reads = [read for found in reads.values() for read in found]


def check_factors(plan: Plan, state: Mapping[str, Tensor]) -> None:
    """Refuses factors that are no positive finite numbers.

    Raises:
        BestiaryError: names the stored tensor and counts its bad entries.
    """
    for read in plan.reads:
        if read.op == "keep" and read.target.endswith(SCALE):
            check_scales(state[read.target][read.region], read.source.name, str(read.source.file))


def _blocks(shape: tuple[int, ...], reads: list[Read]) -> Blocks | None:
    """How a parameter lies in blocks; None where it is not FP8 throughout, or its pieces are not whole rows of whole matrices."""
    from ..core.blocks import Blocks

    if {read.op for read in reads} != {"dequantise"} or len({read.scale.dtype for read in reads if read.scale}) > 1:
        return None
    parts = sorted({_rows(read, shape) for read in reads})
    touching = [0, *(stop for _, stop in parts)] == [*(start for start, _ in parts), shape[-2]]
    rows = sum(math.prod(read.source.shape[:-1]) for read in reads)
    if not touching or rows != math.prod(shape[:-1]) or any(read.source.shape[-1] != shape[-1] for read in reads):
        return None
    return Blocks(reads[0].block, tuple(stop - start for start, stop in parts))


def _rows(read: Read, shape: tuple[int, ...]) -> tuple[int, int]:
    index = read.region[len(shape) - 2] if len(read.region) > len(shape) - 2 else slice(0, shape[-2])
    assert isinstance(index, slice)
    return index.indices(shape[-2])[:2]


def _kept(read: Read, blocks: Blocks, shape: tuple[int, ...]) -> tuple[Read, Read]:
    """The codes, and the factors at their place among those of the parameter."""
    assert read.scale is not None
    region = blocks.scale_region(read.region, shape)
    assert region is not None
    return Read(read.source, read.target, read.region, "keep"), Read(read.scale, read.target + SCALE, region, "keep")
