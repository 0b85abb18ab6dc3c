"""One model in training: its state, one step, one evaluation. Nothing here writes files."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from ...core.accounting import Account, account
from ...core.backbone import CausalLM
from ...core.contracts import Parallelism
from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from ...registry.create import create_model
from ..data.dataset import Data
from ..evaluation.bits_per_byte import LOSS, bits_per_byte, evaluate
from ..options import Recipe
from .device import move
from .metrics import Line
from .optimizer import adamw, set_lr
from .schedule import Schedule


class Diverged(BestiaryError):
    """The loss or the gradients of a step are not finite."""


@dataclass
class State:
    """All that changes while training. Data order and learning rate follow from `step`."""

    model: CausalLM
    optimizer: AdamW
    step: int = 0
    """Optimizer steps taken."""
    seconds: float = 0.0
    """Spent in them."""


class Trainer:
    """Takes the steps of a recipe."""

    def __init__(self, recipe: Recipe, manifest: Manifest, data: Data, device: torch.device) -> None:
        torch.manual_seed(recipe.train.seed)
        model = create_model(manifest, device=device, seed=recipe.train.seed)
        model.train()
        self.recipe, self.data, self.device = recipe, data, device
        self.account: Account = account(manifest, sequence_length=recipe.data.sequence_length)
        self.parallelism: Parallelism = manifest.parallelism.build(manifest.site)
        self.schedule = Schedule(recipe.optimizer.lr, recipe.steps, recipe.schedule)
        self.state = State(model, adamw(model, recipe.optimizer))

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        return self.state.step * self.recipe.tokens_per_step

    @property
    def flops(self) -> float:
        """Spent on training so far."""
        return self.tokens * self.account.flops_training

    def step(self) -> Line:
        """One optimizer step on the next batch, and its figures.

        Raises:
            Diverged: loss or gradients are not finite; the parameters are those of the step before.
        """
        state, options, started = self.state, self.recipe.optimizer, time.perf_counter()
        lr = self.schedule.lr(state.step)
        set_lr(state.optimizer, lr)
        state.optimizer.zero_grad(set_to_none=True)
        loss = self.parallelism.step(
            state.model, move(self.data.batch(state.step * self.recipe.train.batch_size, self.recipe.train.batch_size), self.device)
        )
        norm = float(clip_grad_norm_(state.model.parameters(), options.grad_clip))
        total = float(loss.total)
        self._check_finite(total, norm)
        state.optimizer.step()
        violations = _violations(state.model.after_step(self.parallelism.reduce))
        elapsed = time.perf_counter() - started
        state.step, state.seconds = state.step + 1, state.seconds + elapsed
        parts = {name: float(part) for name, part in loss.parts.items()}
        return Line(
            kind="train",
            step=state.step,
            tokens=self.tokens,
            flops=self.flops,
            seconds=state.seconds,
            bits_per_byte=bits_per_byte(parts[LOSS], self.data.bytes_per_token),
            loss=total,
            parts=parts,
            grad_norm=norm,
            lr=lr,
            tokens_per_second=self.recipe.tokens_per_step / elapsed,
            max_vio_mean=sum(violations) / len(violations) if violations else None,
            max_vio_max=max(violations, default=None),
        )

    def evaluate(self) -> Line:
        """Bits per byte of held-out text as the model is now.

        Raises:
            BestiaryError: the model has no next-token objective.
        """
        value = evaluate(self.state.model, self.parallelism, self.data, self.recipe.train.batch_size, self.device)
        return Line("eval", self.state.step, self.tokens, self.flops, self.state.seconds, value)

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradients is {norm}"
        raise Diverged(
            f"Step {self.state.step + 1} of {self.recipe.steps}: {what}. "
            "Lower optimizer.lr, lengthen schedule.warmup, or check the data; what was logged until then is kept."
        )


def _violations(metrics: Mapping[str, float]) -> list[float]:
    return [value for name, value in metrics.items() if name.endswith(".max_vio")]
