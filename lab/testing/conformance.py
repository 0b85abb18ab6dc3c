"""One step is one step: loss, gradients, their norm and updated biases on any layout against one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ...core.assemble import state
from ...core.backbone import CausalLM
from ...core.contracts import IGNORE, Batch
from ...core.distributed.spread import Spread
from ...core.recompute import recompute_blocks
from ...registry.catalog import resolve
from ...registry.create import create_model
from .processes import Processes

TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
SPREAD = 0.3
"""Standard deviation of the initial weights, so that every part of a model matters."""


@dataclass(frozen=True)
class Case:
    """A model, a layout, and what they are tried on."""

    manifest: Mapping[str, Any]
    """Data of a manifest; its `parallelism` is replaced."""
    parallelism: Mapping[str, Any]
    dtype: str | None = "float64"
    """Of parameters and activations; None for what the precision component trains with."""
    recompute: bool = False
    """Whether blocks are recomputed in the backward pass."""
    documents: bool = False
    """Whether rows hold several documents, which attention keeps apart."""
    ignored: bool = False
    """Whether some positions have no target."""
    rows: int = 1
    """Of a micro-batch."""
    length: int = 11
    """Tokens of a row."""
    steps: int = 2
    rate: float = 0.1
    """Learning rate of plain gradient descent between steps; 0 where rounding would send two runs different ways."""
    seed: int = 0
    tolerance: float | None = None
    """Largest difference, absolute and relative; by default 1e-12 in float64, 1e-5 else."""

    def alone(self, row_multiple: int) -> Case:
        """The same in one process, with the same micro-batches."""
        return Case(**{**vars(self), "parallelism": {"use": "local", "micro_batches": row_multiple}})

    @property
    def limit(self) -> float:
        """The tolerance that holds."""
        return self.tolerance if self.tolerance is not None else TOLERANCES.get(self.dtype or "float32", 1e-5)


@dataclass
class Outcome:
    """What one rank saw, whole tensors where it holds parts."""

    losses: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Of the gradients."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Of `after_step`."""
    held_out: float = 0.0
    """Loss of an evaluation after the steps."""
    observed: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the last step."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Parameters and persistent buffers after the steps."""
    sent: int = 0
    """Bytes that went to experts and tokens of other ranks."""


def assert_same(processes: Processes, case: Case) -> None:
    """Runs a case on its layout and in this process, and compares everything.

    Raises:
        AssertionError: something differs by more than the tolerance, or is missing.
        ProcessesFailed: a process failed.
    """
    parallelism = _resolved(case).parallelism.build(None)
    wanted = outcome(case.alone(parallelism.row_multiple))
    found = processes.run(outcome, case, world=parallelism.processes)
    for rank, one in enumerate(found):
        where = f"rank {rank} of {case.parallelism}"
        _same(one.losses, wanted.losses, case.limit, f"{where}: loss")
        _same(one.norms, wanted.norms, case.limit, f"{where}: gradient norm")
        _same([one.held_out], [wanted.held_out], case.limit, f"{where}: held-out loss")
        for step, (mine, all_) in enumerate(zip(one.parts, wanted.parts, strict=True)):
            _named(mine, all_, case.limit, f"{where}: step {step}, part")
        for step, (mine, all_) in enumerate(zip(one.metrics, wanted.metrics, strict=True)):
            _named(mine, all_, case.limit, f"{where}: step {step}, metric")
        _named(one.observed, wanted.observed, case.limit, f"{where}: observed")
        _named(one.gradients, wanted.gradients, case.limit, f"{where}: gradient of", some=True)
        _named(one.state, wanted.state, case.limit, f"{where}: after the steps", some=True)
    for kind in ("gradients", "state"):
        missing = getattr(wanted, kind).keys() - set().union(*(getattr(one, kind).keys() for one in found))
        assert not missing, f"{case.parallelism}: no rank has {kind} of {sorted(missing)}"


def outcome(case: Case) -> Outcome:
    """Steps and an evaluation of a case, as this process sees them; collective where several processes are connected."""
    model = create_model(_resolved(case), dtype=None if case.dtype is None else getattr(torch, case.dtype), seed=case.seed).train()
    if case.recompute:
        recompute_blocks(model)
    seen, parallelism = Outcome(), model.parallelism
    rows = parallelism.row_multiple * case.rows
    for step in range(case.steps):
        model.zero_grad()
        loss = parallelism.step(model, batch(case, rows, model.manifest.model.vocab_size, step))
        seen.losses.append(float(loss.total))
        seen.parts.append({name: float(part) for name, part in loss.parts.items()})
        seen.gradients = {name: _whole(p.grad, name, model).clone() for name, p in model.named_parameters() if p.grad is not None}
        seen.norms.append(parallelism.clip(model, 1.0))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= case.rate * parameter.grad
        seen.metrics.append(parallelism.gather(dict(model.after_step(parallelism.reduce))))
    held_out = parallelism.evaluate(model, batch(case, rows, model.manifest.model.vocab_size, case.steps))
    seen.held_out, seen.observed = float(held_out.total), held_out.observed
    seen.state = {name: _whole(tensor.detach(), name, model) for name, tensor in state(model).items()}
    seen.sent = parallelism.traffic.bytes if isinstance(parallelism, Spread) else 0
    return seen


def batch(case: Case, rows: int, vocabulary: int, step: int) -> Batch:
    """The batch of a step, the same on every rank."""
    generator = torch.Generator().manual_seed(1000 * case.seed + step)
    tokens = torch.randint(vocabulary, (rows, case.length + 1), generator=generator)
    targets, documents = tokens[:, 1:].clone(), None
    if case.documents:
        ends = torch.randint(2, case.length - 1, (rows, 1), generator=generator)
        documents = (torch.arange(case.length) >= ends).long()
        targets.scatter_(1, ends - 1, IGNORE)
    if case.ignored:
        targets[torch.rand(rows, case.length, generator=generator) < 0.2] = IGNORE
    return Batch(tokens[:, :-1].contiguous(), targets, documents)


def _resolved(case: Case) -> Any:
    data = {name: section for name, section in case.manifest.items() if name != "parallelism"}
    return resolve({**data, "parallelism": dict(case.parallelism)}, set={"model.initializer_range": SPREAD})


def _whole(tensor: Tensor, name: str, model: CausalLM) -> Tensor:
    if name in model.cuts:
        tensor = model.cuts[name].shared(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _named(found: Mapping[str, Any], wanted: Mapping[str, Any], limit: float, where: str, *, some: bool = False) -> None:
    if not some:
        assert found.keys() == wanted.keys(), f"{where}s: found {sorted(found)}, expected {sorted(wanted)}"
    for name, value in found.items():
        if some and name not in wanted:
            assert not value.any(), f"{where} {name}: one process has none"
            continue
        _same(value, wanted[name], limit, f"{where} {name}")


def _same(found: Any, wanted: Any, limit: float, where: str) -> None:
    found, wanted = (torch.as_tensor(value).double() for value in (found, wanted))
    assert found.shape == wanted.shape, f"{where}: shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    far = (found - wanted).abs() - limit * wanted.abs()
    assert bool((far <= limit).all()), f"{where}: differs by {float((found - wanted).abs().max()):.3g}"
