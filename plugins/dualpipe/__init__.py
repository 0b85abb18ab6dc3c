"""Pipelines over several processes: DualPipe and DualPipeV, which overlap a forward with a backward pass; 1F1B, interleaved, ZB1P, ZB-V."""

from __future__ import annotations

from ...core.component import Component
from ...core.hookspecs import hookimpl
from . import options as o

BESTIARY_API = 1


@hookimpl
def bestiary_parallelism() -> list[Component]:
    return [
        Component(
            "dualpipe-v",
            o.BothWaysOptions,
            o.build_dualpipe_v,
            check=o.check_dualpipe_v,
            misfits=o.misfits,
            summary="DualPipeV: two half-size stages a rank in a V, forward and backward passes overlapped.",
        ),
        Component(
            "dualpipe",
            o.BothWaysOptions,
            o.build_dualpipe,
            check=o.check_dualpipe,
            misfits=o.misfits,
            summary="DualPipe: fed from both ends, every layer on two ranks, forward and backward passes overlapped.",
        ),
        Component(
            "pipeline",
            o.PipelineOptions,
            o.build_pipeline,
            check=o.check_pipeline,
            misfits=o.misfits,
            summary="1F1B, interleaved 1F1B with and without overlap, ZB1P, ZB-V.",
        ),
    ]
