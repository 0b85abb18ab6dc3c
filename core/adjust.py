"""Options that change while a model trains: the weight of a loss, the speed of a balancing rule.

A component names them in `Component.adjustable`, and what it builds offers `adjust(option, value)`. They are addressed as in a
manifest: `objective.mtp.weight`, `block.ffn.aux_loss_alpha`, `block.ffn.router.bias_update_speed`; a path of `block` means
every layer whose component has the option, and the blocks that objectives add.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .backbone import Block, CausalLM
from .component import Part
from .errors import Problem, suggest
from .manifest import Layer, Manifest

SLOTS = {"attention": "self_attn", "ffn": "mlp"}


def check_adjustable(manifest: Manifest, path: str) -> Problem | None:
    """What is wrong with changing the option at `path` while this model trains, or None."""
    if _holders(manifest, path):
        return None
    return Problem("this is no option that can change while training.", path, suggest(path, sorted(set(_adjustable(manifest)))))


def adjust(model: CausalLM, path: str, value: float) -> None:
    """Sets the option at `path`, which `check_adjustable` has passed, in every module that has it."""
    kind, name, option = path.split(".", 2)
    if kind == "objective":
        goal: Any = model.goals[name]
        goal.adjust(option, value)
        return
    layers = model.manifest.layers
    blocks = [*zip(model.model.layers, layers, strict=True)]
    blocks += [(block, layers[-1]) for block in model.objectives.modules() if isinstance(block, Block)]
    for block, layer in blocks:
        if option in _options(getattr(layer, name)):
            getattr(block, SLOTS[name]).adjust(option, value)


def _holders(manifest: Manifest, path: str) -> list[Part]:
    kind, _, rest = path.partition(".")
    name, _, option = rest.partition(".")
    if kind == "objective":
        parts = [manifest.objectives[name]] if name in manifest.objectives else []
    else:
        parts = [getattr(layer, name) for layer in manifest.layers] if kind == "block" and name in SLOTS else []
    return [part for part in parts if option in _options(part)]


def _adjustable(manifest: Manifest) -> Iterator[str]:
    for key, part in manifest.objectives.items():
        yield from (f"objective.{key}.{option}" for option in _options(part))
    for layer in manifest.layers:
        yield from _of_layer(layer)


def _of_layer(layer: Layer) -> Iterator[str]:
    for slot in SLOTS:
        yield from (f"block.{slot}.{option}" for option in _options(getattr(layer, slot)))


def _options(part: Part, prefix: str = "") -> list[str]:
    """Adjustable options of a part and, below the name of their sub-slot, of the parts in it."""
    own = [f"{prefix}{option}" for option in part.component.adjustable]
    inner = ((name, getattr(part.options, name)) for name in type(part.options).model_fields)
    return own + [option for name, value in inner if isinstance(value, Part) for option in _options(value, f"{prefix}{name}.")]
