"""FP8 mixed-precision training as DeepSeek-V3 does it: tiles of activations, blocks of weights, all three products in FP8."""

from __future__ import annotations

from ...core.component import Component
from ...core.hookspecs import hookimpl
from . import options as o

BESTIARY_API = 1


@hookimpl
def bestiary_precision() -> Component:
    return Component(
        "fp8",
        o.FP8Options,
        o.build_fp8,
        check=o.fp8_check,
        storage=o.fp8_storage,
        describe=o.fp8_describe,
        summary="Products in FP8 with a factor per tile, fp32 sums; embedding, head, gate, norms and attention core as in bf16.",
    )
