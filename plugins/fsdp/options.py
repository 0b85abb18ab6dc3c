"""Options of sharded data parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...core.component import Options
from ...core.layout import Layout, divisors, expert_misfits, tensor_misfits

if TYPE_CHECKING:
    from ...core.manifest import Manifest
    from .fsdp import ShardedData


class FSDPOptions(Options):
    dp: int = Field(default=2, gt=0)
    """Data-parallel ranks."""
    shard: int | None = Field(default=None, gt=0)
    """Neighbouring ranks that share one copy of the parameters; all when None. Less than `dp` keeps several copies (HSDP)."""
    tp: int = Field(default=1, gt=0)
    """Tensor-parallel ranks: they share the heads of attention, the width of dense layers, and the rows of a data rank; divides heads,
    key-value heads and intermediate sizes. Embedding and head stay whole."""
    ep: int = Field(default=1, gt=0)
    """Of all `dp * tp` ranks, how many share the routed experts; divides `dp * tp` and the number of experts."""
    micro_batches: int = Field(default=1, gt=0)
    """Forward and backward passes of a step on each rank; gradients travel after the last."""
    reshard: bool = True
    """Whether a block's parameters are given back after its forward pass (ZeRO-3), or kept until its backward pass (ZeRO-2)."""
    latency: float = Field(default=0.0, ge=0)
    """Milliseconds added to every exchange between experts."""
    wire: Literal["auto", "plain"] = "auto"
    """How rows travel between experts: `auto` sends FP8 codes, half the bytes, where `precision` computes with the same codes anyway, so
    that results do not change; `plain` sends numbers as they are."""

    @property
    def layout(self) -> Layout:
        """What `bestiary plan` counts."""
        return Layout(tp=self.tp, dp=self.dp, ep=self.ep, zero=3)


def fsdp_check(options: FSDPOptions, site: Any) -> Iterator[str]:
    """What does not divide."""
    ranks = options.dp * options.tp
    if options.shard is not None and options.dp % options.shard:
        yield f"shard = {options.shard} does not divide dp = {options.dp}. Use one of {divisors(options.dp)}."
    if ranks % options.ep:
        yield f"ep = {options.ep} does not divide dp * tp = {ranks}. Use one of {divisors(ranks)}."


def fsdp_misfits(options: FSDPOptions, manifest: Manifest) -> Iterator[str]:
    """What keeps a model from lying on these ranks."""
    yield from tensor_misfits(manifest, options.tp)
    yield from expert_misfits(manifest, options.dp * options.tp, options.ep)


def build_fsdp(options: FSDPOptions, site: Any) -> ShardedData:
    from .fsdp import ShardedData

    return ShardedData(options)
