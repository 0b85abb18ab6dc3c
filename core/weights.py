"""What a component says about each of its tensors, and how that tensor lies in a Hub checkpoint.

One row per parameter serves everything that needs to know about it without building anything:
counting, initialising, sharding, loading and saving. A row's Hub layout is a list of `Piece`s, each
a Hub tensor and the region of our parameter that it fills; since a region can be read as well as
written, the same table loads and saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Role = Literal["linear", "expert", "router", "projection", "norm", "bias", "embedding", "head", "state"]
"""What a tensor is for. Precision components choose by it: `linear` and `expert` may be stored in
low precision; `router`, `projection` (plain bf16 matrices such as MTP's), `norm`, `bias`, `embedding`
and `head` stay high; `state` is not trained by gradient and always fp32."""

After = Literal["", "attention"]
"""What makes the input of a linear layer, where a precision component may treat it otherwise."""

Shard = Literal["column", "row", "expert", "replicate"]
"""How tensor or expert parallelism may cut a tensor: along its outputs, its inputs, its experts, or not. Training cuts by columns and
rows what stands in a module that offers `share_matrices`."""

Init = Literal["normal", "ones", "zeros"]


@dataclass(frozen=True)
class Piece:
    """One Hub tensor and the region of our parameter that it fills."""

    hub: str
    shape: tuple[int, ...]
    region: tuple[int | slice, ...] = ()
    """Index into our parameter; `()` is the whole of it."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


Layout = Callable[[str, tuple[int, ...]], list[Piece]]
"""From our name and shape to the Hub's pieces, in the order in which they are written."""


def same(name: str, shape: tuple[int, ...]) -> list[Piece]:
    """The Hub's name and shape are ours."""
    return [Piece(name, shape)]


@dataclass(frozen=True)
class PerExpert:
    """Stacked `[E, parts * rows, columns]` here, one matrix per expert and part on the Hub.

    `experts.gate_up_proj.weight` with parts `("gate_proj", "up_proj")` is `experts.7.gate_proj.weight` and so on.
    """

    parts: tuple[str, ...]

    def __call__(self, name: str, shape: tuple[int, ...]) -> list[Piece]:
        experts, rows, columns = shape
        stem, step = name.rsplit(".", 2)[0], rows // len(self.parts)
        return [
            Piece(f"{stem}.{e}.{part}.weight", (step, columns), (e, slice(k * step, (k + 1) * step)))
            for e in range(experts)
            for k, part in enumerate(self.parts)
        ]


def packed(name: str, shape: tuple[int, ...]) -> list[Piece]:
    """Stacked experts as one tensor, as transformers 5 keeps them in memory: `experts.gate_up_proj`."""
    return [Piece(name.removesuffix(".weight"), shape)]


@dataclass(frozen=True)
class Weight:
    """One tensor of a component, named as in the module that the component builds."""

    name: str
    shape: tuple[int, ...]
    role: Role = "linear"
    shard: Shard = "replicate"
    init: Init = "normal"
    active: int | None = None
    """Elements that one token uses; all of them when None."""
    layouts: tuple[Layout, ...] = (same,)
    """The first is how it is saved; the others are accepted when loading."""
    duplicate_of: str = ""
    """Full name of the parameter of which the Hub stores a copy under this name; it has no parameter of its own."""
    unit: int = 1
    """Rows of a column-parallel tensor, or columns of a row-parallel one, that stay together: the width of a head."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def cut_dim(self) -> int:
        """The dimension that `shard` speaks of: outputs come first, inputs last."""
        return len(self.shape) - 1 if self.shard == "row" else 0

    @property
    def active_numel(self) -> int:
        return self.numel if self.active is None else self.active


def linear(
    name: str, d_in: int, d_out: int, *, shard: Shard = "replicate", bias: bool = False, role: Role = "linear", unit: int = 1
) -> list[Weight]:
    """The rows of one linear layer: `[d_out, d_in]` and, if asked for, its bias `[d_out]`; `unit` as for `Weight`."""
    rows = [Weight(f"{name}.weight", (d_out, d_in), role, shard, unit=unit)]
    if bias:
        rows.append(Weight(f"{name}.bias", (d_out,), "bias", shard if shard == "column" else "replicate", "zeros", unit=unit))
    return rows


def swiglu(name: str, d: int, hidden: int) -> list[Weight]:
    """The rows of a `SwiGLU` called `name` (`""` for the component itself)."""
    stem = f"{name}." if name else ""
    return [
        *linear(f"{stem}gate_proj", d, hidden, shard="column"),
        *linear(f"{stem}up_proj", d, hidden, shard="column"),
        *linear(f"{stem}down_proj", hidden, d, shard="row"),
    ]


def norm(name: str, size: int) -> Weight:
    """The gain of an RMSNorm."""
    return Weight(f"{name}.weight", (size,), "norm", init="ones")


@dataclass(frozen=True)
class Entry:
    """A `Weight` in its place in the model."""

    name: str
    """Full parameter name, e.g. `model.layers.3.self_attn.q_a_proj.weight`."""
    weight: Weight
    hub_prefix: str
    """What stands before the weight's own name in a Hub checkpoint."""
    part: str
    """What the parameter belongs to: `embedding`, `attention`, `ffn`, `norm`, `head`, or an objective's name."""
    layer: int | None = None

    def layouts(self) -> list[list[Piece]]:
        """Every layout in which the Hub may hold it; the first is the one to save in."""
        return [layout(self.hub_prefix + self.weight.name, self.weight.shape) for layout in self.weight.layouts]

    @property
    def pieces(self) -> list[Piece]:
        return self.weight.layouts[0](self.hub_prefix + self.weight.name, self.weight.shape)


@dataclass(frozen=True)
class Renamed:
    """Another layout after replacing a prefix: `layers.0.block.` here, `layers.61.` on the Hub."""

    ours: str
    hub: str
    layout: Layout = same

    def __call__(self, name: str, shape: tuple[int, ...]) -> list[Piece]:
        return self.layout(name.replace(self.ours, self.hub, 1), shape)
