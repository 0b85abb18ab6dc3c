"""The plugin lock: which distributions a model's components came from, compared with what is installed here.

A lock is read before anything else of a record is: nothing that it names is ever installed or imported because it is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError, Problem
from ..core.manifest import Manifest
from ..core.plugins import distributions

OWN = "bestiary"


@dataclass(frozen=True)
class Lock:
    """What a model was made with."""

    distributions: Mapping[str, str]
    """Distribution to version."""
    components: Mapping[str, str]
    """`slot/name` of every component that does something in the model, to its distribution."""

    def table(self) -> dict[str, Any]:
        return {"distributions": dict(self.distributions), "components": dict(self.components)}


def lock_of(manifest: Manifest) -> Lock:
    """The lock of a manifest as it resolved here."""
    found = {name: part.origin.distribution for name, part in manifest.components_by_slot().items() if part.origin}
    return Lock(distributions(manifest.components()), dict(sorted(found.items())))


def read_lock(said: Mapping[str, Any], path: Path) -> Lock:
    """The lock in the data of a record; an empty one where it has none.

    Raises:
        BestiaryError: it is no table of strings.
    """
    tables = [said.get("distributions", {}), said.get("components", {})]
    for table in tables:
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise BestiaryError(f"{path}: its plugin lock is no table of names and versions. Fetch the file again.")
    return Lock(*tables)


def check_installed(lock: Lock, path: Path) -> None:
    """Refuses a model whose plugins are not all installed.

    Raises:
        BestiaryError: names each missing distribution with the version that was used.
    """
    missing = [f"{name}=={number}" for name, number in lock.distributions.items() if name != OWN and installed(name) == "unknown"]
    if missing:
        names = {item.partition("==")[0] for item in missing}
        used = ", ".join(name for name, made in lock.components.items() if made in names)
        fact = f"it was made with {', '.join(missing)}, which is not installed{f' and brings {used}' if used else ''}."
        raise BestiaryError(Problem(fact, str(path), f"Install it if you trust its author: pip install {' '.join(missing)}"))


def check_lock(lock: Lock, manifest: Manifest, path: Path, *, locked: bool = False) -> None:
    """Compares what a manifest resolved to here with what it was made with; warns where only versions differ.

    Args:
        lock: what it was made with.
        manifest: the same model, resolved here.
        path: the record, for messages.
        locked: refuse other versions instead of warning.

    Raises:
        BestiaryError: a component comes from another distribution, or a version differs and `locked` is set.
    """
    here = lock_of(manifest)
    moved = [
        Problem(f"{name} came from {was}, and here it comes from {here.components[name]}.", str(path), f"Uninstall one, or install {was}.")
        for name, was in lock.components.items()
        if here.components.get(name, was) != was
    ]
    if moved:
        raise BestiaryError(*moved)
    differ = {name: was for name, was in lock.distributions.items() if here.distributions.get(name, was) != was}
    if not differ:
        return
    fact = f"it was made with {listed(differ)}, and here are {listed({name: here.distributions[name] for name in differ})}."
    if locked:
        pinned = " ".join(f"{name}=={number}" for name, number in differ.items())
        raise BestiaryError(Problem(fact, str(path), f"Run `pip install {pinned}`, or read it unlocked."))
    warnings.warn(f"{path}: {fact}", stacklevel=2)


def listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items()) or "an unknown version"


def installed(distribution: str) -> str:
    """The installed version of a distribution, or `unknown`."""
    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):
        return "unknown"
