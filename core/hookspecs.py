"""The hooks of a plugin, in the order in which a model is assembled.

Every hook takes nothing and hands over one `Component` or several. Hooks are for finding components;
which one is used is said by the manifest, by name. No hook is called while a model runs, so what is
installed can never change a result.

    from bestiary.core.hookspecs import hookimpl

    BESTIARY_API = 1

    @hookimpl
    def bestiary_ffn():
        return Component("relu2", ReLU2Options, ReLU2, weights=relu2_weights)

An installed package makes its module known with an entry point in the group `bestiary`. A plugin may open
a slot of its own by listing a module of hookspecs in `BESTIARY_HOOKSPECS`; the moe plugin does so for
routers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .component import Component
    from .contracts import Attention, FeedForward, Objective, Parallelism, Precision

API = 1
"""Version of the plugin interface; a plugin states the one that it was written for as `BESTIARY_API`."""

PROJECT = "bestiary"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def bestiary_precision() -> Component[Precision] | Sequence[Component[Precision]]:  # type: ignore[empty-body]
    """Makes linear and grouped linear layers, and says how their weights are stored."""


@hookspec
def bestiary_attention() -> Component[Attention] | Sequence[Component[Attention]]:  # type: ignore[empty-body]
    """Mixes positions: `[B, S, D] -> [B, S, D]`, causal, with or without a cache."""


@hookspec
def bestiary_ffn() -> Component[FeedForward] | Sequence[Component[FeedForward]]:  # type: ignore[empty-body]
    """Transforms every position alone: `[B, S, D] -> [B, S, D]`."""


@hookspec
def bestiary_objective() -> Component[Objective] | Sequence[Component[Objective]]:  # type: ignore[empty-body]
    """What training minimises; may add modules to the model."""


@hookspec
def bestiary_parallelism() -> Component[Parallelism] | Sequence[Component[Parallelism]]:  # type: ignore[empty-body]
    """Places the model on devices and runs one optimizer step's forward and backward passes."""
