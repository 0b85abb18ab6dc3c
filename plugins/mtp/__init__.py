"""Multi-token prediction (DeepSeek-V3, section 2.2): further blocks that predict tokens further ahead."""

from __future__ import annotations

from ...core.component import Component
from ...core.hookspecs import hookimpl
from . import options as o

BESTIARY_API = 1


@hookimpl
def bestiary_objective() -> Component:
    return Component(
        "mtp",
        o.MTPOptions,
        o.build,
        o.weights,
        o.cost,
        adjustable=("weight",),
        methods=("mtp_logits",),
        summary="Predicts the token after next, and so on, with one more block for each.",
    )
