"""`bestiary.json`: the manifest that travels with weights, its digest, and what made it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError, Problem
from ..core.manifest import Manifest
from ..core.plugins import distributions
from .catalog import Settings, resolve

RECORD = "bestiary.json"


def record(manifest: Manifest) -> dict[str, Any]:
    """The content of `bestiary.json`."""
    return {
        "name": manifest.name,
        "bestiary": _version("bestiary"),
        "distributions": distributions(manifest.components()),
        "digest": manifest.digest,
        "manifest": manifest.table(),
    }


def manifest_of(folder: Path, *, set: Settings = ()) -> Manifest:
    """The manifest of a folder of weights, from its `bestiary.json` or `config.json`, with changes on top.

    Raises:
        BestiaryError: it cannot be resolved (names the distributions that it was made with and that are not installed), or
            a `bestiary.json` no longer gives the digest that it states.
    """
    path = folder / RECORD
    if not path.is_file():
        return resolve(str(folder), set=set)
    said = _read(path)
    try:
        manifest = resolve(str(folder))
    except BestiaryError as error:
        raise BestiaryError(*error.problems, *_not_installed(path, said)) from error
    _check_digest(path, said, manifest)
    return resolve(str(folder), set=set) if set else manifest


def named(manifest: Manifest, name: str) -> Manifest:
    return replace(manifest, name=name) if name else manifest


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BestiaryError(f"{path}: this is not valid JSON: {error}. Fetch it again.") from error
    return data if isinstance(data, dict) else {}


def _check_digest(path: Path, said: dict[str, Any], manifest: Manifest) -> None:
    stated = said.get("digest")
    if stated is None or stated == manifest.digest:
        return
    made = ", ".join(f"{name} {number}" for name, number in _made_with(said).items()) or "an unknown version"
    here = ", ".join(f"{name} {number}" for name, number in distributions(manifest.components()).items())
    fact = f"its manifest gives the digest {manifest.digest[:12]}, it states {str(stated)[:12]}: it was edited, or other versions read it."
    remedy = f"It was made with {made}; here are {here}. Restore it, or remove the line `digest` to accept the manifest as it is."
    raise BestiaryError(Problem(fact, str(path), remedy))


def _not_installed(path: Path, said: dict[str, Any]) -> list[Problem]:
    missing = [f"{name}=={number}" for name, number in _made_with(said).items() if _version(name) == "unknown"]
    if not missing:
        return []
    fact = f"it was made with {', '.join(missing)}, which is not installed."
    return [Problem(fact, str(path), f"Install it if you trust its author: pip install {' '.join(missing)}")]


def _made_with(said: dict[str, Any]) -> dict[str, str]:
    found = said.get("distributions")
    return {str(name): str(number) for name, number in found.items()} if isinstance(found, dict) else {}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
