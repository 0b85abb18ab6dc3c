"""What every parallelism over several processes does alike: the norm of gradients, sums of statistics, reports of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from ..backbone import CausalLM
from ..contracts import Batch, Loss, Share, added
from ..errors import BestiaryError, Problem
from ..manifest import Manifest
from . import world
from .cuts import shares_experts
from .experts import Traffic
from .gradients import clip_gradients, sum_gradients
from .mesh import Mesh


class Spread:
    """A model over the ranks of a mesh. `owners` and `shared` are filled by `place`."""

    mesh: Mesh
    processes: int
    row_multiple: int

    def __init__(self) -> None:
        self.owned: dict[str, bool] = {}
        """Whether this rank counts a parameter that others hold alike; a rank that is not named does."""
        self.copies: list[tuple[Any, list[str]]] = []
        """Groups of ranks, with the names of parameters that they hold alike in different pipeline stages."""
        self.twins: Any = None
        """The group of ranks whose layers see other micro-batches of the same step, apart from data ranks."""
        self.traffic = Traffic()
        """Between experts, of this rank since it was placed."""

    def shares(self, manifest: Manifest) -> Sequence[Share]:
        """Which ranks have which layers: here all have the same."""
        return ()

    def clip(self, model: CausalLM, limit: float) -> float:
        """Scales the gradients of all ranks so that their norm is at most `limit`; returns the norm before."""
        if not world.active():
            return float(nn.utils.clip_grad_norm_(model.parameters(), limit))
        return clip_gradients(dict(model.named_parameters()), limit, self.owned)

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sums in place over the ranks that hold the same layers and see other rows."""
        for group in (self.mesh.group("data"), self.twins) if world.active() else ():
            if group is not None:
                dist.all_reduce(tensor, group=group)
        return tensor

    def gather(self, found: dict[str, Any]) -> dict[str, Any]:
        """The union of what ranks with other layers have to report."""
        return world.merged(found)

    def own_rows(self, batch: Batch) -> Batch:
        """This data rank's rows of the step's batch.

        Raises:
            BestiaryError: the rows do not split.
        """
        rows = batch.input_ids.shape[0]
        if rows % self.row_multiple:
            fact = f"a batch of {rows} rows does not split into the {self.row_multiple} parts that [parallelism] makes of it."
            raise BestiaryError(Problem(fact, "parallelism", f"Use multiples of {self.row_multiple}."))
        return batch.chunks(self.mesh.degrees.data)[self.mesh.data]

    def sum_all(self, model: CausalLM) -> None:
        """Makes every gradient the sum over all ranks that hold its parameter or a copy of it."""
        named = dict(model.named_parameters())
        for group, names in self.copies:
            sum_gradients([named[name] for name in names], group)
        plain = [p for name, p in named.items() if not shares_experts(model, name) and not isinstance(p, DTensor)]
        sum_gradients(plain, self.mesh.group("data"))
        sum_gradients([p for name, p in named.items() if shares_experts(model, name)], self.mesh.group("replica"))

    def disown(self, model: CausalLM, *, copy: bool) -> None:
        """Notes the parameters that this rank holds alike with others, and does not count.

        Args:
            model: placed.
            copy: whether other data ranks hold the same of everything but experts, and count it.
        """
        for name, _ in model.named_parameters():
            alike = self.mesh.replica > 0 if shares_experts(model, name) else copy or (name not in model.cuts and self.mesh.tensor > 0)
            if alike:
                self.owned[name] = False

    def whole_loss(
        self, losses: Sequence[Loss], auxiliary: Sequence[tuple[dict[str, Tensor], float]], observed: Sequence[dict[str, Tensor]]
    ) -> Loss:
        """The step's loss from what each rank has of it, equal on all ranks; tensor ranks all have the same.

        Args:
            losses: of the micro-batches whose loss this rank computes.
            auxiliary: auxiliary losses of this rank's layers by micro-batch, with the micro-batch's share of the step.
            observed: what this rank's layers told of its rows, for each part of its rows in order; empty where others run the part.
        """
        own = [replace(loss, total=loss.total.detach(), observed={}) for loss in losses]
        extra: dict[str, float] = {}
        for parts, share in auxiliary:
            for name, part in parts.items():
                extra[name] = extra.get(name, 0.0) + float(part) * share
        mine = (self.mesh.data, added(own) if own else None, extra, observed)
        return _joined(world.everyone(mine)[:: self.mesh.degrees.tensor])


def as_tensor_rank(rank: int, ranks: int) -> str:
    """What a description of a rank ends with: `, as tensor rank 1 of 2`; nothing where matrices are whole."""
    return f", as tensor rank {rank % ranks} of {ranks}" if ranks > 1 else ""


def _joined(found: Sequence[tuple[int, Loss | None, dict[str, float], Sequence[dict[str, Tensor]]]]) -> Loss:
    totals = [loss for _, loss, _, _ in found if loss is not None]
    whole = added(totals)
    extra: dict[str, Tensor] = {}
    for _, _, parts, _ in found:
        for name, value in parts.items():
            extra[name] = extra.get(name, torch.zeros((), dtype=torch.float64)) + value
    rows: dict[str, dict[tuple[int, int], Tensor]] = {}
    for data, _, _, seen in found:
        for part, told in enumerate(seen):
            for name, tensor in told.items():
                rows.setdefault(name, {})[data, part] = tensor
    observed = {name: torch.cat([parts[place] for place in sorted(parts)]) for name, parts in rows.items()}
    extra = {name: value.to(whole.total.dtype) for name, value in extra.items()}
    return Loss(whole.total + sum(extra.values()), whole.parts | extra, whole.metrics, observed)
