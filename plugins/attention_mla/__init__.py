"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1)."""

from __future__ import annotations

from ...core.component import Component
from ...core.hookspecs import hookimpl
from ...core.surgery import Conversion
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
        conversions=(
            Conversion("gqa", "shared rotary key is the mean, the rest by SVD into the latent", o.gqa_why_not, o.from_gqa),
            Conversion("mla", "rotary rows reordered", o.mla_why_not, o.from_mla),
        ),
        summary="Multi-head latent attention: keys and values from one small latent, which is all that the cache keeps.",
    )
