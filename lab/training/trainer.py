"""One model in training: its state, one step, one evaluation. Files are somebody else's."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.accounting import Account, account
from ...core.adjust import adjust
from ...core.assemble import clear_statistics, state
from ...core.backbone import Block, CausalLM
from ...core.contracts import Batch, Loss, Parallelism
from ...core.distributed import world
from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ...core.recompute import recompute_blocks
from ...registry.create import create_model
from ...registry.load import load_for_training
from ..amount import value_at
from ..data.dataset import Data
from ..evaluation.bits_per_byte import LOSS, bits_per_byte, evaluate
from ..options import Recipe
from .average import Average
from .device import move
from .finite import first_non_finite
from .memory import peak_memory
from .metrics import Line
from .optimizer import Optimizers
from .peak import measure_peak
from .schedule import Schedule
from .whole import spread


class Diverged(BestiaryError):
    """The loss or the gradients of a step are not finite."""

    def __init__(self, message: str, batch: Batch) -> None:
        super().__init__(message)
        self.batch = batch


@dataclass
class State:
    """All that changes while training. Batches, learning rate and timeline follow from `step`."""

    model: CausalLM
    optimizers: Optimizers
    average: Average | None = None
    step: int = 0
    """Optimizer steps taken, skipped ones among them."""
    seconds: float = 0.0
    """Spent in them."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose loss or gradients were not finite."""
    loads: dict[str, Tensor] = field(default_factory=dict)
    """Token copies by layer and expert since the last evaluation."""

    def tensors(self) -> dict[str, Any]:
        """The tensors themselves, for a checkpoint to be written from or read into."""
        model = {name: tensor.detach() for name, tensor in state(self.model).items()}
        found: dict[str, Any] = {
            "model": {name: whole_of(self.model, name, tensor) for name, tensor in model.items()},
            "optimizer": {
                name: {key: whole_of(self.model, name, value) for key, value in moments.items()}
                for name, moments in self.optimizers.state().items()
            },
            "loads": self.loads,
            "random": {"torch": torch.get_rng_state()},
        }
        if self.average is None:
            return found
        return found | {"average": {name: whole_of(self.model, name, tensor) for name, tensor in self.average.tensors.items()}}


def whole_of(model: CausalLM, name: str, tensor: Tensor) -> Tensor:
    """A tensor that belongs to a parameter, such as a moment, as what it is a part of where the parameter is cut."""
    cut = model.cuts.get(name)
    return tensor if cut is None or tensor.ndim == 0 else cut.shared(tensor)


