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
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

import pluggy

from . import hookspecs
from .component import Component
from .errors import BestiaryError, suggest

BUILTIN = ("baseline", "attention_mla", "moe", "mtp", "fp8", "dualpipe", "fsdp")
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

    @property
    def built_in(self) -> bool:
        """Whether it is part of Bestiary itself, whose tests prove every component's contract."""
        return self.module.startswith(f"{__name__.rsplit('.', 2)[0]}.plugins.")

    def __str__(self) -> str:
        return f"{self.plugin} ({self.distribution} {self.version})"


class DuplicateError(BestiaryError):
    """Two plugins offer a component of one name: whichever were taken, a manifest would no longer say what it means."""


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
        self._open_slots(hookspecs)

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
        self.prepare(module, origin)
        if known := next((known for known in self.origins if known.plugin == origin.plugin), None):
            raise BestiaryError(f"Two plugins are called '{origin.plugin}': {known} and {origin}. Rename the entry point of one of them.")
        self._manager.register(module, name=origin.plugin)
        try:
            self._check_hooks(origin)
            self._collect(module, origin)
        except Exception:
            self._manager.unregister(module)
            raise
        self.origins.append(origin)

    def prepare(self, module: ModuleType | Any, origin: Origin) -> None:
        """Opens the slots that a plugin brings. Done for all plugins first, so that the order in which they are found does not matter.

        Raises:
            BestiaryError: it speaks another API version.
        """
        stated = getattr(module, "BESTIARY_API", None)
        if stated != hookspecs.API:
            raise BestiaryError(
                f"Plugin '{origin.plugin}' speaks plugin API {stated}, this bestiary speaks {hookspecs.API}. "
                f"Its module must say BESTIARY_API = {hookspecs.API}; look for a version of {origin.distribution} that does."
            )
        for specs in getattr(module, "BESTIARY_HOOKSPECS", ()):
            self._open_slots(specs)

    @contextmanager
    def remembering(self, plugin: str) -> Iterator[None]:
        """Notes in `broken` what goes wrong inside, instead of raising it; a duplicate name is raised all the same."""
        try:
            yield
        except DuplicateError:
            raise
        except BestiaryError as error:
            self.broken[plugin] = str(error)
        except Exception as error:
            self.broken[plugin] = f"{type(error).__name__}: {error}"

    def _open_slots(self, specs: Any) -> None:
        names = [name for name in dir(specs) if self._manager.parse_hookspec_opts(specs, name) is not None]
        if any(name.removeprefix("bestiary_") not in self.slots for name in names):
            self._manager.add_hookspecs(specs)
        for name in names:
            self.slots.setdefault(name.removeprefix("bestiary_"), {})

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
        offered: dict[tuple[str, str], Component[Any]] = {}
        for caller, component in self._offers(module):
            slot, name = caller.name.removeprefix("bestiary_"), component.name
            if (slot, name) in offered:
                raise BestiaryError(f"{origin} offers two {slot} components called '{name}'. Rename one of them.")
            if (taken := self.slots[slot].get(name)) is not None:
                raise DuplicateError(
                    f"The {slot} component '{name}' is offered by both {taken.origin} and {origin}. "
                    f"Block one of them: {BLOCK_VARIABLE}={origin.plugin}."
                )
            offered[slot, name] = replace(component, origin=origin)
        for (slot, name), component in offered.items():
            self.slots[slot][name] = component

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
    root = __name__.rsplit(".", 2)[0]
    for name in BUILTIN:
        if name in blocked:
            plugins.blocked.append(name)
            continue
        module = importlib.import_module(f"{root}.plugins.{name}")
        plugins.register(module, Origin(name, root, _own_version(), module.__name__))
    loaded: list[tuple[Any, Origin]] = []
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name in blocked:
            plugins.blocked.append(point.name)
            continue
        with plugins.remembering(point.name):
            module, origin = point.load(), _origin(point)
            plugins.prepare(module, origin)
            loaded.append((module, origin))
    for module, origin in loaded:
        with plugins.remembering(origin.plugin):
            plugins.register(module, origin)
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
