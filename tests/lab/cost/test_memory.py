"""Memory per rank: against the accounting of one device, hand counts, and DeepSeek-V3's own layout."""

from __future__ import annotations

from itertools import pairwise

import pytest

import bestiary
from bestiary.core.accounting import account
from bestiary.core.errors import BestiaryError
from bestiary.core.table import entries
from bestiary.lab.cost.memory import plan

V3, MINI = bestiary.resolve("deepseek-v3"), bestiary.resolve("deepseek-v3-mini")
OWN = {"gpus": 2048, "layout": "pp=16,ep=64,zero=1"}


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v3-mini", "qwen3-8b", "llama-3.1-8b"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_one_device_without_sharing_needs_what_show_says(name, precision):
    manifest = bestiary.resolve(name, set={"precision.use": precision})
    (rank,) = plan(manifest, gpus=1, layout="zero=0", recompute="none").ranks
    assert rank.memory == account(manifest).training


@pytest.mark.parametrize("schedule", ["1f1b", "zb1p", "dualpipe", "dualpipe-v"])
def test_deepseek_v3_in_its_own_layout_fits_80_gb(schedule):
    done = plan(V3, schedule=schedule, **OWN)
    assert done.fits and done.gpu.memory == 80e9
    assert done.request.layout.dp == 128
    assert done.otherwise > 80e9  # not without recomputing


def test_every_layer_lies_on_one_stage_and_every_number_on_one_rank():
    done = plan(V3, gpus=16, layout="pp=16")
    assert [layer for rank in done.ranks for stage in rank.stages for layer in stage] == list(range(61))
    own = sum(entry.weight.numel for entry in entries(V3) if not entry.weight.duplicate_of)
    copied = 129280 * 7168  # MTP's embedding, which lies with the last stage and not with the first
    assert sum(rank.parameters for rank in done.ranks) == own + copied


def test_dualpipe_holds_two_stages_a_rank_and_shares_embedding_and_head_with_mtp():
    done = plan(V3, schedule="dualpipe", **OWN)
    single = plan(V3, **OWN)
    assert [rank.stages for rank in done.ranks[:2]] == [(range(0, 4), range(60, 61)), (range(4, 8), range(56, 60))]
    assert done.ranks[1].parameters == 2 * single.ranks[1].parameters
    assert done.ranks[0].parameters == single.ranks[0].parameters + single.ranks[15].parameters - 129280 * 7168
    assert {sum(rank.in_flight) for rank in done.ranks} == {17}
    assert [rank.memory.total for rank in done.ranks] == [rank.memory.total for rank in reversed(done.ranks)]


def test_dualpipe_v_folds_twice_as_many_stages():
    done = plan(V3, gpus=8, layout="pp=8", schedule="dualpipe-v")
    assert [layer for rank in done.ranks for layer in rank.stages[0]] + [
        layer for rank in reversed(done.ranks) for layer in rank.stages[1]
    ] == list(range(61))
    assert {sum(rank.in_flight) for rank in done.ranks} == {17}


def test_experts_are_cut_by_ep_and_shared_by_the_ranks_that_hold_the_same():
    whole, cut = (plan(MINI, gpus=16, layout=f"ep={ep},zero=1").worst for ep in (1, 16))
    experts = sum(entry.weight.numel for entry in entries(MINI) if entry.weight.shard == "expert")
    assert whole.parameters - cut.parameters == experts - experts // 16
    assert whole.memory.optimizer == pytest.approx(12 * _trained(MINI) / 16, abs=16)
    assert cut.memory.optimizer == pytest.approx(12 * (_trained(MINI) - experts) / 16 + 12 * experts / 16, abs=16)


def _trained(manifest):
    return sum(entry.weight.numel for entry in entries(manifest) if entry.weight.role != "state" and not entry.weight.duplicate_of)


def test_zero_shares_more_with_every_stage():
    ranks = [plan(MINI, gpus=8, layout=f"zero={zero}").worst.memory for zero in range(4)]
    assert ranks[1].optimizer == pytest.approx(12 * _trained(MINI) / 8, abs=8)
    assert ranks[2].gradients == pytest.approx(ranks[1].gradients / 8, abs=8)
    assert ranks[3].weights < ranks[2].weights
    assert all(after.total < before.total for before, after in pairwise(ranks))


def test_bf16_moments_halve_the_moments():
    wide, narrow = (plan(MINI, gpus=8, moments=moments).worst.memory.optimizer for moments in (8, 4))
    assert wide - narrow == pytest.approx(4 * _trained(MINI) / 8, abs=8)


