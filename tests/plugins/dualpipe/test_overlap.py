"""What overlap hides, how often things are computed, and what one step of a pipeline refuses."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import bestiary
from bestiary import testing
from bestiary.core import weight_gradients
from bestiary.core.contracts import Context
from bestiary.core.distributed.experts import ExpertRanks
from bestiary.core.recompute import recompute_blocks
from bestiary.plugins.dualpipe.stage import Segment
from bestiary.plugins.dualpipe.tape import Tape, alone, in_turns

LATENCY = 0.01
LAYERS = 4


@pytest.fixture
def blocks(model):
    """Layers with experts, each exchange 10 ms late."""
    made = bestiary.create_model(model(layers=LAYERS + 1, mtp=False, aux=0), dtype=torch.float64, seed=1).train()
    for module in made.modules():
        if hasattr(module, "share_experts"):
            module.share_experts(ExpertRanks(latency=LATENCY))
    return made, [layer for layer in made.model.layers if layer.mlp.__class__.__name__ == "MixtureOfExperts"]


def passes(blocks, x, grad):
    """A forward pass on its way, and a backward pass whose forward pass is over; both through all blocks."""
    context = Context(torch.arange(x.shape[1])[None])
    segments = [Segment(lambda x, block=block: block.steps(x, context), block.recompute) for block in blocks]
    done, fresh = Tape(), Tape()
    alone(done.forward(segments, x.clone().requires_grad_()))
    return fresh.forward(segments, x.clone().requires_grad_()), done.backward(grad, defer=False)


def timed(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pair_takes_at_most_four_fifths_of_its_passes(blocks, recompute):
    """The waiting alone is 2 * 10 ms a layer and pass. The best of three, since the machine may be busy with something else."""
    model, layers = blocks
    if recompute:
        recompute_blocks(model)
    x = torch.randn(2, 6, 14, dtype=torch.float64)
    grad = torch.randn_like(x)
    one_by_one = min(timed(lambda: [alone(turns) for turns in passes(layers, x, grad)]) - _setup(layers, x, grad) for _ in range(3))
    together = min(timed(lambda: in_turns(*passes(layers, x, grad))) - _setup(layers, x, grad) for _ in range(3))
    assert together <= 0.8 * one_by_one


def _setup(layers, x, grad) -> float:
    return timed(lambda: passes(layers, x, grad))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_pieces_are_those_of_autograd(blocks, recompute):
    model, layers = blocks
    if recompute:
        recompute_blocks(model)
    x, grad = torch.randn(2, 6, 14, dtype=torch.float64), torch.randn(2, 6, 14, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    y, context = whole, Context(torch.arange(6)[None])
    for layer in layers:
        y = layer(y, context)
    y.backward(grad)
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    forward, backward = passes(layers, x, grad)
    output, x_grad = in_turns(forward, backward)
    torch.testing.assert_close(output, y, rtol=0, atol=1e-12, check_stride=False)
    torch.testing.assert_close(x_grad, whole.grad, rtol=0, atol=1e-12)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_each_block_runs_once_and_is_recomputed_once_and_each_weight_gradient_is_computed_once(blocks, recompute, monkeypatch):
    model, layers = blocks
    if recompute:
        recompute_blocks(model)
    runs, weights = [], []
    for layer in layers:
        layer.self_attn.register_forward_hook(lambda module, inputs, output: runs.append(module))
    accumulate = weight_gradients.accumulate
    for module in ("bestiary.core.weight_gradients", "bestiary.core.layers.grouped"):
        monkeypatch.setattr(f"{module}.accumulate", lambda p, g: (weights.append(p), accumulate(p, g)))
    x = torch.randn(1, 5, 14, dtype=torch.float64)
    context = Context(torch.arange(5)[None])
    segments = [Segment(lambda x, block=block: block.steps(x, context), block.recompute) for block in layers]
    tape = Tape()
    y = alone(tape.forward(segments, x.requires_grad_()))
    alone(tape.backward(torch.ones_like(y), defer=True))
    assert not weights
    with torch.no_grad():
        for work in tape.deferred:
            work()
    assert len(runs) == len(layers) * (2 if recompute else 1)
    assert len(weights) == len({id(p) for p in weights}) > len(layers)


def _steps(data, parallelism, lengths):
    """What each of several steps says, on one rank."""
    from bestiary.lab.testing.conformance import Case, batch

    made = bestiary.create_model({**data, "parallelism": parallelism}, dtype=torch.float64).train()
    said = []
    for length, rows in lengths:
        try:
            made.parallelism.step(made, batch(Case(data, parallelism, length=length), rows, 31, 0))
            said.append("done")
        except bestiary.BestiaryError as error:
            said.append(str(error))
    return said


def test_another_length_is_refused_before_anything_is_sent_and_the_next_step_works(processes, model):
    parallelism = {"use": "dualpipe-v", "pp": 2, "micro_batches": 4}
    for said in processes.run(_steps, model(), parallelism, [(9, 4), (12, 4), (6, 4), (9, 6), (9, 8), (9, 4)], world=2):
        assert said[0] == said[4] == said[5] == "done"
        assert "sequences of 12 tokens after steps of 9" in said[1]
        assert "sequences of 6 tokens after steps of 9" in said[2]
        assert "a batch of 6 rows does not split into the 4 parts" in said[3]


def _started(data, parallelism, folder):
    """The parameters that a rank has of a checkpoint."""
    from bestiary.core.distributed.cuts import Cut
    from bestiary.lab.training.whole import spread, tensors_of
    from bestiary.registry.load import load_for_training

    manifest = bestiary.resolve({**data, "parallelism": parallelism})
    made = spread(manifest, load_for_training(manifest, folder), torch.device("cpu"))
    assert all(isinstance(cut, Cut) for cut in made.cuts.values())
    return {name: (tensor, made.cuts[name].index if name in made.cuts else None) for name, tensor in tensors_of(made).items()}


def test_a_checkpoint_starts_a_pipeline(processes, model, tmp_path):
    data = model()
    whole = bestiary.create_model(data, seed=5)
    bestiary.save(whole, tmp_path / "start")
    parallelism = {"use": "dualpipe-v", "pp": 2, "dp": 2, "ep": 2, "micro_batches": 4}
    wanted, seen = whole.state_dict(), set()
    for held in processes.run(_started, data, parallelism, tmp_path / "start"):
        assert 0 < len(held) < len(wanted)
        for name, (tensor, index) in held.items():
            assert torch.equal(tensor, wanted[name] if index is None else wanted[name].chunk(2)[index])
            seen.add(name)
    assert seen == wanted.keys()


def _broken(data, parallelism, rank):
    from torch import distributed as dist

    from bestiary.lab.testing.conformance import Case, batch

    made = bestiary.create_model({**data, "parallelism": parallelism}, dtype=torch.float64).train()
    if dist.get_rank() == rank:
        layer = next(layer for layer in made.model.layers if hasattr(layer, "self_attn"))

        def fail(module: nn.Module, inputs: object) -> None:
            raise ArithmeticError("a stage that fails")

        layer.self_attn.register_forward_pre_hook(fail)
    made.parallelism.step(made, batch(Case(data, parallelism), 4, 31, 0))


def test_a_stage_that_fails_is_named_and_the_others_stop(model):
    with testing.Processes(2, timeout=10) as pool, pytest.raises(testing.ProcessesFailed) as failed:
        pool.run(_broken, model(), {"use": "dualpipe-v", "pp": 2, "micro_batches": 4}, 1)
    assert "a stage that fails" in str(failed.value)
    assert "on rank 1, which has stage 1" in str(failed.value)


def test_one_process_keeps_the_whole_model_and_says_how_to_start_more(model):
    made = bestiary.create_model({**model(), "parallelism": {"use": "dualpipe-v", "pp": 2, "dp": 2, "micro_batches": 4}})
    assert made(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 31)
    with pytest.raises(bestiary.BestiaryError, match=r"takes steps in 4 processes, and this one is alone.*--nproc 4"):
        made.parallelism.step(made, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": "dualpipe", "pp": 3, "micro_batches": 8}, "needs an even number of pipeline ranks, not 3"),
        ({"use": "dualpipe-v", "pp": 4, "micro_batches": 6}, "needs 8 micro-batches at least, not 6"),
        ({"use": "pipeline", "schedule": "interleaved", "pp": 2, "micro_batches": 3}, "multiple of 2 micro-batches, not 3"),
        (
            {"use": "dualpipe-v", "pp": 2, "dp": 4, "ep": 3, "micro_batches": 4},
            r"ep = 3 does not divide dp \* tp = 4. Use one of \[1, 2, 4\]",
        ),
        ({"use": "dualpipe", "pp": 2, "micro_batches": 5}, "multiple of 2 micro-batches, not 5. The nearest: 4 or 6"),
        ({"use": "dualpipe-v", "pp": 3, "dp": 3, "ep": 3, "micro_batches": 6}, r"ep = 3 does not divide 8 experts. Use one of \[1\]"),
        ({"use": "fsdp", "dp": 12, "ep": 6}, r"ep = 6 does not divide 8 experts. Use one of \[1, 2, 4\]"),
        ({"use": "dualpipe-v", "pp": 5, "micro_batches": 10}, "10 stages, and 7 layers with the head make 8 at most. Use pp = 4 at most"),
        ({"use": "dualpipe", "pp": 10, "micro_batches": 20}, "10 stages, and 7 layers with the head make 8 at most. Use pp = 8 at most"),
        ({"use": "pipeline", "schedule": "interleaved", "pp": 1, "chunks": 9}, "make 8 at most. Take another schedule"),
        ({"use": "fsdp", "dp": 6, "shard": 4}, r"shard = 4 does not divide dp = 6. Use one of \[1, 2, 3, 6\]"),
    ],
)
def test_layouts_that_do_not_fit_are_refused_by_the_manifest(model, options, message):
    with pytest.raises(bestiary.BestiaryError, match=message):
        bestiary.resolve({**model(), "parallelism": options})


def test_experts_that_there_are_not_cannot_be_shared(model):
    with pytest.raises(bestiary.BestiaryError, match="ep = 2, and the model has no experts to share"):
        bestiary.resolve({**model(ffn="dense"), "parallelism": {"use": "fsdp", "dp": 2, "ep": 2}})
