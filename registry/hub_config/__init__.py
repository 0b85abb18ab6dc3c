"""`config.json` of the Hub to manifest data, and back.

    manifest_from_config(json.loads(text), "folder/config.json")   ->  manifest data
    config_from_manifest(manifest)                                 ->  Expressed(config) or Expressed(None, reason)

Every architecture is one table of rules in a file of its own. Whatever changes the function that a model computes and has
no component here is refused; keys that change nothing (`use_cache`, `auto_map`, ...) are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.errors import BestiaryError, suggest
from ...core.manifest import Manifest
from . import deepseek_v2, deepseek_v3, llama, qwen
from .flat import gather, spread
from .rules import Config, Family, Inexpressible, Values, dotted

FAMILIES: tuple[Family, ...] = (deepseek_v3.FAMILY, deepseek_v2.FAMILY, llama.LLAMA, qwen.QWEN2, qwen.QWEN3, llama.MISTRAL)
"""In the order in which a manifest's architecture is looked for."""

NAMED = ("kimi_k2", "mistral")
"""Model types that nothing in a manifest but `hub.model_type` tells from another one."""


@dataclass(frozen=True)
class Expressed:
    """A `config.json`, or why there can be none."""

    config: dict[str, Any] | None
    reason: str = ""


def manifest_from_config(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Manifest data for a Hub config.

    Args:
        config: the content of `config.json`.
        source: the file's name, for messages.

    Raises:
        BestiaryError: the architecture is unknown, or the config says something that no component does; lists everything.
    """
    name = config.get("model_type")
    known = {model_type: family for family in FAMILIES for model_type in family.model_types}
    if not isinstance(name, str) or name not in known:
        found = "there is no model_type" if name is None else f"model_type '{name}' is not supported"
        raise BestiaryError(f"{source}: {found}. {suggest(str(name), known)}")
    family, reading, values = known[name], Config(config, source), {}
    _check_architecture(reading, family)
    for rule in family.rules:
        rule.read(reading, values)
    if reading.problems:
        raise BestiaryError(*dict.fromkeys(reading.problems))
    if name in NAMED:
        values["hub.model_type"] = name
    return spread(values)


def config_from_manifest(manifest: Manifest) -> Expressed:
    """The `config.json` with which transformers builds the same function, or the reason why there is none."""
    preferred = manifest.hub.model_type
    families = sorted(FAMILIES, key=lambda family: preferred not in family.model_types)
    try:
        values = gather(manifest)
    except Inexpressible as reason:
        return Expressed(None, f"{reason}.")
    reasons = {}
    for family in families:
        model_type = preferred if preferred in family.model_types else family.model_types[0]
        try:
            return Expressed(_write(family, model_type, dict(values)))
        except Inexpressible as reason:
            reasons[model_type] = str(reason)
    shown = {name: why for name, why in reasons.items() if not why.startswith("block.attention.use")} or reasons
    return Expressed(None, "No architecture of transformers fits: " + "; ".join(f"{name}: {why}" for name, why in shown.items()) + ".")


def _check_architecture(reading: Config, family: Family) -> None:
    named = reading.data.get("architectures")
    if named and not isinstance(named, list):
        reading.refuse("architectures", f"found {named!r}, a list of names is expected.", "Write what transformers writes there.")
    elif named and family.architecture not in named:
        reading.refuse(
            "architectures", f"found {named}, supported is {family.architecture}.", "Only causal language models can be assembled."
        )


def _write(family: Family, model_type: str, values: Values) -> dict[str, Any]:
    config: dict[str, Any] = {"architectures": [family.architecture], "model_type": model_type}
    for rule in family.rules:
        rule.write(values, config)
    if values:
        path, value = next(iter(values.items()))
        raise Inexpressible(f"{dotted(path)} = {value!r} has no key there")
    return config
