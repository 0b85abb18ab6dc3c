"""DeepSeekMoE: shared and fine-grained routed experts, balanced without an auxiliary loss.

Opens the `router` slot; see `hookspecs` for its contract.
"""

from __future__ import annotations

from ...core.component import Component
from ...core.hookspecs import hookimpl
from ...core.surgery import Conversion
from . import hookspecs
from . import options as o

BESTIARY_API = 1
BESTIARY_HOOKSPECS = (hookspecs,)


@hookimpl
def bestiary_ffn() -> Component:
    return Component(
        "moe",
        o.MoEOptions,
        o.build,
        o.weights,
        o.cost,
        o.check,
        adjustable=("aux_loss_alpha",),
        conversions=(Conversion("dense", "every expert is the dense layer (upcycling)", o.dense_why_not, o.from_dense),),
        summary="Shared experts for every token, and the K routed ones that a router picks.",
    )


@hookimpl
def bestiary_router() -> list[Component]:
    return [
        Component(
            "sigmoid-group",
            o.SigmoidGroupOptions,
            o.build_sigmoid_group,
            o.sigmoid_weights,
            check=o.group_check,
            adjustable=("bias_update_speed",),
            summary="DeepSeek-V3's: sigmoid scores, bias that balances the load, top groups by their two best experts.",
        ),
        Component(
            "softmax-topk",
            o.SoftmaxOptions,
            o.build_softmax,
            o.router_weights,
            check=o.softmax_check,
            summary="The K most probable experts (DeepSeek-V2-Lite's greedy rule).",
        ),
        Component(
            "softmax-group",
            o.SoftmaxGroupOptions,
            o.build_softmax_group,
            o.router_weights,
            check=o.group_check,
            summary="DeepSeek-V2's: the K most probable experts of the groups with the most probable best expert.",
        ),
    ]
