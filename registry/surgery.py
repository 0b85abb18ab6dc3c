"""Carrying out what components declare: planned before anything is read, then one layer at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.component import Part
from ..core.errors import BestiaryError, Problem
from ..core.manifest import Manifest
from ..core.site import Site
from ..core.surgery import Conversion
from ..core.table import ATTENTION, FFN, own_entries
from ..core.weights import Entry
from .checkpoint import Checkpoint
from .fresh import objective_of, selected

if TYPE_CHECKING:
    from torch import Tensor

    from .plan import Plan

VOCABULARY = "model.vocab_size"
"""The selector for embedding and head when the vocabulary has another size."""


@dataclass(frozen=True)
class Converted:
    """A parameter that surgery made."""

    name: str
    rule: str
    error: float
    """Relative Frobenius norm of what was lost; 0 when exact."""


@dataclass(frozen=True)
class Operation:
    """One component of one layer."""

    prefix: str
    """Of its parameters, here and in the checkpoint's own model."""
    conversion: Conversion
    before: Part
    after: Part
    site: Site


@dataclass(frozen=True)
class Surgery:
    """What will be converted."""

    stored_as: Manifest
    operations: tuple[Operation, ...]
    vocabulary: bool
    names: frozenset[str]
    """Parameters that are not read as they are."""


def plan_surgery(manifest: Manifest, stored_as: Manifest, convert: Iterable[str]) -> Surgery:
    """What has to be done so that the parts named by `convert` fit.

    Args:
        manifest: the model to fill.
        stored_as: the checkpoint's own.
        convert: parts as for `init`, or `model.vocab_size`.

    Raises:
        BestiaryError: a part is the same in both, no conversion is declared, or one cannot be done with these options; lists all.
    """
    new, old = own_entries(manifest), own_entries(stored_as)
    operations: dict[str, Operation] = {}
    problems: list[Problem] = []
    names: set[str] = set()
    selectors = [convert] if isinstance(convert, str) else list(convert)
    for selector in selectors:
        if selector == VOCABULARY:
            names |= {name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in new}
            continue
        chosen = selected(list(new.values()), [selector], manifest, option="convert")
        found = dict(_operations(chosen, new, old, manifest, stored_as, problems))
        if not found and not problems:
            problems.append(Problem(f"'{selector}' is the same here and in the checkpoint.", "convert", "Leave it out."))
        operations |= found
        names |= {name for name in chosen if any(name.startswith(prefix) for prefix in found)}
    if problems:
        raise BestiaryError(*dict.fromkeys(problems))
    return Surgery(stored_as, tuple(operations.values()), VOCABULARY in selectors, frozenset(names))


def operate(surgery: Surgery, checkpoint: Checkpoint, state: Mapping[str, Tensor], plan: Plan, *, threads: int | None) -> list[Converted]:
    """Reads, converts and fills, one layer at a time; memory grows by one layer's part in fp32.

    Args:
        surgery: from `plan_surgery`.
        checkpoint: what is read.
        state: parameters of the model, allocated.
        plan: of the load; what surgery reads or makes is struck from its lists of skipped and initialised tensors.
        threads: as for `load`.
    """
    import torch

    from .fill import fill
    from .plan import make_plan

    source = make_plan(surgery.stored_as, checkpoint, stored_as=surgery.stored_as, dtype=torch.float32)
    entries = own_entries(surgery.stored_as)
    done: list[Converted] = []
    used: set[str] = set()

    def read(names: Iterable[str]) -> dict[str, Tensor]:
        wanted = set(names)
        buffers = {name: torch.empty(entries[name].weight.shape) for name in wanted}
        reads = [read for read in source.reads if read.target in wanted]
        used.update(each.name for r in reads for each in (r.source, r.scale) if each)
        fill(reads, buffers, threads=threads)
        return buffers

    for step in surgery.operations:
        old = read(name for name in entries if name.startswith(step.prefix))
        parts = {name.removeprefix(step.prefix): tensor for name, tensor in old.items()}
        for name, made in step.conversion.apply(parts, step.before.options, step.after.options, step.site).items():
            state[step.prefix + name].detach().copy_(made.tensor)
            done.append(Converted(step.prefix + name, step.conversion.rule, made.error))
    if surgery.vocabulary:
        for name in sorted(surgery.names & {"model.embed_tokens.weight", "lm_head.weight"} & entries.keys()):
            _resize(read([name])[name], state[name].detach())
            done.append(Converted(name, "vocabulary resized: kept rows, new ones as their mean", 0.0))
    made = {one.name for one in done}
    plan.initialised[:] = [name for name in plan.initialised if name not in made]
    plan.skipped[:] = [skip for skip in plan.skipped if skip.source.name not in used]
    return done


def _resize(old: Tensor, new: Tensor) -> None:
    """New rows start as the mean of the old ones, which keeps the distribution over known tokens in shape (Hewitt, 2021)."""
    kept = min(len(old), len(new))
    new[:kept].copy_(old[:kept])
    new[kept:].copy_(old.mean(0).expand(len(new) - kept, -1))


def _operations(
    chosen: set[str], new: Mapping[str, Entry], old: Mapping[str, Entry], manifest: Manifest, stored_as: Manifest, problems: list[Problem]
) -> Iterator[tuple[str, Operation]]:
    seen = set()
    for name in new:
        place = _prefix(name)
        if name not in chosen or place is None or place[0] in seen:
            continue
        prefix, slot = place
        seen.add(prefix)
        entry = new[name]
        index = entry.layer if not objective_of(entry) and entry.layer is not None else manifest.model.num_hidden_layers
        before, after = _part(stored_as, index, slot), _part(manifest, index, slot)
        if before == after:
            continue
        site = manifest.site.at(index)
        conversion = next((c for c in after.component.conversions if c.source == before.use), None)
        why = conversion.why_not(before.options, after.options, site) if conversion else _unknown(before, after)
        if not any(known.startswith(prefix) for known in old):
            why = "the checkpoint has no such block."
        if why or conversion is None:
            where = f"convert: block.{slot}"
            problems.append(Problem(why, where, f"Or start it fresh: init=('block.{slot}',)."))
        else:
            yield prefix, Operation(prefix, conversion, before, after, site)


def _prefix(name: str) -> tuple[str, str] | None:
    """What stands before a component's own names, and its slot."""
    for module, slot in ((ATTENTION, "attention"), (FFN, "ffn")):
        head, found, _ = name.partition(f".{module}.")
        if found:
            return head + found, slot
    return None


def _part(manifest: Manifest, index: int, slot: str) -> Part:
    """The part of a layer; blocks behind the last one, which objectives add, are made like it."""
    return getattr(manifest.layers[min(index, manifest.model.num_hidden_layers - 1)], slot)


def _unknown(before: Part, after: Part) -> str:
    known = ", ".join(c.source for c in after.component.conversions) or "none"
    return f"no way from {before.use} to {after.use} is known; to {after.use} there are ways from: {known}."
