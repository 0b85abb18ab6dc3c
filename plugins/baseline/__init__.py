"""The plain part that each feature is compared with: grouped-query attention, a dense SwiGLU, native
precision, one process, next-token prediction."""

from __future__ import annotations

from ...core.component import Component, Storage
from ...core.hookspecs import hookimpl
from ...core.surgery import Conversion
from . import options as o

BESTIARY_API = 1


@hookimpl
def bestiary_precision() -> list[Component]:
    return [
        Component(
            "fp32",
            o.NativeOptions,
            o.build_fp32,
            storage=lambda _: Storage(activation=4, inference=4, inference_high=4),
            summary="Everything in fp32.",
        ),
        Component(
            "fp64",
            o.NativeOptions,
            o.build_fp64,
            storage=lambda _: Storage(master=8, gradient=8, moments=16, activation=8, inference=8, inference_high=8),
            summary="Everything in fp64, to compare runs whose sums are in another order.",
        ),
        Component(
            "bf16",
            o.NativeOptions,
            o.build_bf16,
            storage=lambda _: Storage(copy=2),
            summary="bf16 activations and products; training keeps fp32 master weights, gradients and moments.",
        ),
    ]


@hookimpl
def bestiary_attention() -> Component:
    return Component(
        "gqa",
        o.GQAOptions,
        o.build_gqa,
        o.gqa_weights,
        o.gqa_cost,
        o.gqa_check,
        conversions=(Conversion("gqa", "heads regrouped, rotary rows reordered", o.gqa_why_not, o.gqa_from_gqa),),
        summary="Grouped-query attention; with one key-value head MQA, with as many as query heads MHA.",
    )


@hookimpl
def bestiary_ffn() -> Component:
    return Component("dense", o.DenseOptions, o.build_dense, o.dense_weights, o.dense_cost, summary="SwiGLU: down(silu(gate x) * up x).")


@hookimpl
def bestiary_objective() -> Component:
    return Component("next-token", o.NextTokenOptions, o.build_next_token, summary="Cross-entropy of the next token.")


@hookimpl
def bestiary_parallelism() -> Component:
    return Component("local", o.LocalOptions, o.build_local, summary="One process, one device.")
