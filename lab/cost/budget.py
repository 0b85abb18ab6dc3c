"""A whole training run, phase by phase, beside what was published for the model.

The phases of a published run (`runs/*.toml`) are the plan for its model; other models have one phase, pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.accounting import account
from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from ...registry.catalog import resolve
from .estimate import Estimate, Utilisation, estimate, utilisation
from .gpus import Gpu, find_gpu
from .runs import PartOptions, PhaseOptions, RunOptions, published_runs


@dataclass(frozen=True)
class Phase:
    """Estimates of one phase: one for each sequence length; none where its tokens are not known."""

    name: str
    parts: tuple[Estimate, ...]


@dataclass(frozen=True)
class Published:
    """What is known of one phase, and the speed that follows from it."""

    name: str
    hours: float
    money: float
    days: float
    source: str
    tokens_per_second_per_gpu: float | None = None
    mfu: Utilisation | None = None
    """That the hours imply; None where the phase's tokens are not published."""


@dataclass(frozen=True)
class Budget:
    """What a run costs, in full."""

    manifest: Manifest
    gpu: Gpu
    gpus: int
    phases: tuple[Phase, ...]
    run: RunOptions | None
    """The published run of this model, if there is one."""
    published: tuple[Published, ...]

    @property
    def parts(self) -> list[Estimate]:
        return [part for phase in self.phases for part in phase.parts]

    @property
    def hours(self) -> float:
        return sum(part.hours for part in self.parts)

    @property
    def money(self) -> float | None:
        return None if any(part.money is None for part in self.parts) else sum(part.money or 0.0 for part in self.parts)

    @property
    def left_out(self) -> list[str]:
        """Phases without an estimate."""
        return [phase.name for phase in self.phases if not phase.parts]

    def table(self) -> dict[str, Any]:
        phases = [{"name": phase.name, "parts": [part.table() for part in phase.parts]} for phase in self.phases]
        total = {"hours": self.hours, "money": self.money, "days": self.hours / self.gpus / 24, "left_out": self.left_out}
        published = self.run and {
            "run": self.run.model_dump(mode="json"),
            "hours": self.run.hours,
            "money": self.run.hours * self.run.price,
        }
        implied = [vars(phase) | {"mfu": phase.mfu and vars(phase.mfu)} for phase in self.published]
        gpu = self.gpu.model_dump(mode="json")
        return {
            "model": self.manifest.name,
            "digest": self.manifest.digest,
            "gpu": gpu,
            "gpus": self.gpus,
            "phases": phases,
            "total": total,
            "published": published and published | {"phases": implied},
        }


def budget(
    manifest: Manifest,
    *,
    tokens: float | None = None,
    gpu: str | Gpu = "h800",
    mfu: float | None = None,
    tokens_per_second_per_gpu: float | None = None,
    price: float | None = None,
    gpus: int = 2048,
    sequence_length: int | None = None,
) -> Budget:
    """Estimates every phase.

    Args:
        manifest: the model; its name decides which published run it is compared with, whatever `set` changed.
        tokens: of pre-training; those of the published run by default.
        tokens_per_second_per_gpu: measured in pre-training; later phases run at the MFU that it means.
        sequence_length: of pre-training.
        gpu: see `estimate`, as for the others.
        mfu: see `estimate`.
        price: see `estimate`.
        gpus: see `estimate`.

    Raises:
        BestiaryError: no tokens for a model of which no run is published, and what `estimate` raises.
    """
    gpu, run = find_gpu(gpu) if isinstance(gpu, str) else gpu, published_runs().get(manifest.name)
    plan = _plan(manifest, run, tokens, sequence_length)
    given: dict[str, Any] = {"gpu": gpu, "price": price, "gpus": gpus}
    speed: dict[str, Any] = {"mfu": mfu, "tokens_per_second_per_gpu": tokens_per_second_per_gpu}
    phases: list[Phase] = []
    for phase in plan:
        parts = []
        for part in phase.parts:
            parts.append(estimate(manifest, tokens=part.tokens, sequence_length=part.sequence_length, **given, **speed))
            speed = {"mfu": parts[-1].mfu.causal_bf16}
        phases.append(Phase(phase.name, tuple(parts)))
    return Budget(manifest, gpu, gpus, tuple(phases), run, tuple(_published(run)) if run else ())


def _plan(manifest: Manifest, run: RunOptions | None, tokens: float | None, length: int | None) -> list[PhaseOptions]:
    """The phases to estimate, pre-training first."""
    if run is None and tokens is None:
        raise BestiaryError(f"How long {manifest.name} is trained is not published. Say on how many tokens: --tokens 1T.")
    first = run.phases[0].parts[0] if run else None
    default = first.sequence_length if first else min(4096, manifest.model.max_position_embeddings)
    part = PartOptions(tokens=tokens or (first.tokens if first else 0.0), sequence_length=length or default)
    return [PhaseOptions(name="pre-training", parts=(part,)), *(run.phases[1:] if run else ())]


def _published(run: RunOptions) -> list[Published]:
    """Every phase with the speed that its hours imply for the model as published."""
    manifest, gpu = resolve(run.model), find_gpu(run.gpu)
    return [_implied(phase, run, manifest, gpu) for phase in run.phases if phase.hours]


def _implied(phase: PhaseOptions, run: RunOptions, manifest: Manifest, gpu: Gpu) -> Published:
    hours = phase.hours or 0.0
    facts = Published(phase.name, hours, hours * run.price, hours / run.gpus / 24, phase.source)
    if not phase.parts:
        return facts
    figures = [(part.tokens, account(manifest, sequence_length=part.sequence_length)) for part in phase.parts]
    causal, noncausal = (
        sum(tokens * getattr(a, name) for tokens, a in figures) / phase.tokens for name in ("flops_training", "flops_training_noncausal")
    )
    speed = phase.tokens / hours / 3600
    return Published(facts.name, facts.hours, facts.money, facts.days, facts.source, speed, utilisation(speed, causal, noncausal, gpu))
