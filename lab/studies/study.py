"""A study: one recipe, several variants of its model, one of them the baseline.

    schema = 1
    recipe = "../recipes/nano.toml"
    baseline = "mla-moe"
    [variants.mla-moe]
    [variants.gqa]
    block.attention.use = "gqa"
    block.attention.num_key_value_heads = 2

A variant is a table of changes to the recipe's model, the same that `--set` makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from ...core.component import Options
from ...core.errors import BestiaryError, Problem, suggest
from ...core.manifest import Manifest
from ...core.tree import Leaf, Tree, settings
from ..checked import check, read
from ..options import Recipe
from ..recipe import Settings, recipe_from, with_set


class StudyOptions(Options):
    title: str = ""
    """Heading of the report; the file's name when empty."""
    description: str = ""
    """What the study asks, a sentence or two for the report."""
    recipe: str | dict[str, Any]
    """Path of the recipe that all variants share, or the recipe itself as a table."""
    baseline: str
    """The variant that the others are compared with."""
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    """Changes of the recipe's model, by name."""
    out: str = ""
    """Folder for runs and report; `runs/<study's file name>` in the working directory when empty."""


@dataclass(frozen=True)
class Study:
    """A study, checked: one recipe for each variant, the baseline first."""

    title: str
    description: str
    baseline: str
    recipes: dict[str, Recipe]
    manifests: dict[str, Manifest]
    out: Path
    source: Path
    """The file."""
    set: tuple[str, ...] = ()
    """Changes that were laid on top, as the command line takes them."""


def load_study(path: str | Path, *, set: Settings = ()) -> Study:
    """Reads and checks a study, its recipe, and the manifest of every variant.

    Args:
        path: a TOML file.
        set: changes of the recipe and of every variant's model, as for `load_recipe`.

    Raises:
        BestiaryError: with everything that is wrong in any of them.
    """
    path = Path(path).expanduser().resolve()
    tree = read(path)
    options, problems = check(StudyOptions, tree, of="study")
    if options is None:
        raise BestiaryError(*problems)
    problems += _names(options, path)
    recipe, found = _recipe(options, tree, path, set)
    problems += found
    manifests: dict[str, Manifest] = {}
    recipes: dict[str, Recipe] = {}
    if recipe is not None:
        for name in sorted(options.variants, key=lambda name: name != options.baseline):
            recipes[name] = with_set(recipe, settings(options.variants[name]))
            try:
                manifests[name] = recipes[name].manifest()
            except BestiaryError as error:
                problems += [_in_variant(problem, path, name) for problem in error.problems]
    if problems:
        raise BestiaryError(*dict.fromkeys(problems))
    out = (path.parent / Path(options.out).expanduser()).resolve() if options.out else Path.cwd() / "runs" / path.stem
    return Study(
        options.title or path.stem, " ".join(options.description.split()), options.baseline, recipes, manifests, out, path, _items(set)
    )


def _items(set: Settings) -> tuple[str, ...]:
    return tuple(f"{path}={json.dumps(value)}" for path, value in set.items()) if isinstance(set, Mapping) else tuple(set)


def _names(options: StudyOptions, path: Path) -> list[Problem]:
    problems = []
    if options.baseline not in options.variants:
        problems.append(
            Problem(f"there is no variant '{options.baseline}'.", f"{path}: baseline", suggest(options.baseline, options.variants))
        )
    for name in options.variants:
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            problems.append(Problem("a variant names a folder: use letters, digits, '-', '_' and '.'.", f'{path}: variants."{name}"'))
    return problems


def _recipe(options: StudyOptions, tree: Tree, path: Path, set: Settings) -> tuple[Recipe | None, list[Problem]]:
    if not isinstance(options.recipe, str):
        node = tree["recipe"]
        inline = {"schema": Leaf(1, str(path), "schema")} | (node if isinstance(node, dict) else {})
        return recipe_from(inline, path.parent, name=path.stem, set=set)
    source = (path.parent / Path(options.recipe).expanduser()).resolve()
    try:
        return recipe_from(read(source), source.parent, name=source.stem, set=set)
    except BestiaryError as error:
        return None, [Problem(problem.fact, problem.where or f"{path}: recipe", problem.remedy) for problem in error.problems]


def _in_variant(problem: Problem, path: Path, name: str) -> Problem:
    place = problem.where.removeprefix("set: ")
    return Problem(problem.fact, f"{path}: variants.{name}{f': {place}' if place else ''}", problem.remedy)
