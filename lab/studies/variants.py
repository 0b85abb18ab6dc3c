"""A variant of a study: the recipe with some changes, made as large, or trained as long, as the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ...core.tree import Leaf, Tree, leaves, settings, split_path
from ..options import Recipe
from ..recipe import changed, divide
from .matching import WORDS, Matched, figure, solve
from .options import MatchOptions

TEXT = ("source", "suffixes", "text_field", "hf", "limit_documents", "limit_bytes", "held_out", "eval_tokens", "tokenizer")
FIXED = {
    "train.seed": "set the study's seeds instead",
    "data.seed": "set the study's seeds instead",
    "out": "every run has its folder in the study's",
} | {f"data.{name}": "it decides on which text variants are compared; set it in the recipe, for all" for name in TEXT}
"""What no variant may change, and why."""


@dataclass(frozen=True)
class Variant:
    """One variant, checked; seeds are not applied yet."""

    recipe: Recipe
    manifest: Manifest
    changes: Tree = field(default_factory=dict)
    """Of the model, what was solved for left out."""
    rule: MatchOptions = field(default_factory=MatchOptions)
    matched: Matched | None = None

    def same_as(self, other: Variant) -> bool:
        """Whether both train the same model in the same way, however that is written."""
        plainly = [one.recipe.model_copy(update={"set": {}}).model_dump() for one in (self, other)]
        return plainly[0] == plainly[1] and self.manifest.digest == other.manifest.digest


def make(recipe: Recipe, changes: Tree, rule: MatchOptions, baseline: Variant | None, folder: Path) -> Variant:
    """A variant of `recipe`.

    Args:
        recipe: what all variants share.
        changes: of the recipe and of its model.
        rule: what is to be equal.
        baseline: what it is equal to; None for the baseline itself.
        folder: where relative paths in `changes` start.

    Raises:
        BestiaryError: a change that cannot be made, or nothing that matches.
    """
    _check_fixed(changes)
    own = _changed(recipe, changes, folder)
    ours = divide(changes)[1]
    if baseline is None:
        return Variant(own, own.manifest(), ours, rule)
    _check_rule(rule, changes)
    if not rule.of_budget and rule.same != "nothing":
        own = _as_long(own, baseline.recipe.budget.tokens)
    if rule.of_model:
        return _sized(own, ours, rule, baseline, folder)
    manifest = own.manifest()
    return _long(own, manifest, ours, rule, baseline) if rule.of_budget else Variant(own, manifest, ours, rule)


def sized(
    build: Callable[[Tree], Manifest], rule: MatchOptions, target: Manifest, *, sequence_length: int, tokens: float
) -> Matched | None:
    """How a variant gets as much as `target`; None where it has exactly as much as it is.

    Args:
        build: the variant's manifest with further changes.
        rule: what is to be equal, and what is turned.
        target: the baseline's manifest.
        sequence_length: of training.
        tokens: of training.
    """

    def measure(changes: Tree) -> float:
        return figure(build(changes), rule.same, sequence_length=sequence_length, tokens=tokens)

    wanted = figure(target, rule.same, sequence_length=sequence_length, tokens=tokens)
    try:
        if measure({}) == wanted:
            return None
    except BestiaryError:
        pass  # as it is, it may lack the very option that is solved for
    return solve(rule, lambda value: measure(settings({rule.by: value})), wanted)


def _sized(own: Recipe, ours: Tree, rule: MatchOptions, baseline: Variant, folder: Path) -> Variant:
    def build(more: Tree) -> Manifest:
        return _changed(own, more, folder).manifest()

    matched = sized(build, rule, baseline.manifest, sequence_length=own.data.sequence_length, tokens=own.budget.tokens)
    recipe = _changed(own, settings({rule.by: matched.value}), folder) if matched else own
    return Variant(recipe, recipe.manifest(), ours, rule, matched)


def _long(own: Recipe, manifest: Manifest, ours: Tree, rule: MatchOptions, baseline: Variant) -> Variant:
    """As many FLOPs in all as the baseline, by the length of the run."""
    target, spent = (_spent(recipe, model) for recipe, model in ((baseline.recipe, baseline.manifest), (own, manifest)))
    recipe = _as_long(own, own.budget.tokens * target / spent)
    matched = Matched("flops", "train.steps", recipe.steps, target, _spent(recipe, manifest))
    if abs(matched.deviation) > rule.tolerance:
        fact = f"whole steps come no nearer than {matched}; the tolerance is {rule.tolerance:.1%}."
        raise BestiaryError(Problem(fact, "match", "Train for more steps, or raise match.tolerance."))
    return Variant(recipe, manifest, ours, rule, matched)


def _spent(recipe: Recipe, manifest: Manifest) -> float:
    return figure(manifest, "flops", sequence_length=recipe.data.sequence_length, tokens=recipe.budget.tokens)


def _as_long(recipe: Recipe, tokens: float) -> Recipe:
    """The recipe with another budget, in the unit that it is written in, to the nearest step."""
    if round(tokens) == recipe.budget.tokens:
        return recipe
    train = recipe.train
    if train.steps:
        steps = max(1, round(tokens / (train.batch_size * recipe.data.sequence_length)))
        return recipe.model_copy(update={"train": train.model_copy(update={"steps": steps})})
    return recipe.model_copy(update={"train": train.model_copy(update={"tokens": max(1, round(tokens))})})


def _changed(recipe: Recipe, changes: Tree, folder: Path) -> Recipe:
    made, problems = changed(recipe, changes, folder)
    if made is None or problems:
        raise BestiaryError(*problems)
    return made


def _check_fixed(changes: Tree) -> None:
    problems = [
        Problem(f"a variant cannot change {path}: {why}.", f"{leaf.source}: {leaf.path}")
        for path, why in FIXED.items()
        if (leaf := _at(changes, path)) is not None
    ]
    if problems:
        raise BestiaryError(*problems)


def _check_rule(rule: MatchOptions, changes: Tree) -> None:
    """Raises where a rule cannot work, or says twice what a variant says itself."""
    problems = []
    if rule.same in ("parameters", "active_parameters") and not rule.of_model:
        fact = f"equal {WORDS[rule.same]} need an option to turn."
        problems.append(Problem(fact, "match.by", "Set it to a size of the model, such as block.ffn.intermediate_size."))
    if rule.same in ("tokens", "nothing") and rule.by:
        problems.append(Problem(f"same = '{rule.same}' turns nothing, and by = '{rule.by}' says what to turn.", "match.by", "Remove one."))
    turned = [rule.by] if rule.of_model else []
    held = [*turned, *([] if rule.same == "nothing" else ("train.steps", "train.tokens"))]
    for path in held:
        if (leaf := _at(changes, path)) is not None:
            fact = f"{path} follows from match ({rule.same}), and is set as well."
            problems.append(Problem(fact, f"{leaf.source}: {leaf.path}", "Remove it here, or set match = 'nothing' for this variant."))
    if problems:
        raise BestiaryError(*problems)


def _at(tree: Tree, path: str) -> Leaf | None:
    """What is set at a dotted path or below it."""
    node: Tree | Leaf | None = tree
    for key in split_path(path):
        if not isinstance(node, dict):
            return None
        node = node.get(key)
    return next(leaves(node), None) if isinstance(node, dict) else node
