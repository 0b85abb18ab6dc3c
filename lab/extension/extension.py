"""Context extension as DeepSeek-V3 did it (report, section 4.3): a trained model, YaRN, and phases of longer and longer rows.

    schema = 1
    start = "../../runs/micro"
    yarn = { factor = 16, original_max_position_embeddings = 256, mscale = 1.0, mscale_all_dim = 1.0 }
    [[phases]]
    sequence_length = 1024
    batch_size = 4
    steps = 100
    lr = 2e-4

Each phase is an ordinary training run: a recipe made from this file, its model the start's with YaRN and a longer
`max_position_embeddings`, its weights those of the phase before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import BestiaryError, Problem
from ...core.tree import Tree, merge, plant, settings
from ..checked import check, read
from ..options import Recipe
from ..recipe import Settings, recipe_from
from ..training.result import MODEL
from .options import ExtendOptions

SHARED = ("data", "train", "optimizer", "schedule", "checkpoint", "log")


@dataclass(frozen=True)
class Extension:
    """An extension, checked."""

    title: str
    description: str
    start: Path
    """Folder of the weights."""
    changes: dict[str, Any]
    """Of the start's manifest."""
    recipes: tuple[Recipe, ...]
    """One for each phase, each starting from the weights that the one before leaves."""
    options: ExtendOptions
    out: Path
    source: Path
    """The file."""


def load_extension(path: str | Path, *, out: str | Path | None = None, set: Settings = ()) -> Extension:
    """Reads and checks an extension file, and the recipe and model of every phase.

    Args:
        path: a TOML file; relative paths in it start at its folder.
        out: folder of runs and report, instead of the file's own.
        set: changes on top, like `needle.count=4`.

    Raises:
        BestiaryError: with everything that is wrong.
    """
    path = Path(path).expanduser().resolve()
    tree = merge(read(path), settings(set))
    options, problems = check(ExtendOptions, tree, of="extension")
    if options is None:
        raise BestiaryError(*problems)
    start, found = _start(options.start, path)
    problems += [*found, *_too_long(options, path)]
    named = (path.parent / Path(options.out).expanduser()).resolve() if options.out else Path.cwd() / "runs" / path.stem
    folder, changes, recipes = Path(out).resolve() if out else named, _changes(options), []
    for index in range(len(options.phases) if start else 0):
        weights = start if index == 0 else phase_folder(folder, index - 1) / MODEL
        recipe, found = recipe_from(_recipe(tree, options, index, start, weights), path.parent, name=path.stem)
        problems += found
        recipes += [recipe.model_copy(update={"out": str(phase_folder(folder, index))})] if recipe else []
    if problems or start is None:
        raise BestiaryError(*dict.fromkeys(problems))
    description = " ".join(options.description.split())
    return Extension(options.title or path.stem, description, start, changes, tuple(recipes), options, folder, path)


def phase_folder(folder: Path, index: int) -> Path:
    """Where phase `index`, counted from 0, is trained."""
    return folder / f"phase-{index + 1}"


def _start(text: str, path: Path) -> tuple[Path | None, list[Problem]]:
    """The folder of weights: the one that is named, or the model of the run in it."""
    folder = (path.parent / Path(text).expanduser()).resolve()
    for candidate in (folder / MODEL, folder):
        if any(candidate.glob("*.safetensors")):
            return candidate, []
    fact = f"there is no trained model in {folder}."
    return None, [Problem(fact, f"{path}: start", "Name a folder that `bestiary train` or `bestiary.save` wrote.")]


def _changes(options: ExtendOptions) -> dict[str, Any]:
    scaling = {name: value for name, value in options.yarn.table().items() if value is not None}
    return {"block.attention.rope.scaling": scaling, "model.max_position_embeddings": options.yarn.positions}


def _too_long(options: ExtendOptions, path: Path) -> list[Problem]:
    limit, problems = options.yarn.positions, []
    for index, phase in enumerate(options.phases, start=1):
        if phase.sequence_length > limit:
            fact = f"rows of {phase.sequence_length} tokens exceed the {limit} that factor * original_max_position_embeddings give."
            problems.append(Problem(fact, f"{path}: phases, number {index}", f"Use at most {limit}, or a larger yarn.factor."))
    return problems


def _recipe(tree: Tree, options: ExtendOptions, index: int, start: Path | None, weights: Path | None) -> Tree:
    """The recipe of one phase, as data that knows where each value is from."""
    phase, source = options.phases[index], f"phase {index + 1}"
    own = {
        "model": str(start),
        "data": {"sequence_length": phase.sequence_length},
        "train": {"batch_size": phase.batch_size, "steps": phase.steps, "start": str(weights)},
        "optimizer": {"lr": phase.lr},
    }
    changes = settings(_changes(options) | {"parallelism.micro_batches": phase.micro_batches})
    shared: Tree = {"schema": tree["schema"], **{name: tree[name] for name in SHARED if name in tree}}
    return merge(merge(shared, plant(own, source)), {"set": changes})
