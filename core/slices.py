"""Which layers a row of `block.at` speaks of, and the tables that result for every layer.

A row's key is a Python slice (`"0:3"`, `"3::4"`) or index (`"-1"`). The plain `block.attention` and `block.ffn`
cover every layer, so that no gap is possible; two rows that fill the same slot of the same layer are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import Problem, suggest
from .tree import Leaf, Tree, leaves, merge

SLOTS = ("attention", "ffn")


@dataclass(frozen=True)
class Slot:
    """What one slot of a layer is filled with."""

    path: str
    """Dotted path of the table that speaks last: the plain one, or a row of `block.at`."""
    tree: Tree


def layer_tables(block: Tree, count: int) -> tuple[list[dict[str, Slot]], list[Problem]]:
    """For each of `count` layers its attention and ffn tables, and everything that is wrong with the slices."""
    problems = [_unknown(key, node, (*SLOTS, "at"), "block") for key, node in block.items() if key not in (*SLOTS, "at")]
    base = {slot: _table(block.get(slot), f"block.{slot}", problems) for slot in SLOTS}
    owner: list[dict[str, str]] = [{} for _ in range(count)]
    tables = [{slot: Slot(f"block.{slot}", base[slot]) for slot in SLOTS} for _ in range(count)]
    at = _table(block.get("at"), "block.at", problems)
    if len(at) > count > 0:
        problems.append(Problem(f"there are {len(at):,} slices for {count} layers.", "block.at", "Write at most one slice a layer."))
        return tables, problems
    for key, row in at.items():
        where = f'block.at."{key}"'
        row_table = _table(row, where, problems)
        chosen, wrong = select(key, count)
        if wrong:
            leaf = next(leaves(row_table), None)
            problems.append(Problem(wrong, f"{leaf.source}: {where}" if leaf else where, _valid(count)))
            continue
        problems += [_unknown(slot, node, SLOTS, where) for slot, node in row_table.items() if slot not in SLOTS]
        for slot in SLOTS:
            if slot not in row_table:
                continue
            table = _table(row_table[slot], f"{where}.{slot}", problems)
            clash = sorted({owner[i][slot] for i in chosen if slot in owner[i]})
            if clash:
                first = next(i for i in chosen if slot in owner[i])
                fact = f'rows "{clash[0]}" and "{key}" both set {slot} of layer {first}.'
                leaf = next(leaves(table), None)
                problems.append(Problem(fact, f"{leaf.source}: {where}" if leaf else where, "Make the slices disjoint."))
                continue
            for i in chosen:
                owner[i][slot] = key
                tables[i][slot] = Slot(f"{where}.{slot}", merge(base[slot], table))
    return tables, problems


def select(key: str, count: int) -> tuple[list[int], str]:
    """The layers that a slice names, and what is wrong with it, if anything."""
    fields = key.split(":")
    try:
        numbers = [int(text) if text.strip() else None for text in fields]
    except ValueError:
        return [], f"'{key}' is no slice of layers."
    outside = [n for n in numbers[:2] if n is not None and not -count <= n <= count]
    if len(fields) > 3 or numbers == [None] or (len(fields) == 3 and numbers[2] == 0):
        return [], f"'{key}' is no slice of layers."
    if outside or (len(fields) == 1 and numbers[0] == count):
        return [], f"slice '{key}' reaches outside the {count} layers."
    if len(fields) == 1:
        return [range(count)[numbers[0] or 0]], ""
    chosen = list(range(count)[slice(*numbers)])
    return chosen, "" if chosen else f"slice '{key}' holds no layer of {count}."


def _valid(count: int) -> str:
    return f'Layers go from 0 to {count - 1}; write a Python slice such as "0:{min(3, count)}" or an index such as "-1".'


def _table(node: Tree | Leaf | None, where: str, problems: list[Problem]) -> Tree:
    if isinstance(node, Leaf):
        problems.append(Problem(f"expected a table, found {node.value!r}.", f"{node.source}: {where}", f"Write [{where}]."))
        return {}
    return node or {}


def _unknown(key: str, node: Tree | Leaf, known: tuple[str, ...], where: str) -> Problem:
    leaf = node if isinstance(node, Leaf) else next(leaves(node), None)
    place = f"{leaf.source}: {where}.{key}" if leaf else f"{where}.{key}"
    return Problem(f"there is no slot called '{key}'.", place, suggest(key, known))
