"""Fully sharded data parallelism on torch's FSDP2, with experts in parallel."""

from __future__ import annotations

from ...core.component import Component
from ...core.hookspecs import hookimpl
from . import options as o

BESTIARY_API = 1


@hookimpl
def bestiary_parallelism() -> Component:
    return Component(
        "fsdp",
        o.FSDPOptions,
        o.build_fsdp,
        check=o.fsdp_check,
        misfits=o.fsdp_misfits,
        summary="Data parallelism that shards parameters, gradients and optimizer states (FSDP2, HSDP), and experts over ranks.",
    )