class Trainer:
    """Takes the steps of a recipe."""

    def __init__(self, recipe: Recipe, manifest: Manifest, data: Data, device: torch.device) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.data, self.device, self.budget = recipe, data, device, recipe.budget
        self.account: Account = account(manifest, sequence_length=recipe.data.sequence_length)
        model = _start(recipe, manifest, device)
        self.parallelism: Parallelism = model.parallelism
        self._check_rows()
        layers = {name: str(module.layer) for name, module in model.named_modules() if hasattr(module, "layer")}
        self.layers: dict[str, str] = self.parallelism.gather(layers)
        """Of modules that know which layer they are in, by path."""
        self.schedule = Schedule(recipe.steps, recipe.schedule)
        average = None if recipe.train.ema is None else Average(model, recipe.train.ema)
        self.state = State(model, Optimizers(model, recipe.optimizer), average)
        self.peak = world.size() * (recipe.train.peak_flops or measure_peak(device, model.model.compute_dtype))

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        return self.budget.tokens_after(self.state.step)

    @property
    def flops(self) -> float:
        """Spent on training so far."""
        return self.tokens * self.account.flops_training

    def step(self) -> Line:
        """One optimizer step on the next batch, and its figures.

        Raises:
            Diverged: loss or gradients are not finite, and the recipe does not skip such steps (any more); parameters are those of
                the step before.
        """
        state, started, part = self.state, time.perf_counter(), self.schedule.part(self.state.step)
        state.optimizers.set_lr(part)
        for path, stairs in self.recipe.timeline.items():
            adjust(state.model, path, value_at(stairs, self.tokens, self.budget.tokens))
        rows, batch = int(self.budget.rows[state.step]), self.batch(state.step)
        state.optimizers.zero_grad()
        loss = self.parallelism.step(state.model, batch)
        norm = self.parallelism.clip(state.model, self.recipe.optimizer.grad_clip)
        if not (math.isfinite(loss.total) and math.isfinite(norm)):
            return self._skip(batch, float(loss.total), norm, started)
        state.optimizers.step()
        metrics = self.parallelism.gather(dict(state.model.after_step(self.parallelism.reduce)))
        if state.average is not None:
            state.average.update()
        elapsed = time.perf_counter() - started
        state.step, state.seconds = state.step + 1, state.seconds + elapsed
        return self._line(loss, norm, part, rows * self.budget.length / elapsed, metrics)

    def batch(self, step: int) -> Batch:
        """What step `step`, counted from 0, is taken on."""
        return move(self.data.batch(int(self.budget.before[step]), int(self.budget.rows[step])), self.device)

    def evaluate(self) -> Line:
        """What held-out text says of the model as it is now.

        Raises:
            BestiaryError: the model has no next-token objective.
        """
        model, rows = self.state.model, int(self.budget.rows[0])
        found = evaluate(model, self.parallelism, self.data, rows, self.device)
        averaged = None
        if self.state.average is not None:
            with self.state.average.in_place():
                averaged = evaluate(model, self.parallelism, self.data, rows, self.device).bits_per_byte
        violations = {layer: float(load.max() / load.double().mean() - 1) for layer, load in self.state.loads.items()}
        self.state.loads.clear()
        return Line(
            "eval",
            self.state.step,
            self.tokens,
            self.flops,
            self.state.seconds,
            found.bits_per_byte,
            averaged,
            max_vio=violations,
            expert_load=found.expert_load,
            max_vio_sequence=found.max_vio_sequence,
            agreement=found.agreement,
        )

    def _line(self, loss: Loss, norm: float, part: float, speed: float, metrics: Mapping[str, float | Tensor]) -> Line:
        violations: dict[str, float] = {}
        for name, value in metrics.items():
            path, _, kind = name.rpartition(".")
            layer = self.layers.get(path, path)
            if kind == "max_vio":
                violations[layer] = float(value)
            elif isinstance(value, Tensor):
                self.state.loads[layer] = self.state.loads.get(layer, 0) + value
        parts = {name: float(value) for name, value in loss.parts.items()}
        return Line(
            "train",
            self.state.step,
            self.tokens,
            self.flops,
            self.state.seconds,
            bits_per_byte(parts[LOSS], self.data.bytes_per_token),
            loss=float(loss.total),
            parts=parts,
            grad_norm=norm,
            lr=part * self.recipe.optimizer.lr,
            tokens_per_second=speed,
            mfu=speed * self.account.flops_training / self.peak,
            mfu_noncausal=speed * self.account.flops_training_noncausal / self.peak,
            memory=peak_memory(self.device),
            max_vio=violations,
        )

    def _skip(self, batch: Batch, loss: float, norm: float, started: float) -> Line:
        """Leaves the step out, with everything as it was, or raises."""
        state, options = self.state, self.recipe.train
        clear_statistics(state.model)
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradients is {norm}"
        state.optimizers.zero_grad()
        where = first_non_finite(state.model, lambda: self.parallelism.step(state.model, batch))
        where = next((there for there in world.everyone(where) if not there.startswith("it did not")), where)
        state.optimizers.zero_grad()
        clear_statistics(state.model)
        message = f"Step {state.step + 1} of {self.budget.steps}: {what}; {where}."
        if options.non_finite == "stop" or len(state.skipped) >= options.max_skipped:
            skipped = f" {len(state.skipped)} steps were skipped before." if state.skipped else ""
            raise Diverged(f"{message}{skipped} Lower optimizer.lr, lengthen schedule.warmup, or check the data.", batch)
        state.step, state.seconds = state.step + 1, state.seconds + time.perf_counter() - started
        state.skipped.append(state.step)
        return Line("skip", state.step, self.tokens, self.flops, state.seconds, message=message)

    def _check_rows(self) -> None:
        parts = self.parallelism.row_multiple
        wrong = sorted({int(rows) for rows in self.budget.rows if rows % parts})
        if wrong:
            fact = f"a step of {wrong[0]} rows does not split into the {parts} parts that [parallelism] makes of it."
            raise BestiaryError(Problem(fact, "train.batch_size", f"Use multiples of {parts}."))


def _start(recipe: Recipe, manifest: Manifest, device: torch.device) -> CausalLM:
    """The model before the first step."""
    options = recipe.train
    if options.start:
        where = "cpu" if world.active() else device
        model = load_for_training(manifest, options.start, device=where, init=options.init, seed=options.seed)
        if world.active():
            model = spread(manifest, model, device)
    else:
        model = create_model(manifest, device=device, seed=options.seed)
    if options.recompute == "block":
        recompute_blocks(model)
    if options.compile:
        for block in (module for module in model.modules() if isinstance(module, Block)):
            block.compile()
    return model.train()
