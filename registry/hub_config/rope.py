"""Rotary embedding: `rope_theta` with `rope_scaling`, or transformers 5's `rope_parameters`, which holds both.

Both are read. The older form is written, because every version of transformers, vLLM and SGLang reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .rules import Config, Values

LENGTH = "original_max_position_embeddings"
KINDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", LENGTH),
    "yarn": ("factor", LENGTH, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"),
}
"""Supported kinds of scaling, and what each of them may say."""
OUTSIDE = ("type", "rope_type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Rope:
    """The table `attention.rope`."""

    def read(self, config: Config, values: Values) -> None:
        key = "rope_parameters" if config.data.get("rope_parameters") else "rope_scaling"
        table = config.data.get(key) or {}
        if not isinstance(table, dict):
            return config.refuse(key, f"expected a table, found {table!r}.", "Fetch config.json again.")
        values["attention.rope.theta"] = table.get("rope_theta", config.data.get("rope_theta")) or 10000.0
        turned = table.get("partial_rotary_factor", config.data.get("partial_rotary_factor"))
        if turned not in (None, 1):
            config.refuse(
                "partial_rotary_factor", f"found {turned!r}, supported is 1.", "Models that rotate a part of each head have no component."
            )
        if (scaling := _scaling(config, key, table)) is not None:
            values["attention.rope.scaling"] = scaling

    def write(self, values: Values, config: dict[str, Any]) -> None:
        config["rope_theta"] = values.pop("attention.rope.theta")
        scaling = values.pop("attention.rope.scaling", None)
        if scaling is not None:
            said = {name: value for name, value in scaling.items() if value is not None}
            scaling = {**said, "rope_type": said["type"]}
        config["rope_scaling"] = scaling


def _scaling(config: Config, key: str, table: dict[str, Any]) -> dict[str, Any] | None:
    kind = table.get("rope_type", table.get("type", "default"))
    said = {name: value for name, value in table.items() if name not in OUTSIDE and value is not None}
    if kind == "default":
        return None
    if kind not in KINDS:
        config.refuse(f"{key}.rope_type", f"{kind!r} is not supported.", f"Known: default, {', '.join(KINDS)}.")
        return None
    for name in said.keys() - set(KINDS[kind]):
        config.refuse(
            f"{key}.{name}", f"{kind} scaling has no such option here (found {said[name]!r}).", f"Known: {', '.join(KINDS[kind])}."
        )
    if "factor" not in said:
        config.refuse(f"{key}.factor", "this key is missing.", "Add it: max_position_embeddings divided by the original length.")
    if LENGTH in KINDS[kind]:
        said.setdefault(LENGTH, config.data.get(LENGTH, config.data.get("max_position_embeddings")))
    return {"type": kind, **said}
