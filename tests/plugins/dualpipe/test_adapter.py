"""What of torch's private pipeline runtime the adapter relies on, and that its tables of sends and receives cannot block."""

from __future__ import annotations

import inspect
from collections import defaultdict
from itertools import pairwise

import pytest
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as theirs

from bestiary.plugins.dualpipe.adapter import lower
from bestiary.plugins.dualpipe.schedules.catalog import make

TABLES = [
    ("1f1b", 4, 7),
    ("interleaved", 4, 8),
    ("interleaved-overlap", 2, 6),
    ("zb1p", 5, 6),
    ("zb-v", 4, 9),
    ("dualpipe-v", 3, 8),
    ("dualpipe-v", 8, 20),
    ("dualpipe", 2, 4),
    ("dualpipe", 8, 20),
]


def test_torch_still_has_the_names_that_are_used():
    """A torch that fails here needs a look at `plugins/dualpipe/adapter.py`, and nowhere else."""
    assert theirs._Action._fields == ("stage_index", "computation_type", "microbatch_index", "sub_actions")
    source = inspect.getsource(theirs._PipelineScheduleRuntime)
    for name in ("fwd_recv_ops", "bwd_recv_ops", "backward_counter", "_comp_type_to_function_map", "_assert_unsharded"):
        assert name in source, name
    assert hasattr(PipelineStage, "perform_reduce_grad")
    for method, parameters in {
        "forward_one_chunk": ["self", "fwd_chunk_id", "args", "kwargs", "save_forward_output"],
        "backward_one_chunk": ["self", "bwd_chunk_id", "loss", "full_backward", "last_backward"],
        "backward_weight_one_chunk": ["self", "bwd_chunk_id", "last_backward"],
        "set_local_fwd_input": ["self", "prev_stage_outputs", "mb_index"],
        "set_local_bwd_input": ["self", "next_stage_bwd_outputs", "mb_index"],
        "get_local_bwd_output": ["self", "mb_index"],
        "_post_metadata_inference_cleanup": ["self"],
        "_retrieve_recv_activations": ["self", "fwd_chunk_id"],
        "_retrieve_recv_grads": ["self", "bwd_chunk_id"],
    }.items():
        assert list(inspect.signature(getattr(PipelineStage, method)).parameters) == parameters, method
    step = inspect.signature(theirs._PipelineScheduleRuntime._step_microbatches)
    assert list(step.parameters)[:6] == ["self", "arg_mbs", "kwarg_mbs", "target_mbs", "losses", "return_outputs"]


@pytest.mark.parametrize(("name", "ranks", "microbatches"), TABLES)
def test_sends_and_receives_of_two_ranks_stand_in_the_same_order(name, ranks, microbatches):
    schedule = make(name, ranks=ranks, microbatches=microbatches)
    after = {a: b for chain in schedule.chains for a, b in pairwise(chain)}
    before = {b: a for a, b in after.items()}
    sent, received = defaultdict(list), defaultdict(list)
    for rank, actions in lower(schedule).items():
        for action in actions:
            kind = action.computation_type.value
            if kind.startswith("SEND"):
                to = (after if kind == "SEND_F" else before)[action.stage_index]
                sent[rank, schedule.rank_of[to]].append((to, kind[-1], action.microbatch_index))
            elif kind.startswith("RECV"):
                source = (before if kind == "RECV_F" else after)[action.stage_index]
                received[schedule.rank_of[source], rank].append((action.stage_index, kind[-1], action.microbatch_index))
    assert sent == received
    assert all(a != b for a, b in sent)


@pytest.mark.parametrize(("name", "ranks", "microbatches"), TABLES)
def test_every_receive_is_posted_before_its_pass_and_every_send_after_its_own(name, ranks, microbatches):
    for actions in lower(make(name, ranks=ranks, microbatches=microbatches)).values():
        place = {}
        for index, action in enumerate(actions):
            for part in action.sub_actions or (action,):
                place[part.stage_index, part.computation_type.value, part.microbatch_index] = index
        for (stage, kind, number), index in place.items():
            back = place.get((stage, "I", number), place.get((stage, "B", number)))
            if kind in ("RECV_F", "SEND_F"):
                assert (index < place[stage, "F", number]) == (kind == "RECV_F")
            elif kind in ("RECV_B", "SEND_B"):
                assert (index < back) == (kind == "RECV_B")
