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
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from ..core.component import Options
from ..core.errors import BestiaryError, Problem
from ..core.manifest import Manifest
from ..core.tree import Leaf, Tree, merge, plain, settings
from ..registry.catalog import list_models
from ..registry.catalog import resolve as resolve_manifest
from .checked import check, read

STDLIB = "stdlib"
BYTES = "bytes"
Settings = Sequence[str] | Mapping[str, Any]


def _amount(value: Any) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    part = isinstance(value, float) and 0 <= value <= 1
    if whole or part:
        return value
    raise ValueError("expected a number of steps (an integer), or a part of the run (between 0.0 and 1.0)")


Amount = Annotated[int | float, PlainValidator(_amount)]
"""An integer counts steps; a fraction such as 0.05 is that part of the run."""
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


def steps_of(amount: int | float, steps: int) -> int:
    """An `Amount` of a run of `steps`, in steps."""
    return amount if isinstance(amount, int) else round(amount * steps)


class DataOptions(Options):
    source: Names = (STDLIB,)
    """Files and folders of text, or `stdlib`: the sources of the Python standard library on this machine."""
    suffixes: Names = (".py", ".md", ".txt")
    """Files that count in a folder."""
    tokenizer: str = BYTES
    """`bytes`, or the path of a `tokenizer.json` or its folder."""
    sequence_length: int = Field(default=256, gt=1)
    """Tokens of a row (S)."""
    seed: int = Field(default=0, ge=0)
    """Of the order of rows; models that are compared share it."""
    mask_documents: bool = False
    """Whether a token sees its own document only, and no document predicts the next one's first token."""
    held_out: float = Field(default=0.02, gt=0, lt=1)
    """Part of the documents kept for evaluation."""
    eval_tokens: int = Field(default=32768, gt=0)
    """Held-out tokens that each evaluation reads, rounded up to whole rows; fewer when there are fewer."""


class TrainOptions(Options):
    batch_size: int = Field(default=8, gt=0)
    """Rows of an optimizer step."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; or say `tokens`."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens to train on, rounded up to whole steps; or say `steps`."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: the accelerator when there is one."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainOptions:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("expected either steps or tokens, the budget of the run. Set one of them")
        return self


class AdamWOptions(Options):
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """Of matrices; norms and biases do not decay."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""


class ScheduleOptions(Options):
    """Linear warm-up, constant, cosine to `final_ratio`, constant (DeepSeek-V3's report, section 4.2)."""

    warmup: Amount = 0.02
    """Length of the rise from zero."""
    decay: Amount = 0.4
    """Length of the cosine."""
    tail: Amount = 0.0
    """Length of the last constant phase."""
    final_ratio: float = Field(default=0.1, ge=0, le=1)
    """Last learning rate as a part of the peak."""


class LogOptions(Options):
    every: int = Field(default=1, gt=0)
    """Steps between lines of metrics."""
    eval_every: Amount = 0.1
    """Steps between evaluations, the first before training; the last step is always evaluated, and alone when 0."""


class Recipe(Options):
    """One training run, checked; paths are absolute."""

    model: str
    """The manifest: a catalog name, a path, or a Hub id."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Changes of the manifest."""
    data: DataOptions = DataOptions()
    train: TrainOptions
    optimizer: AdamWOptions = AdamWOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    log: LogOptions = LogOptions()
    out: str = ""
    """Folder for the results; `runs/<recipe's file name>` in the working directory when empty."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Recipe:
        phases = self.schedule
        used = sum(steps_of(amount, self.steps) for amount in (phases.warmup, phases.decay, phases.tail))
        if used > self.steps:
            raise ValueError(f"schedule: warmup, decay and tail take {used} steps, and the run has {self.steps}. Shorten one of them")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_size * self.data.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.train.steps or -(-(self.train.tokens or 0) // self.tokens_per_step)

    def manifest(self) -> Manifest:
        """The model to train, resolved.

        Raises:
            BestiaryError: with everything that is wrong with it.
        """
        return resolve_manifest(self.model, set=self.set)


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
    own, ours = _divide(settings(set))
    recipe, problems = check(Recipe, merge(merge(tree, own), {"set": ours}) if ours else merge(tree, own), of="recipe")
    if recipe is None:
        return None, problems
    recipe = _absolute(recipe, folder, name)
    try:
        recipe.manifest()
    except BestiaryError as error:
        problems += error.problems
    return recipe, problems


def with_set(recipe: Recipe, changes: Tree) -> Recipe:
    """The recipe with further changes of its model laid on top."""
    return recipe.model_copy(update={"set": plain(merge(settings(recipe.set), changes))})


def _divide(tree: Tree) -> tuple[Tree, Tree]:
    """Settings of the recipe, and settings of its model; `model` alone is the recipe's, `model.x` the manifest's."""
    own = {key: node for key, node in tree.items() if key in SECTIONS or (key == "model" and isinstance(node, Leaf))}
    return own, {key: node for key, node in tree.items() if key not in own}


def _absolute(recipe: Recipe, folder: Path, name: str) -> Recipe:
    data = recipe.data
    changed = {
        "source": tuple(text if text == STDLIB else _path(text, folder) for text in data.source),
        "tokenizer": data.tokenizer if data.tokenizer == BYTES else _path(data.tokenizer, folder),
    }
    return recipe.model_copy(
        update={
            "data": data.model_copy(update=changed),
            "model": _manifest_path(recipe.model, folder),
            "set": plain(settings(recipe.set)),
            "out": _path(recipe.out, folder) if recipe.out else str(Path.cwd() / "runs" / name),
        }
    )


def _path(text: str, folder: Path) -> str:
    return str((folder / Path(text).expanduser()).resolve())


def _manifest_path(reference: str, folder: Path) -> str:
    """Catalog names and Hub ids as they are, paths made absolute."""
    if reference in list_models():
        return reference
    is_path = reference.startswith((".", "/", "~")) or reference.endswith((".toml", ".json")) or (folder / reference).exists()
    return _path(reference, folder) if is_path else reference
