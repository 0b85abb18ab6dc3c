"""Manifest data before it is checked: nested tables whose leaves remember who set them.

Merging is deep, with one rule of its own: a table whose `use` changes starts afresh, so that options of
the old component cannot linger under the new one. The same holds for the `type` of a table without `use`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import BestiaryError


@dataclass(frozen=True)
class Leaf:
    """A value, the file or option that set it, and its dotted path there."""

    value: Any
    source: str
    path: str


Tree = dict[str, "Tree | Leaf"]

DEEPEST = 32
"""Levels of tables and lists that manifest data may have; nothing valid comes near."""


def quote(key: str) -> str:
    """A key as TOML writes it in a dotted path."""
    return key if key.replace("-", "").replace("_", "").isalnum() else f'"{key}"'


def join(path: str, key: str) -> str:
    """The dotted path of `key` in the table at `path`."""
    return f"{path}.{quote(key)}" if path else quote(key)


def plant(data: Mapping[str, Any], source: str, path: str = "") -> Tree:
    """A tree from plain data."""
    return {
        key: plant(value, source, join(path, key)) if isinstance(value, Mapping) else Leaf(value, source, join(path, key))
        for key, value in data.items()
    }


def plain(tree: Tree) -> dict[str, Any]:
    """The values without their provenance."""
    return {key: node.value if isinstance(node, Leaf) else plain(node) for key, node in tree.items()}


def leaves(tree: Tree) -> Iterator[Leaf]:
    """Every leaf, in the order of the file."""
    for node in tree.values():
        if isinstance(node, Leaf):
            yield node
        else:
            yield from leaves(node)


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with everything that `over` says laid on top."""
    tag = "use" if "use" in base or "use" in over else "type"
    before, after = base.get(tag), over.get(tag)
    if isinstance(before, Leaf) and isinstance(after, Leaf) and before.value != after.value:
        return over
    merged = dict(base)
    for key, node in over.items():
        below = merged.get(key)
        merged[key] = merge(below, node) if isinstance(below, dict) and isinstance(node, dict) else node
    return merged


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """TOML text as data.

    Raises:
        BestiaryError: it is not TOML; names the line. Or it is nested deeper than any manifest.
    """
    try:
        data = tomllib.loads(text)
        deep = deeper_than(data, DEEPEST)
    except (ValueError, OverflowError) as error:
        raise BestiaryError(f"{source}: this is not valid TOML: {error}. Mend the file at that place.") from error
    except RecursionError:
        deep = True
    if deep:
        raise BestiaryError(f"{source}: it is nested deeper than {DEEPEST} levels, and no manifest is. Write the file again.")
    return data


NODES = (dict, list, Mapping)
SCALARS = frozenset((str, int, float, bool, type(None)))


def deeper_than(data: Any, levels: int) -> bool:
    """Whether tables and lists are nested more than `levels` deep."""
    layer = [data]
    for _ in range(levels + 1):
        inner = [node.values() if isinstance(node, Mapping) else node for node in layer if isinstance(node, NODES)]
        if not inner:
            return False
        layer = [value for values in inner for value in values if type(value) not in SCALARS]
    return True


def settings(items: Sequence[str] | Mapping[str, Any]) -> Tree:
    """`--set a.b=value` items, or a mapping of dotted paths, as a tree; later ones win.

    Values are read as TOML, and as plain strings where they are not TOML. Keys with dots or colons are quoted,
    or written bare as in `block.at.0:3.ffn.intermediate_size=96`.
    """
    pairs = items.items() if isinstance(items, Mapping) else [_split(item) for item in items]
    tree: Tree = {}
    for path, value in pairs:
        if isinstance(items, Mapping):
            source = "set"
        else:
            source, value = f"--set {path}={value}", _value(value)
        keys = split_path(path)
        node: Tree | Leaf = plant(value, source, path) if isinstance(value, Mapping) else Leaf(value, source, path)
        for key in reversed(keys):
            node = {key: node}
        assert isinstance(node, dict)
        tree = merge(tree, node)
    return tree


def split_path(path: str) -> list[str]:
    """`block.at."0:3".ffn` and `block.at.0:3.ffn` as their keys."""
    keys, quoted = [""], False
    for letter in path:
        if letter == '"':
            quoted = not quoted
        elif letter == "." and not quoted:
            keys.append("")
        else:
            keys[-1] += letter
    if quoted or "" in keys:
        raise BestiaryError(f"'{path}' is no dotted path. Write it like block.ffn.intermediate_size.")
    return keys


def _split(item: str) -> tuple[str, str]:
    path, equals, value = item.partition("=")
    if not equals or not path.strip():
        raise BestiaryError(f"--set {item}: expected path=value, like --set block.attention.use=gqa.")
    return path.strip(), value.strip()


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
