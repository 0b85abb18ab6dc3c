"""A study: one recipe, variants of it and of its model, one of them the baseline, and the seeds that all are trained from.

    schema = 1
    recipe = "../recipes/nano.toml"
    baseline = "mla"
    seeds = [0, 1, 2]
    match = { same = "active_parameters", by = "block.attention.head_dim", multiple_of = 2 }
    [variants.mla]
    [variants.gqa]
    block.attention.use = "gqa"
    block.attention.num_key_value_heads = 2

A variant is a table of changes, the same that `--set` makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import BestiaryError, Problem, suggest
from ...core.tree import Leaf, Tree, merge
from ..checked import SCHEMA, check, read
from ..options import Recipe
from ..recipe import Settings, recipe_from
from .full_scale import FullScale, full_scale
from .matching import Matched
from .options import MatchOptions, StudyOptions
from .sweeps import grid, one_at_a_time
from .variants import Variant, make

SWEEPS = {"grid": grid, "one-at-a-time": one_at_a_time}


@dataclass(frozen=True)
class Study:
    """A study, checked."""

    title: str
    description: str
    baseline: str
    variants: dict[str, Variant]
    """The baseline first."""
    seeds: tuple[int, ...] | None
    """None: one run, of the recipe's own seeds."""
    same_as_baseline: tuple[str, ...]
    """Points of a sweep that are left out, because they change nothing."""
    full_scale: FullScale | None
    out: Path
    source: Path
    """The file."""
    set: tuple[str, ...] = ()
    """Changes that were laid on top, as the command line takes them."""

    def runs(self, variant: str) -> dict[int, Recipe]:
        """A variant's recipe for every seed; the seed decides initial weights and the order of the data."""
        recipe = self.variants[variant].recipe
        if self.seeds is None:
            return {recipe.train.seed: recipe}
        return {seed: _seeded(recipe, seed) for seed in self.seeds}

    @property
    def matched(self) -> dict[str, Matched]:
        """What was solved for, by variant."""
        return {name: variant.matched for name, variant in self.variants.items() if variant.matched}


def load_study(path: str | Path, *, set: Settings = ()) -> Study:
    """Reads and checks a study, its recipe, and the recipe and manifest of every variant.

    Args:
        path: a TOML file.
        set: changes of the recipe and of every variant's model, as for `load_recipe`.

    Raises:
        BestiaryError: with everything that is wrong in any of them.
    """
    path = Path(path).expanduser().resolve()
    tree = _spelled_out(read(path))
    options, problems = check(StudyOptions, tree, of="study")
    if options is None:
        raise BestiaryError(*problems)
    recipe, found = _recipe(options, tree, path, set)
    changes, wrong = _changes(options, tree, path)
    problems += [*found, *wrong]
    if recipe is None:
        raise BestiaryError(*dict.fromkeys(problems))
    variants, found = _variants(options, recipe, changes, tree, path)
    problems += found
    if problems:
        raise BestiaryError(*dict.fromkeys(problems))
    base = variants[options.baseline]
    swept = [name for name in variants if name not in options.variants and name != options.baseline]
    same = tuple(name for name in swept if variants[name].same_as(base))
    kept = {name: variant for name, variant in variants.items() if name not in same}
    return Study(
        options.title or path.stem,
        " ".join(options.description.split()),
        options.baseline,
        kept,
        None if options.seeds is None else tuple(dict.fromkeys(options.seeds)),
        same,
        full_scale(options.full_scale, kept, options.baseline, path),
        (path.parent / Path(options.out).expanduser()).resolve() if options.out else Path.cwd() / "runs" / path.stem,
        path,
        _items(set),
    )


def _spelled_out(tree: Tree) -> Tree:
    """`match = "tokens"` as `match.same = "tokens"`."""
    node = tree.get("match")
    return {**tree, "match": {"same": node}} if isinstance(node, Leaf) else tree


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    parts = {name: getattr(recipe, name).model_copy(update={"seed": seed}) for name in ("train", "data")}
    return recipe.model_copy(update=parts)