def test_tensor_parallelism_cuts_what_components_say_may_be_cut():
    one, two = (plan(MINI, gpus=2, layout=f"tp={tp}").worst for tp in (1, 2))
    cut = sum(entry.weight.numel for entry in entries(MINI) if entry.weight.shard in ("row", "column") and not entry.weight.duplicate_of)
    assert one.parameters - two.parameters == cut // 2


def test_tensor_ranks_share_what_heads_and_hidden_layers_keep_and_routed_rows_where_experts_are_spread():
    llama = bestiary.resolve("llama-3.1-8b")
    one, two = (plan(llama, gpus=2, layout=f"tp={tp}", recompute="none").worst.memory.activations for tp in (1, 2))
    kept = 2 * 4096 + 2 * 1024 + 3 * 14336  # queries and what attention gives, keys, values, three hidden layers
    assert one - two == 4096 * 32 * 2 * kept / 2
    alike, dealt = (plan(MINI, gpus=2, layout=f"tp=2,ep={ep}", recompute="none").worst.memory.activations for ep in (1, 2))
    assert alike > dealt
    whole, part = (plan(MINI, gpus=2, layout=f"tp={tp}").worst.memory.activations for tp in (1, 2))
    inputs = sum(1 for _ in MINI.layers) * MINI.model.hidden_size * 2 * min(4096, MINI.model.max_position_embeddings)
    assert inputs < part < whole, "the inputs of blocks lie on every tensor rank"


def test_activations_grow_with_micro_batch_and_sequence_and_stop_growing_when_the_pipeline_is_full():
    base = plan(MINI, gpus=4, layout="pp=4", recompute="none").ranks[0].memory.activations
    assert plan(MINI, gpus=4, layout="pp=4", recompute="none", micro_batch=3).ranks[0].memory.activations == 3 * base
    assert plan(MINI, gpus=4, layout="pp=4", recompute="none", micro_batches=2).ranks[0].memory.activations == base // 2
    assert plan(MINI, gpus=4, layout="pp=4", recompute="none", micro_batches=64).ranks[0].memory.activations == base


def test_recomputing_keeps_one_input_a_block_and_one_block_in_full():
    done = plan(V3, gpus=16, layout="pp=16")
    layers, flights = done.ranks[3].stages[0], done.ranks[3].in_flight[0]
    full = plan(V3, gpus=16, layout="pp=16", recompute="none").ranks[3].memory.activations / flights / len(layers)
    assert done.ranks[3].memory.activations == pytest.approx(4096 * 7168 * 2 * len(layers) * flights + full, abs=1)


def test_a_tied_embedding_is_on_the_first_and_on_the_last_stage():
    tied = bestiary.resolve("qwen3-8b", set={"model.tie_word_embeddings": True})
    done = plan(tied, gpus=2, layout="pp=2")
    assert sum(rank.parameters for rank in done.ranks) == account(tied).parameters + 151936 * 4096


def test_a_plan_is_made_from_what_components_report():
    """No formula knows DeepSeek-V3: a swapped part changes exactly its own share."""
    dense = bestiary.resolve("deepseek-v3-mini", set={"block.ffn.use": "dense", "block.ffn.intermediate_size": 64})
    assert plan(dense, gpus=4).worst.parameters == account(dense).parameters + account(dense).objective_parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "pp=15"}, "pp=16"),
        ({"layout": "tp=3"}, "tp=4"),
        ({"layout": "ep=48"}, "ep=64"),
        ({"layout": "pp=16,ep=256"}, "128"),
        ({"layout": "pp=128"}, "pp=32"),
        ({"layout": "pp=64"}, "62 at most"),
        ({"layout": "dp=3"}, "dp=2048"),
        ({"layout": "tp=256"}, "tp=64|tp=128"),
        ({"layout": "pq=3"}, "Known: dp, ep, pp, tp, zero"),
        ({"layout": "zero=4"}, "0 to 3"),
        ({"layout": "pp=x"}, "number of ranks"),
        ({"layout": "pp"}, "number of ranks"),
        ({"layout": "pp=1", "schedule": "dualpipe"}, "even number.*pp=2"),
        ({"schedule": "dualpip"}, "Did you mean 'dualpipe'"),
        ({"gpus": 0}, "above 0"),
    ],
)
def test_a_layout_that_does_not_divide_names_the_nearest_that_does(arguments, message):
    with pytest.raises(BestiaryError, match=message):
        plan(V3, **({"gpus": 2048} | arguments))


def test_experts_need_a_model_that_has_some():
    with pytest.raises(BestiaryError, match="no experts"):
        plan(bestiary.resolve("llama-3.1-8b"), gpus=8, layout="ep=2")
