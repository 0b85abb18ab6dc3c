"""Grouped-query attention from grouped-query attention with other groups or another order of rotary pairs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...core.site import Site
from ...core.surgery import Made, relative, rotary_order
from .options import GQAOptions, gqa_sizes


def regroup(old: Mapping[str, Tensor], before: GQAOptions, after: GQAOptions, site: Site) -> dict[str, Made]:
    """Fewer groups take the mean of their heads (Ainslie et al., 2023, "GQA", section 2.1); more repeat them, which is exact."""
    _, groups, width = gqa_sizes(before, site)
    wanted = gqa_sizes(after, site)[1]
    order = rotary_order(width, before.rope_interleave, after.rope_interleave)
    made = {}
    for name, tensor in old.items():
        stem, error = name.partition(".")[0], 0.0
        if stem in ("k_proj", "v_proj"):
            tensor, error = _groups(tensor, groups, wanted)
        if stem in ("q_proj", "k_proj", "q_norm", "k_norm"):
            tensor = tensor.unflatten(0, (-1, width))[:, order].flatten(0, 1)
        made[name] = Made(tensor, error)
    return made


def _groups(tensor: Tensor, groups: int, wanted: int) -> tuple[Tensor, float]:
    heads = tensor.unflatten(0, (groups, -1))
    if wanted >= groups:
        return heads.repeat_interleave(wanted // groups, 0).flatten(0, 1), 0.0
    size = groups // wanted
    pooled = heads.unflatten(0, (wanted, size)).mean(1)
    return pooled.flatten(0, 1), relative(heads - pooled.repeat_interleave(size, 0), heads)
