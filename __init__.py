"""Bestiary: language models like DeepSeek-V3, assembled from swappable parts.

    model = bestiary.create_model("deepseek-v3-nano", set={"block.attention.use": "gqa"})

Importing this package imports nothing else; each public name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import BestiaryError
    from .core.plugins import list_components
    from .lab import testing
    from .registry.catalog import list_models, resolve
    from .registry.create import create_model
    from .registry.hub_model import HubModel
    from .registry.load import load
    from .registry.load_rank import load_rank
    from .registry.pull import pull
    from .registry.push import push
    from .registry.save import save

_HOME = {
    "BestiaryError": "core.errors",
    "HubModel": "registry.hub_model",
    "create_model": "registry.create",
    "list_components": "core.plugins",
    "list_models": "registry.catalog",
    "load": "registry.load",
    "load_rank": "registry.load_rank",
    "pull": "registry.pull",
    "push": "registry.push",
    "resolve": "registry.catalog",
    "save": "registry.save",
}

__all__ = [
    "BestiaryError",
    "HubModel",
    "create_model",
    "list_components",
    "list_models",
    "load",
    "load_rank",
    "pull",
    "push",
    "resolve",
    "save",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", "bestiary"), name)
    if name == "testing":
        return import_module(".lab.testing", "bestiary")
    raise AttributeError(f"module 'bestiary' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
