"""Checks a recipe or study against its options, as manifests are checked: every problem at once, each with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..core.component import Options
from ..core.errors import BestiaryError, Problem, suggest
from ..core.tree import Leaf, Tree, leaves, parse_toml, plain, plant

SCHEMA = 1
O = TypeVar("O", bound=Options)  # noqa: E741


def read(path: Path) -> Tree:
    """The data of a TOML or JSON file, each leaf knowing the file.

    Raises:
        BestiaryError: the file is missing, unreadable, or not what its suffix says.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BestiaryError(f"There is no file {path}. Give the path of a recipe or study in TOML.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BestiaryError(f"{path}: this file cannot be read as text: {error}.") from error
    return plant(_json(text, path) if path.suffix == ".json" else parse_toml(text, str(path)), str(path))


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BestiaryError(f"{path}: this is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise BestiaryError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def check(kind: type[O], tree: Tree, *, of: str) -> tuple[O | None, list[Problem]]:
    """Options of `kind` from `tree`, or None and everything that is wrong.

    Args:
        kind: the record that the whole tree describes; its `schema` line is checked apart.
        tree: the data with its provenance.
        of: what a message calls the whole (`recipe`).
    """
    problems = _schema(tree, of)
    values = plain({key: node for key, node in tree.items() if key != "schema"})
    try:
        options = kind.model_validate(values)
    except ValidationError as error:
        return None, problems + [_problem(kind, detail, tree, of) for detail in error.errors()]
    return (None if problems else options), problems


def _schema(tree: Tree, of: str) -> list[Problem]:
    node = tree.get("schema")
    if not isinstance(node, Leaf):
        return [Problem(f"the {of} does not say its schema.", _source(tree), f"Write schema = {SCHEMA} at its top.")]
    if node.value != SCHEMA:
        return [Problem(f"schema {node.value!r} is unknown.", f"{node.source}: schema", f"This bestiary reads schema = {SCHEMA}.")]
    return []


def _problem(kind: type[Options], detail: ErrorDetails, tree: Tree, of: str) -> Problem:
    location = [str(step) for step in detail["loc"]]
    node, dotted = _descend(tree, location), ".".join(location)
    where = f"{node.source}: {node.path}" if isinstance(node, Leaf) else f"{_source(tree)}: {dotted}".removesuffix(": ")
    holder = f"[{'.'.join(location[:-1])}]" if len(location) > 1 else f"the {of}"
    match detail["type"]:
        case "extra_forbidden":
            return Problem(f"{holder} has no option '{location[-1]}'.", where, suggest(location[-1], _known(kind, location[:-1])))
        case "missing":
            return Problem(f"{holder} needs '{location[-1]}', which is not set.", where, f"Set {dotted}.")
        case _:
            found = f" (found {node.value!r})" if isinstance(node, Leaf) else ""
            message = detail["msg"].removeprefix("Value error, ").rstrip(".")
            return Problem(f"{message[0].lower()}{message[1:]}{found}.", where)


def _known(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Options of the table at `location`."""
    for step in location:
        kind = next(inner for inner in _types(kind, step) if isinstance(inner, type) and issubclass(inner, BaseModel))
    names = [field.alias or name for name, field in kind.model_fields.items()]
    return [*names, *(["schema"] if not location else [])]


def _types(kind: type[BaseModel], option: str) -> tuple[Any, ...]:
    """What an option may hold: its type, or those of its union."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    annotation = fields[option].annotation
    return get_args(annotation) or (annotation,)


def _descend(tree: Tree, location: Sequence[str]) -> Tree | Leaf | None:
    node: Tree | Leaf | None = tree
    for step in location:
        if not isinstance(node, Mapping):
            return node
        node = node.get(step)
    return node


def _source(tree: Tree) -> str:
    leaf = next(leaves(tree), None)
    return leaf.source if leaf else ""


def table(options: Options) -> dict[str, Any]:
    """The options as data that reads back equal."""
    return {"schema": SCHEMA, **options.model_dump(mode="json")}
