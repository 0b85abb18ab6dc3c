"""Variants that a study does not spell out: every combination of alternatives, or each alternative alone.

    [grid]
    optimizer.lr = [1e-3, 3e-3]
    block.ffn.n_routed_experts = [8, 16]
    [one-at-a-time]
    block.attention.use = ["gqa"]

A name says what was set: `lr-0.001_n_routed_experts-8`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...core.errors import Problem
from ...core.tree import Leaf, Tree, join, merge, plant, split_path


@dataclass(frozen=True)
class Axis:
    """One setting and its alternatives."""

    path: str
    values: tuple[Any, ...]
    source: str


def grid(tree: Tree) -> tuple[dict[str, Tree], list[Problem]]:
    """One variant for every combination, by name."""
    axes, problems = _axes(tree)
    labels = _labels([axis.path for axis in axes])
    points = product(*([(label, axis, value) for value in axis.values] for label, axis in zip(labels, axes, strict=True)))
    return _collect((point for point in points if point), problems)


def one_at_a_time(tree: Tree) -> tuple[dict[str, Tree], list[Problem]]:
    """One variant for every alternative, by name."""
    axes, problems = _axes(tree)
    labels = _labels([axis.path for axis in axes])
    points = [((label, axis, value),) for label, axis in zip(labels, axes, strict=True) for value in axis.values]
    return _collect(points, problems)


def _axes(tree: Tree) -> tuple[list[Axis], list[Problem]]:
    axes, problems = [], []
    for path, leaf in _leaves(tree, ""):
        if isinstance(leaf.value, list) and leaf.value:
            axes.append(Axis(path, tuple(leaf.value), leaf.source))
        else:
            fact = f"expected a list of alternatives, found {leaf.value!r}."
            problems.append(Problem(fact, f"{leaf.source}: {leaf.path}", "Write them as [one, other]."))
    return axes, problems


def _leaves(tree: Tree, path: str) -> Iterator[tuple[str, Leaf]]:
    for key, node in tree.items():
        inner = join(path, key)
        if isinstance(node, Leaf):
            yield inner, node
        else:
            yield from _leaves(node, inner)


def _labels(paths: Sequence[str]) -> list[str]:
    """The shortest end of each path that no other path ends in."""
    keys = [split_path(path) for path in paths]
    labels = []
    for own in keys:
        sizes = range(1, len(own) + 1)
        size = next((n for n in sizes if sum(other[-n:] == own[-n:] for other in keys) == 1), len(own))
        labels.append(_safe(".".join(own[-size:])))
    return labels


def _collect(points: Any, problems: list[Problem]) -> tuple[dict[str, Tree], list[Problem]]:
    found: dict[str, Tree] = {}
    for point in points:
        name = "_".join(f"{label}-{_word(value)}" for label, _, value in point)
        tree: Tree = {}
        for _, axis, value in point:
            tree = merge(tree, _planted(axis, value))
        if name in found:
            problems.append(Problem(f"two variants would be called '{name}'.", point[0][1].source, "Name them in [variants] instead."))
        found[name] = tree
    return found, problems


def _planted(axis: Axis, value: Any) -> Tree:
    node: Tree | Leaf = plant(value, axis.source, axis.path) if isinstance(value, Mapping) else Leaf(value, axis.source, axis.path)
    for key in reversed(split_path(axis.path)):
        node = {key: node}
    assert isinstance(node, dict)
    return node


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(_word(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return "-".join(_word(inner) for inner in value)
    return _safe(str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value))


def _safe(text: str) -> str:
    """Letters, digits, '-', '_' and '.' only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("+", ""))
