"""Finds manifests: in the catalog, in files and folders, and on the Hub.

A reference is a catalog name (`deepseek-v3`), a path (`./ablate.toml`, or a folder with `bestiary.json` or `config.json`), a
Hub id (`organisation/name[@revision]`), or a `file:` registry (`file:path[@revision]`). `extends` and the command line take the
same references.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError, Problem, suggest
from ..core.manifest import Manifest
from ..core.plugins import Plugins
from ..core.resolve import resolve as resolve_chain
from ..core.tree import Leaf, Tree, parse_toml, plant, settings
from .repository import FILE, open_repository
from .safe_json import CONFIG, read_bytes, read_object

MANIFESTS = Path(__file__).parent / "manifests"
Settings = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """Manifest data as found, before anything is merged."""

    name: str
    tree: Tree
    folder: Path
    """Where paths in its `extends` start."""


def list_models(pattern: str = "*") -> list[str]:
    """Catalog names that match a shell pattern."""
    return sorted(name for name in _catalog() if fnmatch.fnmatch(name, pattern))


def resolve(reference: str | Path | Mapping[str, Any], *, set: Settings = (), plugins: Plugins | None = None) -> Manifest:
    """The resolved manifest that `reference` names.

    Args:
        reference: a catalog name, a path, a Hub id, or manifest data itself.
        set: changes on top, as `{"block.attention.use": "gqa"}` or `["block.attention.use=gqa"]`.
        plugins: where components are looked up; the installed ones by default.

    Raises:
        BestiaryError: it cannot be found or read, or has problems; all of them are listed.
    """
    if isinstance(reference, Mapping):
        first = Document(str(reference.get("name", "manifest")), plant(reference, "manifest"), Path.cwd())
    else:
        first = find(str(reference), Path.cwd())
    chain = [document.tree for document in _chain(first)]
    return resolve_chain([*chain, settings(set)], name=first.name, plugins=plugins)


def find(reference: str, folder: Path) -> Document:
    """The document that `reference` names; paths start at `folder`.

    Raises:
        BestiaryError: there is no such manifest; names the nearest one.
    """
    if reference in _catalog():
        return _file(MANIFESTS / f"{reference}.toml")
    if reference.startswith(FILE):
        return _repository(reference)
    path = (folder / Path(reference).expanduser()).resolve()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if _looks_like_path(reference):
        raise BestiaryError(f"There is no file {path}. Give the path of a manifest, or one of the names that `bestiary list` prints.")
    if "/" in reference:
        return _repository(reference)
    raise BestiaryError(f"No model is called '{reference}'. {suggest(reference, _catalog())}")


def _chain(first: Document) -> list[Document]:
    """The document and everything that it extends, root first."""
    chain, seen = [first], [first.name]
    while (parent := chain[0].tree.get("extends")) is not None:
        if not isinstance(parent, Leaf) or not isinstance(parent.value, str):
            raise BestiaryError(f"{chain[0].name}: extends: expected one name, path or Hub id in quotes.")
        try:
            document = find(parent.value, chain[0].folder)
        except BestiaryError as error:
            raise BestiaryError(*(Problem(p.fact, f"{parent.source}: extends", p.remedy) for p in error.problems)) from error
        if document.name in seen and any(document.tree == known.tree for known in chain):
            circle = " -> ".join([*seen, document.name])
            raise BestiaryError(f"{parent.source}: extends: this goes in a circle: {circle}. Remove one of these `extends`.")
        chain.insert(0, document)
        seen.append(document.name)
    return chain


def _catalog() -> list[str]:
    return sorted(path.stem for path in MANIFESTS.glob("*.toml"))


def _looks_like_path(reference: str) -> bool:
    return reference.endswith((".toml", ".json")) or reference.startswith((".", "/", "~")) or reference.count("/") > 1


def _file(path: Path) -> Document:
    data = read_object(path) if path.suffix == ".json" else parse_toml(_text(path), _shown(path))
    if path.name == "config.json" or "model_type" in data:
        return _config(data, path)
    manifest = data.get("manifest", data)
    if not isinstance(manifest, Mapping):
        raise BestiaryError(f"{path}: manifest: expected a table, found {type(manifest).__name__}. Fetch or write the file again.")
    if path.name == "bestiary.json" and "extends" in manifest:
        remedy = "Write its manifest out with `bestiary show --toml` where it can be read, and save again."
        raise BestiaryError(Problem("a manifest that travels with weights is complete, and this one extends another.", str(path), remedy))
    return Document(str(data.get("name") or path.stem), plant(manifest, _shown(path)), path.parent)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, CONFIG, "Write the file again.").decode()
    except UnicodeDecodeError as error:
        raise BestiaryError(f"{path}: this file is no text in UTF-8: {error}. Write the file again.") from error


def _folder(path: Path) -> Document:
    for name in ("bestiary.json", "config.json"):
        if (path / name).is_file():
            document = _file(path / name)
            return Document(document.name if name == "bestiary.json" else path.name, document.tree, path)
    raise BestiaryError(
        f"{path}: this folder holds neither bestiary.json nor config.json. Give a folder that `bestiary.save` or transformers wrote."
    )


def _repository(reference: str) -> Document:
    repository = open_repository(reference)
    held = {file.path for file in repository.files()}
    for name in ("bestiary.json", "config.json"):
        if name in held:
            document = _file(repository.fetch([name]) / name)
            return Document(repository.name, document.tree, document.folder)
    raise BestiaryError(f"{reference} holds neither bestiary.json nor config.json, so it is no model that can be assembled.")


def _config(data: dict[str, Any], path: Path) -> Document:
    from .hub_config import manifest_from_config

    return Document(path.parent.name, plant(manifest_from_config(data, str(path)), str(path)), path.parent)


def _shown(path: Path) -> str:
    """Catalog manifests by their name, other files by their path."""
    return path.name if path.parent == MANIFESTS else str(path)
