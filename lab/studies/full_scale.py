"""What each variant would cost at full size: the same changes of a large model, matched again there, priced by `lab.cost`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.accounting import account
from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ...core.tree import Tree, merge, plain, settings
from ...registry.catalog import resolve
from ..cost.estimate import Estimate, estimate
from ..cost.gpus import find_gpu
from ..cost.quantity import quantity
from ..recipe import manifest_path
from .matching import Matched
from .options import FullScaleOptions
from .variants import Variant, sized


@dataclass(frozen=True)
class Large:
    """A variant at full scale."""

    manifest: Manifest
    parameters: int
    active_parameters: int
    matched: Matched | None
    """What was solved for there."""
    cost: Estimate


@dataclass(frozen=True)
class FullScale:
    """Every variant at its own size and at full scale."""

    options: FullScaleOptions
    own: dict[str, Estimate]
    """As the study trains it."""
    large: dict[str, Large | BestiaryError]
    """At full scale, or why it cannot be made there."""


def full_scale(options: FullScaleOptions | None, variants: Mapping[str, Variant], baseline: str, source: Path) -> FullScale | None:
    """Estimates for a study; None where it asks for none.

    Raises:
        BestiaryError: the model, the tokens, or the GPU are unknown, or the baseline's changes do not fit the model.
    """
    if options is None:
        return None
    model = manifest_path(options.model, source.parent)
    try:
        find_gpu(options.gpu)
        tokens = quantity(options.tokens, of="tokens")
        base = _large(options, variants[baseline], model, tokens, None)
    except BestiaryError as error:
        problems = [Problem(p.fact, f"{source}: full_scale{f': {p.where}' if p.where else ''}", p.remedy) for p in error.problems]
        raise BestiaryError(*problems) from error
    large: dict[str, Large | BestiaryError] = {baseline: base}
    for name, variant in variants.items():
        if name != baseline:
            try:
                large[name] = _large(options, variant, model, tokens, base.manifest)
            except BestiaryError as error:
                large[name] = error
    return FullScale(options, {name: _own(options, variant) for name, variant in variants.items()}, large)


def _large(options: FullScaleOptions, variant: Variant, model: str, tokens: float, baseline: Manifest | None) -> Large:
    rule = variant.rule

    def build(more: Tree) -> Manifest:
        return resolve(model, set=plain(merge(variant.changes, more)))

    if baseline is None or not (rule.of_model or rule.of_budget):
        return _priced(options, build({}), tokens, None)
    length = _length(baseline)
    if rule.of_model:
        matched = sized(build, rule, baseline, sequence_length=length, tokens=tokens)
        return _priced(options, build(settings({rule.by: matched.value}) if matched else {}), tokens, matched)
    manifest = build({})
    rate = [_priced(options, one, tokens, None).cost.flops_per_token for one in (baseline, manifest)]
    return _priced(options, manifest, tokens * rate[0] / rate[1], None)


def _length(manifest: Manifest) -> int:
    return min(4096, manifest.model.max_position_embeddings)


def _priced(options: FullScaleOptions, manifest: Manifest, tokens: float, matched: Matched | None) -> Large:
    figures = account(manifest)
    cost = estimate(manifest, tokens=tokens, gpu=options.gpu, mfu=options.mfu, price=options.price)
    return Large(manifest, figures.parameters, figures.active_parameters, matched, cost)


def _own(options: FullScaleOptions, variant: Variant) -> Estimate:
    recipe = variant.recipe
    return estimate(
        variant.manifest,
        tokens=recipe.budget.tokens,
        gpu=options.gpu,
        mfu=options.mfu,
        price=options.price,
        sequence_length=recipe.data.sequence_length,
    )
