"""Options of multi-token prediction, and what follows from them without building anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...core.component import Cost, Options
from ...core.site import Site
from ...core.weights import Renamed, Weight, linear, norm

if TYPE_CHECKING:
    from .objective import MultiTokenPrediction


class MTPOptions(Options):
    depth: int = Field(default=1, gt=0, le=1_000)
    """Tokens predicted beyond the next one, each with a block of its own."""
    weight: float = Field(default=0.3, ge=0)
    """Lambda: weight of the mean over depths in the total loss (0.3 for DeepSeek-V3's first 10T tokens, then 0.1)."""
    hidden: Literal["post-norm", "pre-norm"] = "post-norm"
    """Which state of the level below goes on: after its final norm, as released weights expect, or before it."""


def weights(options: MTPOptions, site: Site) -> list[Weight]:
    return [weight for depth in range(options.depth) for weight in _layer(depth, site)]


def _layer(depth: int, site: Site) -> Iterator[Weight]:
    """One depth: layer `num_hidden_layers + depth` on the Hub, with copies of embedding and head."""
    ours, hub = f"layers.{depth}.", f"layers.{site.num_hidden_layers + depth}."
    d, vocabulary = site.hidden_size, (site.vocab_size, site.hidden_size)
    rows: list[Weight] = [norm("enorm", d), norm("hnorm", d), *linear("eh_proj", 2 * d, d, role="projection")]
    rows += [replace(row, name=f"block.{row.name}") for row in _block(site.at(site.num_hidden_layers + depth))]
    rows.append(norm("shared_head.norm", d))
    copies = [
        Weight("embed_tokens.weight", vocabulary, "embedding", active=0, duplicate_of="model.embed_tokens.weight"),
        Weight("shared_head.head.weight", vocabulary, "head", active=0, duplicate_of="lm_head.weight"),
    ]
    for row in rows:
        prefix = f"{ours}block." if row.name.startswith("block.") else ours
        layouts = tuple(Renamed(prefix, hub, layout) for layout in row.layouts)
        yield replace(row, name=ours + row.name, layouts=layouts)
    for row in copies:
        yield replace(row, name=ours + row.name, layouts=(Renamed(ours, hub),))


def _block(site: Site) -> Iterator[Weight]:
    assert site.block is not None, "objectives stand at a site that knows the last block"
    attention, ffn = site.block
    yield norm("input_layernorm", site.hidden_size)
    yield from (replace(row, name=f"self_attn.{row.name}") for row in attention.weights(site))
    yield norm("post_attention_layernorm", site.hidden_size)
    yield from (replace(row, name=f"mlp.{row.name}") for row in ffn.weights(site))


def cost(options: MTPOptions, site: Site) -> Cost:
    assert site.block is not None
    attention, ffn = (part.cost(site) for part in site.block)
    d, depth = site.hidden_size, options.depth
    return Cost(
        pair_macs=depth * (attention.pair_macs + ffn.pair_macs),
        saved_elements=depth * (attention.saved_elements + ffn.saved_elements + 7 * d),
        cut_elements=depth * (attention.cut_elements + ffn.cut_elements),
        dealt_elements=depth * (attention.dealt_elements + ffn.dealt_elements),
        saved_fp32=depth * (attention.saved_fp32 + ffn.saved_fp32),
        reused_parameters=depth * site.vocab_size * d,
    )


def build(options: MTPOptions, site: Site) -> MultiTokenPrediction:
    from .objective import MultiTokenPrediction

    return MultiTokenPrediction(options)
