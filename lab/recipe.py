"""A recipe: how to train one model. Data, budget, optimizer, schedule and seed; the model itself is named.

    schema = 1
    model = "deepseek-v3-nano"
    set.block.attention.use = "gqa"      # optional changes of the model
    [data]
    source = "stdlib"
    [train]
    batch_size = 8
    steps = 400

Relative paths start at the recipe's own folder. Nothing here enters the model's digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError, Problem
from ..core.tree import Leaf, Tree, merge, plain, plant, settings
from ..registry.catalog import list_models
from .checked import SCHEMA, check, read
from .data.corpus import source_problems
from .options import Recipe

Settings = Sequence[str] | Mapping[str, Any]
SECTIONS = tuple(name for name in Recipe.model_fields if name != "model")


def load_recipe(path: str | Path, *, set: Settings = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a TOML file, or a JSON file that a run wrote.
        set: changes on top; `train.steps=20` changes the recipe, a path that is none of the recipe's its model.

    Raises:
        BestiaryError: with everything that is wrong with the recipe and with its model.
    """
    path = Path(path).expanduser().resolve()
    recipe, problems = recipe_from(read(path), path.parent, name=path.stem, set=set)
    if recipe is None or problems:
        raise BestiaryError(*problems)
    return recipe


def recipe_from(tree: Tree, folder: Path, *, name: str, set: Settings = ()) -> tuple[Recipe | None, list[Problem]]:
    """A recipe from its data, or None and everything that is wrong, its model included.

    Args:
        tree: the recipe's data.
        folder: where its relative paths start.
        name: the last folder of the default output.
        set: as for `load_recipe`.
    """
    own, ours = divide(settings(set))
    recipe, problems = check(Recipe, merge(merge(tree, own), {"set": ours}) if ours else merge(tree, own), of="recipe")
    if recipe is None:
        return None, problems
    recipe = _absolute(recipe, folder, name)
    problems += source_problems(recipe.data)
    try:
        recipe.manifest()
    except BestiaryError as error:
        problems += error.problems
    return recipe, problems


def changed(recipe: Recipe, changes: Tree, folder: Path) -> tuple[Recipe | None, list[Problem]]:
    """The recipe with further changes laid on top, of itself or of its model; or None and everything that is wrong.

    Args:
        recipe: a checked one. Its model is not resolved again.
        changes: as `--set` makes them.
        folder: where relative paths in them start.
    """
    own, ours = divide(changes)
    base = recipe.model_dump(mode="json", exclude_unset=True)
    budget = own.get("train", {})
    for name, other in (("steps", "tokens"), ("tokens", "steps")):
        if isinstance(budget, dict) and name in budget:
            base["train"].pop(other, None)
    below = {"schema": Leaf(SCHEMA, "recipe", "schema"), **plant(base, "recipe")}
    made, problems = check(Recipe, merge(below, merge(own, {"set": ours}) if ours else own), of="recipe")
    return (None if made is None else _absolute(made, folder, "")), problems


def divide(tree: Tree) -> tuple[Tree, Tree]:
    """Settings of the recipe, and settings of its model: `model` alone is the recipe's, `model.x` the manifest's."""
    own = {key: node for key, node in tree.items() if key in SECTIONS or (key == "model" and isinstance(node, Leaf))}
    return own, {key: node for key, node in tree.items() if key not in own}


def _absolute(recipe: Recipe, folder: Path, name: str) -> Recipe:
    return recipe.model_copy(
        update={
            "data": recipe.data.at(folder),
            "model": manifest_path(recipe.model, folder),
            "set": plain(settings(recipe.set)),
            "out": _path(recipe.out, folder) if recipe.out else str(Path.cwd() / "runs" / name),
        }
    )


def _path(text: str, folder: Path) -> str:
    return str((folder / Path(text).expanduser()).resolve())


def manifest_path(reference: str, folder: Path) -> str:
    """Catalog names and Hub ids as they are, paths made absolute."""
    if reference in list_models():
        return reference
    is_path = reference.startswith((".", "/", "~")) or reference.endswith((".toml", ".json")) or (folder / reference).exists()
    return _path(reference, folder) if is_path else reference
