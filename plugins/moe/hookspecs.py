"""The router slot, which the moe plugin opens for itself and for others.

A router turns `[T, D]` into `Routing`: for each token K distinct experts and their weights.

    @hookimpl
    def bestiary_router():
        return Component("hash", HashOptions, HashRouter)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...core.component import Component
from ...core.hookspecs import hookspec
from ...core.site import Site

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RouterSite(Site):
    """Where a router stands: a site, and the experts to choose from."""

    n_routed_experts: int
    num_experts_per_tok: int
    kernels: str = "torch"
    """What computes the layer, by the name of its option; a router without kernels of its own need not care."""


@dataclass
class Routing:
    """Which experts each token goes to."""

    weights: Tensor
    """`[T, K]` fp32, what the experts' outputs are multiplied by."""
    experts: Tensor
    """`[T, K]` int64, distinct in each row."""
    scores: Tensor | None = None
    """`[T, E]` fp32, non-negative affinities to all experts, from which balance losses are computed."""


class Router(Protocol):
    """`forward([T, D]) -> Routing`. One that balances by a rule of its own also offers `balance`."""

    def __call__(self, x: Tensor) -> Routing: ...

    def balance(self, load: Tensor) -> None:
        """Reacts to the `[E]` tokens per expert of one optimizer step, counted over the whole batch."""
        ...


@hookspec
def bestiary_router() -> Component[Router] | Sequence[Component[Router]]:  # type: ignore[empty-body]
    """Chooses experts: `[T, D]` to weights and experts `[T, K]`."""
