"""What differs between two manifests, setting by setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from .manifest import Manifest
from .tree import join


class Difference(NamedTuple):
    """A setting that two manifests resolve differently; None stands for one that has no such setting."""

    path: str
    a: Any
    b: Any


def differences(a: Manifest, b: Manifest) -> list[Difference]:
    """Every setting whose resolved value differs, neighbouring layers that differ alike as one slice.

    Names and descriptions are not compared.
    """
    left, right = a.table(), b.table()
    found = []
    for section in ("model", "block", "precision", "objective", "parallelism", "hub"):
        if section == "block":
            found += _layers(a, b)
        else:
            found += _compare(left[section], right[section], section)
    return found


def _layers(a: Manifest, b: Manifest) -> Iterator[Difference]:
    count = max(len(a.layers), len(b.layers))
    each = [(index, tuple(_compare(_layer(a, index), _layer(b, index), ""))) for index in range(count)]
    for _, run in groupby(each, key=lambda item: repr(item[1])):
        layers = [index for index, _ in run]
        where = f'block.at."{layers[0]}:{layers[-1] + 1}"' if len(layers) < count else "block"
        yield from (Difference(f"{where}.{row.path}", row.a, row.b) for row in each[layers[0]][1])


def _layer(manifest: Manifest, index: int) -> dict[str, Any]:
    return manifest.layers[index].table() if index < len(manifest.layers) else {}


def _compare(a: Mapping[str, Any], b: Mapping[str, Any], path: str) -> Iterator[Difference]:
    flat_a, flat_b = dict(_flatten(a, path)), dict(_flatten(b, path))
    for key in flat_a | flat_b:
        if flat_a.get(key) != flat_b.get(key):
            yield Difference(key, flat_a.get(key), flat_b.get(key))


def _flatten(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        inner = join(path, key)
        if isinstance(value, Mapping):
            yield from _flatten(value, inner)
        else:
            yield inner, value
