"""Finds plugins, checks them, and selects components by name.

pluggy finds implementations and checks hook names; a plain dict per slot selects. Each implementation is
called by itself, so that a component knows which plugin it came from and one broken plugin cannot hide
the others. Nothing is ever renamed, shadowed or overwritten.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

import pluggy

from . import hookspecs
from .component import Component
from .errors import BestiaryError, suggest

BUILTIN = ("baseline", "attention_mla", "moe", "mtp")
"""Folders of `plugins/`, registered in this order."""

ENTRY_POINTS = "bestiary"
BLOCK_VARIABLE = "BESTIARY_BLOCK"


@dataclass(frozen=True)
class Origin:
    """Where a component comes from."""

    plugin: str
    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.plugin} ({self.distribution} {self.version})"


@dataclass
class Plugins:
    """Every plugin and component that this process knows."""

    slots: dict[str, dict[str, Component[Any]]] = field(default_factory=dict)
    origins: list[Origin] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    """Third-party plugins that could not be used, and why."""
    blocked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for hook in vars(self._manager.hook):
            self._open_slot(hook)

    def find(self, slot: str, name: str) -> Component[Any]:
        """The component of this name.

        Raises:
            BestiaryError: there is none; the message lists those there are and the plugins that did not load.
        """
        if slot not in self.slots:
            raise BestiaryError(f"There is no slot called '{slot}'. {suggest(slot, self.slots)}")
        known = self.slots[slot]
        if name not in known:
            failed = "; ".join(f"{plugin} ({why})" for plugin, why in self.broken.items())
            also = f" Plugins that did not load: {failed}." if failed else ""
            blocked = f" Blocked by {BLOCK_VARIABLE}: {', '.join(self.blocked)}." if self.blocked else ""
            raise BestiaryError(f"No {slot} component is called '{name}'. {suggest(name, known)}{also}{blocked}")
        return known[name]

    def register(self, module: ModuleType | Any, origin: Origin) -> None:
        """Adds a plugin module and its components.

        Raises:
            BestiaryError: another API version, an unknown hook, or a name that is taken already.
        """
        stated = getattr(module, "BESTIARY_API", None)
        if stated != hookspecs.API:
            raise BestiaryError(
                f"Plugin '{origin.plugin}' speaks plugin API {stated}, this bestiary speaks {hookspecs.API}. "
                f"Its module must say BESTIARY_API = {hookspecs.API}; look for a version of {origin.distribution} that does."
            )
        for specs in getattr(module, "BESTIARY_HOOKSPECS", ()):
            self._manager.add_hookspecs(specs)
            for hook in vars(self._manager.hook):
                self._open_slot(hook)
        self._manager.register(module, name=origin.plugin)
        try:
            self._check_hooks(origin)
            self._collect(module, origin)
        except Exception:
            self._manager.unregister(module)
            raise
        self.origins.append(origin)

    def _open_slot(self, hook: str) -> None:
        self.slots.setdefault(hook.removeprefix("bestiary_"), {})

    def _check_hooks(self, origin: Origin) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            unknown = [c.name for c in self._manager.get_hookcallers(error.plugin) or [] if c.spec is None]
            known = [f"bestiary_{slot}" for slot in self.slots]
            raise BestiaryError(
                *(f"Plugin '{origin.plugin}' implements '{hook}', which is no hook. {suggest(hook, known)}" for hook in unknown)
            ) from error

    def _collect(self, module: Any, origin: Origin) -> None:
        offered = [(caller.name.removeprefix("bestiary_"), c) for caller, c in self._offers(module)]
        for slot, component in offered:
            taken = self.slots[slot].get(component.name)
            if taken is not None:
                raise BestiaryError(
                    f"The {slot} component '{component.name}' is offered by both {taken.origin} and {origin}. "
                    f"Block one of them: {BLOCK_VARIABLE}={origin.plugin}."
                )
        for slot, component in offered:
            self.slots[slot][component.name] = replace(component, origin=origin)

    def _offers(self, module: Any) -> Iterator[tuple[Any, Component[Any]]]:
        for caller in self._manager.get_hookcallers(module) or []:
            for impl in caller.get_hookimpls():
                if impl.plugin is not module:
                    continue
                given = impl.function()
                for component in given if isinstance(given, Sequence) else [given]:
                    if not isinstance(component, Component):
                        raise BestiaryError(f"{caller.name} must return a Component or a list of them; it returned {component!r}.")
                    yield caller, component


def discover() -> Plugins:
    """The built-in plugins, then those of installed distributions; a broken one of the latter is remembered."""
    plugins = Plugins()
    blocked = [name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",") if name.strip()]
    root = __package__.rpartition(".")[0]
    for name in BUILTIN:
        if name in blocked:
            plugins.blocked.append(name)
            continue
        module = importlib.import_module(f"{root}.plugins.{name}")
        plugins.register(module, Origin(name, root, _own_version(), module.__name__))
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name in blocked:
            plugins.blocked.append(point.name)
            continue
        try:
            plugins.register(point.load(), _origin(point))
        except BestiaryError as error:
            if "offered by both" in str(error):
                raise
            plugins.broken[point.name] = str(error)
        except Exception as error:
            plugins.broken[point.name] = f"{type(error).__name__}: {error}"
    return plugins


@cache
def plugins() -> Plugins:
    """The plugins of this process, found once."""
    return discover()


def _origin(point: importlib.metadata.EntryPoint) -> Origin:
    distribution = point.dist
    name, version = (distribution.name, distribution.version) if distribution else ("unknown", "unknown")
    return Origin(point.name, name, version, point.value)


def _own_version() -> str:
    try:
        return importlib.metadata.version("bestiary")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def distributions(components: Sequence[Component[Any]]) -> dict[str, str]:
    """Distribution to version, of everything that these components come from."""
    return {c.origin.distribution: c.origin.version for c in components if c.origin}


def list_components(slot: str | None = None) -> dict[str, list[str]] | list[str]:
    """Names of the components of one slot, or of every slot.

    Raises:
        BestiaryError: there is no slot of this name.
    """
    known = plugins().slots
    if slot is None:
        return {name: sorted(components) for name, components in sorted(known.items())}
    if slot not in known:
        raise BestiaryError(f"There is no slot called '{slot}'. {suggest(slot, known)}")
    return sorted(known[slot])
