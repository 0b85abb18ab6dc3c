"""The optimizers of a recipe: AdamW, and Muon for the matrices of blocks where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from ...core.backbone import CausalLM
from ...core.errors import BestiaryError, Problem
from ...core.table import own_entries
from .adamw import CompactAdamW
from .options import OptimizerOptions

MATRICES = ("linear", "expert", "projection")
"""Roles of the parameters that Muon is made for; embedding, head, router and norms are not among them."""


class Optimizers:
    """What takes a step. State is addressed by the names of parameters."""

    def __init__(self, model: CausalLM, options: OptimizerOptions) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if options.muon:
            _check_whole(model)
        matrices = _matrices(model, named) if options.muon else {}
        self.slices = [(view, named[name], index) for name, views in matrices.items() for index, view in views]
        """Views that Muon steps on, the parameter behind each, and the expert; None for a whole parameter."""
        self.adamw, rest = _adamw({name: p for name, p in named.items() if name not in matrices}, options)
        self.members: list[tuple[Optimizer, dict[str, Tensor], float]] = [(self.adamw, rest, options.lr)]
        """Each optimizer with its parameters by name and its peak learning rate."""
        if options.muon:
            views = {_name(name, index): view for name, found in matrices.items() for index, view in found}
            self.members.append((_muon(views, options), views, options.muon.lr))

    def set_lr(self, part: float) -> None:
        """Sets every learning rate to this part of its peak."""
        for optimizer, _, peak in self.members:
            for group in optimizer.param_groups:
                group["lr"] = part * peak

    def step(self) -> None:
        for view, parameter, index in self.slices:
            gradient = parameter.grad
            view.grad = gradient if gradient is None or index is None else gradient[index]
        for optimizer, _, _ in self.members:
            optimizer.step()

    def zero_grad(self) -> None:
        for _, parameters, _ in self.members:
            for parameter in parameters.values():
                parameter.grad = None
        for _, parameter, _ in self.slices:
            parameter.grad = None

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Every moment and step count by parameter: the tensors themselves. Learning rates follow from the recipe."""
        return {name: self._of(optimizer, parameter) for optimizer, name, parameter in self._all()}

    def allocate(self) -> None:
        """Makes the state that the first step would make, so that a checkpoint can be read into it; changes no parameter."""
        self.set_lr(0.0)
        for _, _, parameter in self._all():
            parameter.grad = torch.zeros_like(parameter)
        for optimizer, _, _ in self.members:
            optimizer.step()
        self.zero_grad()

    def _all(self) -> Iterator[tuple[Optimizer, str, Tensor]]:
        for optimizer, parameters, _ in self.members:
            yield from ((optimizer, name, parameter) for name, parameter in parameters.items())

    def _of(self, optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
        return {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}


def _adamw(named: dict[str, Tensor], options: OptimizerOptions) -> tuple[Optimizer, dict[str, Tensor]]:
    """Weight decay leaves vectors (norms, biases) alone. Sharded parameters are stepped on apart from whole ones."""
    kinds: dict[tuple[bool, bool], list[Tensor]] = {}
    for p in named.values():
        kinds.setdefault((p.ndim > 1, isinstance(p, DTensor)), []).append(p)
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": options.weight_decay if matrix else 0.0} for (matrix, _), params in kinds.items()
    ]
    settings: dict[str, Any] = {"lr": options.lr, "betas": options.betas, "eps": options.eps}
    if options.moments == "bfloat16":
        return CompactAdamW(groups, **settings), named
    return AdamW(groups, fused=True, **settings), named


def _muon(views: dict[str, Tensor], options: OptimizerOptions) -> Muon:
    muon = options.muon
    assert muon is not None
    return Muon(
        list(views.values()),
        lr=muon.lr,
        weight_decay=options.weight_decay,
        momentum=muon.momentum,
        nesterov=muon.nesterov,
        ns_steps=muon.ns_steps,
        adjust_lr_fn=muon.adjust,
    )


def _matrices(model: CausalLM, named: dict[str, nn.Parameter]) -> dict[str, list[tuple[int | None, Tensor]]]:
    """By parameter, what Muon steps on: the parameter itself, or a view of each expert, since torch's Muon takes matrices only."""
    roles = {name: entry.weight.role for name, entry in own_entries(model.manifest).items()}
    found: dict[str, list[tuple[int | None, Tensor]]] = {}
    for name, parameter in named.items():
        if roles.get(name) not in MATRICES or parameter.ndim < 2:
            continue
        stacked = parameter.ndim == 3
        found[name] = [(i, nn.Parameter(part)) for i, part in enumerate(parameter.detach())] if stacked else [(None, parameter)]
    return found


def _check_whole(model: CausalLM) -> None:
    """Muon makes the updates of a matrix orthogonal, which its parts do not tell.

    Raises:
        BestiaryError: tensor-parallel ranks share matrices.
    """
    name = next((name for name, cut in model.cuts.items() if cut.kind == "tensor"), None)
    if name:
        fact = f"muon needs whole matrices, and tensor-parallel ranks share some, such as {name}."
        raise BestiaryError(Problem(fact, "optimizer.muon", "Leave it out, or set set.parallelism.tp = 1."))


def _name(parameter: str, index: int | None) -> str:
    return parameter if index is None else f"{parameter}[{index}]"
