"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1)."""

from __future__ import annotations

from ...core.component import Component
from ...core.hookspecs import hookimpl
from . import options as o

BESTIARY_API = 1


@hookimpl
def bestiary_attention() -> Component:
    return Component(
        "mla",
        o.MLAOptions,
        o.build,
        o.weights,
        o.cost,
        o.check,
        summary="Multi-head latent attention: keys and values from one small latent, which is all that the cache keeps.",
    )