def _recipe(options: StudyOptions, tree: Tree, path: Path, set: Settings) -> tuple[Recipe | None, list[Problem]]:
    if not isinstance(options.recipe, str):
        node = tree["recipe"]
        inline = {"schema": Leaf(SCHEMA, str(path), "schema")} | (node if isinstance(node, dict) else {})
        return recipe_from(inline, path.parent, name=path.stem, set=set)
    source = (path.parent / Path(options.recipe).expanduser()).resolve()
    try:
        return recipe_from(read(source), source.parent, name=source.stem, set=set)
    except BestiaryError as error:
        return None, [Problem(problem.fact, problem.where or f"{path}: recipe", problem.remedy) for problem in error.problems]


def _changes(options: StudyOptions, tree: Tree, path: Path) -> tuple[dict[str, Tree], list[Problem]]:
    """What every variant changes, those of sweeps on top of the baseline; the baseline first."""
    own = _table(tree, "variants")
    changes: dict[str, Tree] = {name: node for name, node in own.items() if isinstance(node, dict)}
    swept: dict[str, Tree] = {}
    problems: list[Problem] = []
    for section, expand in SWEEPS.items():
        found, wrong = expand(_table(tree, section))
        problems += wrong
        problems += [_twice(name, path) for name in found if name in changes or name in swept]
        swept |= found
    problems += [_unfit(name, path) for name in changes if not name.replace("-", "").replace("_", "").replace(".", "").isalnum()]
    if options.baseline == "baseline":
        changes.setdefault("baseline", {})
    if options.baseline not in changes:
        problems.append(Problem(f"there is no variant '{options.baseline}'.", f"{path}: baseline", suggest(options.baseline, changes)))
        return changes, problems
    base = changes[options.baseline]
    if "match" in base:
        problems.append(
            Problem("the baseline is what others are matched with.", f"{path}: variants.{options.baseline}.match", "Remove it.")
        )
    changes |= {name: merge(base, node) for name, node in swept.items()}
    return dict(sorted(changes.items(), key=lambda item: item[0] != options.baseline)), problems


def _table(tree: Tree, name: str) -> Tree:
    node = tree.get(name, {})
    return node if isinstance(node, dict) else {}


def _twice(name: str, path: Path) -> Problem:
    return Problem(f"two variants are called '{name}'.", f"{path}: variants.{name}", "Rename one, or take it out of the sweep.")


def _unfit(name: str, path: Path) -> Problem:
    return Problem("a variant names a folder: use letters, digits, '-', '_' and '.'.", f'{path}: variants."{name}"')


def _variants(
    options: StudyOptions, recipe: Recipe, changes: Mapping[str, Tree], tree: Tree, path: Path
) -> tuple[dict[str, Variant], list[Problem]]:
    """Every variant; the baseline is first, and the others are matched with it, or only checked where it is not sound."""
    made: dict[str, Variant] = {}
    problems: list[Problem] = []
    for name, own in changes.items():
        rule, wrong = _rule(options, tree, own)
        problems += wrong
        try:
            if rule is not None:
                own = {key: node for key, node in own.items() if key != "match"}
                made[name] = make(recipe, own, rule, made.get(options.baseline), path.parent)
        except BestiaryError as error:
            problems += [_in_variant(problem, path, name) for problem in error.problems]
    return made, problems


def _rule(options: StudyOptions, tree: Tree, own: Tree) -> tuple[MatchOptions | None, list[Problem]]:
    """The study's rule, or what a variant makes of it: a word replaces it, a table changes it."""
    if "match" not in own:
        return options.match, []
    node = _spelled_out({"match": own["match"]})["match"]
    below = {} if isinstance(own["match"], Leaf) else _table(tree, "match")
    assert isinstance(node, dict)
    return check(MatchOptions, {"schema": Leaf(SCHEMA, "", "schema"), **merge(below, node)}, of="match")


def _in_variant(problem: Problem, path: Path, name: str) -> Problem:
    if problem.where.startswith(f"{path}:"):
        return problem
    place = problem.where.removeprefix("set: ").removeprefix("recipe: ")
    return Problem(problem.fact, f"{path}: variants.{name}{f': {place}' if place else ''}", problem.remedy)


def _items(set: Settings) -> tuple[str, ...]:
    return tuple(f"{path}={json.dumps(value)}" for path, value in set.items()) if isinstance(set, Mapping) else tuple(set)
