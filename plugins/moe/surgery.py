"""Mixtures of experts from dense layers: sparse upcycling (Komatsuzaki et al., 2023).

Every expert starts as the dense layer. Where the router's weights add up to a constant c, the sum of the chosen experts is c times
the dense layer, and dividing `down_proj` by c keeps the function; shared experts start without an output. The router starts fresh.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...core.surgery import Made
from .options import MoEOptions


def upcycle(old: Mapping[str, Tensor], after: MoEOptions) -> dict[str, Made]:
    """Tensors of the experts from `gate_proj.weight`, `up_proj.weight` `[I, D]` and `down_proj.weight` `[D, I]`."""
    gate, up, down = (old[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
    experts, total = after.n_routed_experts, after.router.options.routed_scaling_factor  # pyright: ignore[reportAttributeAccessIssue]
    made = {
        "experts.gate_up_proj.weight": Made(torch.cat([gate, up]).expand(experts, -1, -1)),
        "experts.down_proj.weight": Made((down / total).expand(experts, -1, -1)),
    }
    if after.n_shared_experts:
        wide = after.n_shared_experts
        made["shared_experts.gate_proj.weight"] = Made(gate.repeat(wide, 1))
        made["shared_experts.up_proj.weight"] = Made(up.repeat(wide, 1))
        made["shared_experts.down_proj.weight"] = Made(torch.zeros_like(down).repeat(1, wide))
    return made
