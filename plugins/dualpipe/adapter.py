"""Our stages and schedules on torch's pipeline runtime. The one file that knows torch's private names.

torch supplies the buffers, the point-to-point exchange between stages and the loop over a table of actions. Ours are the passes themselves
(`Tape`: split backward through the store of weight gradients, pieces that overlap, one recomputation), the table, and its lowering to
sends and receives, since torch's refuses a second chain (DualPipe) and sends the results of a pair late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._utils import InferenceMode
from torch.distributed.pipelining.schedules import (
    _Action,
    _ComputationType,
    _PipelineContext,
    _PipelineScheduleRuntime,
    _wait_batch_p2p,
)

from ...core.distributed.sharded import gathered
from .schedules.actions import Action, Kind, Pair, Schedule
from .stage import Stage
from .tape import Tape, alone, in_turns

KINDS = {
    Kind.FORWARD: _ComputationType.FORWARD,
    Kind.BACKWARD: _ComputationType.FULL_BACKWARD,
    Kind.INPUT: _ComputationType.BACKWARD_INPUT,
    Kind.WEIGHT: _ComputationType.BACKWARD_WEIGHT,
}
SEND, RECEIVE = (
    {Kind.FORWARD: _ComputationType.SEND_F, Kind.BACKWARD: _ComputationType.SEND_B, Kind.INPUT: _ComputationType.SEND_B},
    {Kind.FORWARD: _ComputationType.RECV_F, Kind.BACKWARD: _ComputationType.RECV_B, Kind.INPUT: _ComputationType.RECV_B},
)


class RunningStage(PipelineStage):
    """A stage at its place in the chains of a schedule."""

    def __init__(self, stage: Stage, number: int, schedule: Schedule, example: Tensor, device: torch.device, group: Any) -> None:
        chain = next(chain for chain in schedule.chains if number in chain)
        self.starts, self.ends = number == chain[0], number == chain[-1]
        loss = torch.empty((), dtype=torch.float32, device="meta", requires_grad=True)
        ids = torch.empty(example.shape[:2], dtype=torch.int64, device="meta")
        super().__init__(
            stage,
            number,
            len(schedule.rank_of),
            device,
            input_args=(ids if self.starts else example,),
            output_args=(loss if self.ends else example,),
            group=group,
        )
        self._inference_mode = InferenceMode.STATIC
        self.stage = stage
        self.tapes: dict[int, Tape] = {}

    @property
    def is_first(self) -> bool:
        return self.starts

    @property
    def is_last(self) -> bool:
        return self.ends

    def forward_turns(self, index: int) -> Any:
        """The forward pass of a micro-batch, in pieces."""
        x = torch.empty(0, device=self.device) if self.starts else self._retrieve_recv_activations(index)[0]
        self.tapes[index] = Tape()
        return self.tapes[index].forward(self.stage.segments(index), x)

    def forward_done(self, index: int, output: Tensor) -> None:
        """Keeps what is sent."""
        self.fwd_cache[index] = ((output,), [])

    def backward_turns(self, index: int, *, defer: bool) -> Any:
        """The backward pass of a micro-batch, in pieces."""
        self.fwd_cache.pop(index)
        grad = None if self.ends else self._retrieve_recv_grads(index)[0]
        return self.tapes[index].backward(grad, defer=defer)

    def backward_done(self, index: int, grad: Tensor | None, *, defer: bool) -> None:
        """Keeps what is sent back."""
        self.bwd_cache[index] = (None if self.starts else grad,)
        if not defer:
            del self.tapes[index]

    def forward_one_chunk(self, fwd_chunk_id: int, args: Any, kwargs: Any = None, save_forward_output: bool = True) -> Tensor:
        output = alone(self.forward_turns(fwd_chunk_id))
        assert output is not None
        self.forward_done(fwd_chunk_id, output)
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False) -> None:
        grad = alone(self.backward_turns(bwd_chunk_id, defer=not full_backward))
        self.backward_done(bwd_chunk_id, grad, defer=not full_backward)

    @torch.no_grad()
    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        for work in self.tapes.pop(bwd_chunk_id).deferred:
            work()

    def set_local_fwd_input(self, prev_stage_outputs: Any, mb_index: int) -> None:
        if not self.starts:
            super().set_local_fwd_input(prev_stage_outputs, mb_index)

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        if not self.ends:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    def _post_metadata_inference_cleanup(self) -> None:
        """Nothing was inferred; what stages gathered stays gathered."""

    def get_local_bwd_output(self, mb_index: int) -> Any:
        return self.bwd_cache.pop(mb_index)


class Runtime(_PipelineScheduleRuntime):
    """Runs one schedule over and over."""

    def __init__(self, schedule: Schedule, stages: Sequence[RunningStage], *, overlap: Sequence[str] | None) -> None:
        """
        Args:
            schedule: the table.
            stages: of this rank.
            overlap: whose piece goes first in an overlapped pair, such as `("forward", "backward")`; None runs one after the other.
        """
        count = schedule.microbatches // len(schedule.chains)
        super().__init__(list(stages), count, _loss_itself, scale_grads=False)
        self.schedule, self.count, self.order = schedule, count, overlap
        self.by_number = {stage.stage_index: stage for stage in stages}
        self._prepare_schedule_with_comms(lower(schedule), format="compute_comms")  # type: ignore[arg-type]
        self.register_custom_function(_ComputationType.OVERLAP_F_B, self._pair)

    def run(self) -> None:
        """One step over the micro-batches that the stages hold."""
        for stage in self.by_number.values():
            stage.has_backward = True
            stage.clear_runtime_states()
            stage.tapes.clear()
        inputs = [(torch.empty(0),)] * self.count
        with gathered(stage.stage for stage in self.by_number.values()):
            for stage in self.by_number.values():
                _hold(stage.stage)
            self._step_microbatches(inputs, [{}] * self.count, list(range(self.count)), None, False)
            for stage in self.by_number.values():
                stage.perform_reduce_grad(1)

    def _assert_unsharded(self, stage: Any) -> None:
        """Stages are whole throughout a step: two of a rank may use one embedding."""

    def _warmup_p2p(self, *arguments: Any) -> None:
        """Shapes are known, nobody needs to vote on them."""

    def _pair(self, action: _Action, ctx: _PipelineContext) -> None:
        assert action.sub_actions is not None
        forward, backward = action.sub_actions
        ahead, back = self.by_number[forward.stage_index], self.by_number[backward.stage_index]
        f, b = forward.microbatch_index, backward.microbatch_index
        assert f is not None and b is not None
        defer = backward.computation_type == _ComputationType.BACKWARD_INPUT
        for awaited, key in ((self.fwd_recv_ops, (ahead.stage_index, f)), (self.bwd_recv_ops, (back.stage_index, b))):
            if key in awaited:
                _wait_batch_p2p(awaited.pop(key))
        passes = {"forward": lambda: ahead.forward_turns(f), "backward": lambda: back.backward_turns(b, defer=defer)}
        if self.order is None:
            results = {name: alone(turns()) for name, turns in passes.items()}
        else:
            results = dict(zip(self.order, in_turns(*(passes[name]() for name in self.order)), strict=True))
        output = results["forward"]
        assert output is not None
        ahead.forward_done(f, output)
        self._maybe_compute_loss(ahead, output, ctx.target_mbs, f)
        back.backward_done(b, results["backward"], defer=defer)
        if not defer:
            self.backward_counter[back.stage_index] += 1
        self._hand_over(ahead, f, back, b, output)

    def _hand_over(self, ahead: RunningStage, f: int, back: RunningStage, b: int, output: Tensor) -> None:
        """Gives results to neighbours on this rank."""
        if (after := self.by_number.get(ahead.stage_index + 1)) is not None:
            after.set_local_fwd_input(output, f)
        if (before := self.by_number.get(back.stage_index - 1)) is not None:
            before.set_local_bwd_input(back.get_local_bwd_output(b), b)


def lower(schedule: Schedule) -> dict[int, list[_Action]]:
    """The table with sends and receives: a result is sent when it is there, and its receiver posts the receive as early as it can.

    Sends and receives between two ranks stand in the same order on both, so that none waits for another.
    """
    after, before = _neighbours(schedule)
    left = {rank: list(row) for rank, row in enumerate(schedule.rows)}
    lowered: dict[int, list[_Action]] = {rank: [] for rank in left}
    there: set[Action] = set()

    def finished(action: Action, rank: int) -> None:
        there.add(action if action.kind != Kind.BACKWARD else Action(action.stage, Kind.INPUT, action.microbatch))
        peer = (after if action.kind == Kind.FORWARD else before).get(action.stage) if action.kind != Kind.WEIGHT else None
        if peer is not None and schedule.rank_of[peer] != rank:
            lowered[rank].append(_Action(action.stage, SEND[action.kind], action.microbatch))
            lowered[schedule.rank_of[peer]].append(_Action(peer, RECEIVE[action.kind], action.microbatch))

    while any(left.values()):
        moved = False
        for rank, row in left.items():
            if not row or not all(_ready(part, after, before, there) for part in _parts(row[0])):
                continue
            item = row.pop(0)
            lowered[rank].append(_torch_action(item))
            for part in _parts(item):
                finished(part, rank)
            moved = True
        if not moved:
            raise AssertionError(f"{schedule.name}: no rank can go on")
    return lowered


def prepare_shards(stage: Stage) -> None:
    """FSDP learns of its modules in a first forward pass, which stages do not call."""
    if isinstance(stage, FSDPModule):
        fully_shard.state(stage)._lazy_init()  # type: ignore[attr-defined]


def _hold(stage: Stage) -> None:
    """Modules that FSDP sees called within a stage (MTP's block) neither give back parameters nor send gradients until all is done."""
    if isinstance(stage, FSDPModule):
        stage.set_is_last_backward(False)
        stage.set_reshard_after_backward(False)
        stage.set_requires_gradient_sync(False)


def _loss_itself(output: Tensor, target: Any) -> Tensor:
    return output


def _neighbours(schedule: Schedule) -> tuple[dict[int, int], dict[int, int]]:
    after = {a: b for chain in schedule.chains for a, b in pairwise(chain)}
    return after, {b: a for a, b in after.items()}


def _parts(item: Action | Pair) -> tuple[Action, ...]:
    return (item.forward, item.backward) if isinstance(item, Pair) else (item,)


def _ready(action: Action, after: dict[int, int], before: dict[int, int], there: set[Action]) -> bool:
    """Whether what an action takes in was computed; a backward pass counts by its input part."""
    needs: list[Callable[[], Action | None]] = {
        Kind.FORWARD: [lambda: _at(before, action, Kind.FORWARD)],
        Kind.BACKWARD: [lambda: Action(action.stage, Kind.FORWARD, action.microbatch), lambda: _at(after, action, Kind.INPUT)],
        Kind.INPUT: [lambda: Action(action.stage, Kind.FORWARD, action.microbatch), lambda: _at(after, action, Kind.INPUT)],
        Kind.WEIGHT: [lambda: Action(action.stage, Kind.INPUT, action.microbatch)],
    }[action.kind]
    return all(need is None or need in there for need in (make() for make in needs))


def _at(neighbour: dict[int, int], action: Action, kind: Kind) -> Action | None:
    return Action(neighbour[action.stage], kind, action.microbatch) if action.stage in neighbour else None


def _torch_action(item: Action | Pair) -> _Action:
    if isinstance(item, Pair):
        parts = (_torch_action(item.forward), _torch_action(item.backward))
        return _Action(item.forward.stage, _ComputationType.OVERLAP_F_B, None, parts)
    return _Action(item.stage, KINDS[item.kind], item.microbatch)
