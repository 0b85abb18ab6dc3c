"""`bestiary.json`: the manifest that travels with weights, its digest, and what made it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError, Problem
from ..core.manifest import Manifest
from .catalog import Settings, resolve
from .lock import OWN, Lock, check_installed, check_lock, installed, listed, lock_of, read_lock
from .safe_json import read_object

RECORD = "bestiary.json"


def record(manifest: Manifest, *, source: Mapping[str, Any] | None = None, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of `bestiary.json`.

    Args:
        manifest: the model.
        source: the code that made the weights, from `working_tree`.
        figures: measured results, such as the last loss of a run.
    """
    told = {"source": source, "figures": figures}
    return {
        "name": manifest.name,
        "bestiary": installed(OWN),
        **lock_of(manifest).table(),
        "digest": manifest.digest,
        **{key: dict(value) for key, value in told.items() if value},
        "manifest": manifest.table(),
    }


def manifest_of(folder: Path, *, set: Settings = (), locked: bool = False) -> Manifest:
    """The manifest of a folder of weights, from its `bestiary.json` or `config.json`, with changes on top.

    Args:
        folder: holds one of them.
        set: changes on top.
        locked: refuse other versions of the plugins than those that made the folder, instead of warning.

    Raises:
        BestiaryError: it cannot be resolved; plugins that it was made with are not installed or are others here; or its
            `bestiary.json` no longer gives the digest that it states.
    """
    path = folder / RECORD
    if not path.is_file():
        return resolve(str(folder), set=set)
    said = read_object(path)
    lock = read_lock(said, path)
    check_installed(lock, path)
    manifest = resolve(str(folder))
    check_lock(lock, manifest, path, locked=locked)
    _check_digest(path, said, lock, manifest)
    return resolve(str(folder), set=set) if set else manifest


def named(manifest: Manifest, name: str) -> Manifest:
    return replace(manifest, name=name) if name else manifest


def working_tree(folder: Path) -> dict[str, Any]:
    """The git commit that is checked out around a folder, and whether tracked files were changed since; empty outside of git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _check_digest(path: Path, said: dict[str, Any], lock: Lock, manifest: Manifest) -> None:
    stated = said.get("digest")
    if stated is None or stated == manifest.digest:
        return
    fact = f"its manifest gives the digest {manifest.digest[:12]}, it states {str(stated)[:12]}: it was edited, or other versions read it."
    here = listed(lock_of(manifest).distributions)
    remedy = f"It was made with {listed(lock.distributions)}; here are {here}. Restore it, or remove the line `digest` to accept it."
    raise BestiaryError(Problem(fact, str(path), remedy))
