"""A manifest as flat values, for models whose layers differ at most in being dense or of experts.

`attention.*` and `model.*` hold for every layer; `moe.*` and `router.*` for layers of experts, `dense.*` for the others;
`layers.first_dense` and `layers.moe_freq` say which are which: layer i has experts if `i >= first_dense` and `i % moe_freq == 0`.
"""

from __future__ import annotations

from typing import Any

from ...core.manifest import SCHEMA, Manifest
from .rules import Inexpressible, Values


def dense_layers(count: int, first_dense: int, freq: int) -> list[str]:
    """The dense layers of `count` as disjoint slices for `block.at`."""
    rows = [f"0:{min(first_dense, count)}"] if first_dense else []
    rows += [f"{start}::{freq}" for start in range(first_dense, min(first_dense + freq, count)) if start % freq]
    return rows


def spread(values: Values) -> dict[str, Any]:
    """Manifest data from flat values."""
    data: dict[str, Any] = {"schema": SCHEMA}
    for section in ("model", "precision", "hub"):
        if table := _section(values, section):
            data[section] = table
    data["block"] = {"attention": _section(values, "attention"), "ffn": _section(values, "dense")}
    if "moe.use" in values:
        rows = dense_layers(values["model.num_hidden_layers"], values["layers.first_dense"], values["layers.moe_freq"])
        dense = data["block"]["ffn"]
        data["block"]["ffn"] = {**_section(values, "moe"), "router": _section(values, "router")}
        if rows:
            data["block"]["at"] = {row: {"ffn": dense} for row in rows}
    data["objective"] = {"next-token": {"use": "next-token"}}
    if mtp := _section(values, "mtp"):
        data["objective"]["mtp"] = mtp
    return data


def gather(manifest: Manifest) -> Values:
    """Flat values of a manifest; `hub` holds only what says how weights are stored.

    Raises:
        Inexpressible: layers differ in more than being dense or of experts.
    """
    values = _flat("model", manifest.model.table()) | _flat("precision", manifest.precision.table())
    values |= {"hub.dtype": manifest.hub.dtype, "hub.weight_block_size": manifest.hub.weight_block_size}
    attentions = _distinct([layer.attention.table() for layer in manifest.layers])
    if len(attentions) > 1:
        raise Inexpressible("block.attention differs between layers")
    values |= _flat("attention", attentions[0])
    _gather_ffn(manifest, values)
    for part in manifest.objectives.values():
        if part.use == "mtp" and "mtp.use" not in values:
            values |= _flat("mtp", part.table())
        elif list(part.weights(manifest.site.at(manifest.model.num_hidden_layers))):
            raise Inexpressible(f"objective '{part.use}' has weights of its own")
    return values


def _gather_ffn(manifest: Manifest, values: Values) -> None:
    for use in ("dense", "moe"):
        tables = _distinct([layer.ffn.table() for layer in manifest.layers if layer.ffn.use == use])
        if len(tables) > 1:
            raise Inexpressible(f"the {use} layers differ in more than their place")
        if tables:
            router = tables[0].pop("router", None)
            values |= _flat(use, tables[0]) | (_flat("router", router) if router else {})
    uses = [layer.ffn.use for layer in manifest.layers]
    for use in uses:
        if use not in ("dense", "moe"):
            raise Inexpressible(f"block.ffn.use = '{use}'")
    if "moe" in uses:
        first = uses.index("moe")
        if "dense" in uses[first:]:
            raise Inexpressible(f"dense layer {uses.index('dense', first)} follows a layer of experts")
        values |= {"layers.first_dense": first, "layers.moe_freq": 1}


def _distinct(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for table in tables:
        if table not in found:
            found.append(table)
    return found


def _flat(prefix: str, table: dict[str, Any]) -> Values:
    """`{"rope": {"theta": 1}}` under `attention` as `{"attention.rope.theta": 1}`, one level of nesting."""
    values: Values = {}
    for key, value in table.items():
        if key == "rope":
            values |= {f"{prefix}.rope.{inner}": item for inner, item in value.items()}
        else:
            values[f"{prefix}.{key}"] = value
    return values


def _section(values: Values, section: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        if head == section:
            place = table.setdefault("rope", {}) if rest.startswith("rope.") else table
            place[rest.removeprefix("rope.")] = value
    return table
