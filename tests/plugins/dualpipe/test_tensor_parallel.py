"""Layers whose matrices several ranks share compute what one process computes, alone and under every other parallelism."""

from __future__ import annotations

import pytest

from bestiary import testing
from bestiary.plugins.baseline.attention import GroupedQueryAttention

V = {"use": "dualpipe-v", "pp": 2, "micro_batches": 4}
LAYOUTS = {
    "alone": {"use": "pipeline", "schedule": "1f1b", "pp": 1, "tp": 4, "micro_batches": 2},
    "dualpipe-v": V | {"tp": 2},
    "dualpipe": {"use": "dualpipe", "pp": 2, "tp": 2, "micro_batches": 4},
    "zb-v": {"use": "pipeline", "schedule": "zb-v", "pp": 2, "tp": 2, "micro_batches": 4},
    "1f1b sharded": {"use": "pipeline", "schedule": "1f1b", "pp": 1, "dp": 2, "tp": 2, "zero": 3, "micro_batches": 2},
    "fsdp": {"use": "fsdp", "dp": 2, "tp": 2, "micro_batches": 2},
    "fsdp copies": {"use": "fsdp", "dp": 2, "shard": 1, "tp": 2},
    "fsdp alone": {"use": "fsdp", "dp": 1, "tp": 2},
    "dualpipe-v experts": V | {"tp": 2, "ep": 2},
    "experts over data and tensor ranks": {"use": "dualpipe-v", "pp": 1, "dp": 2, "tp": 2, "ep": 4, "micro_batches": 3},
    "fsdp experts": {"use": "fsdp", "dp": 2, "tp": 2, "ep": 2},
}
GQA = {"use": "gqa", "num_key_value_heads": 2, "head_dim": 6, "qkv_bias": True, "o_bias": True, "qk_norm": True}
PLAIN_QUERY = {"use": "mla", "kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7}


@pytest.fixture
def wide(model):
    """`wide("mla", ...)`: the small models, with heads and widths that two and four divide."""

    def make(*arguments, **options):
        data = model(*arguments, **options)
        data["model"] |= {"num_attention_heads": 4}
        data["block"]["ffn"] = data["block"]["ffn"] | {"intermediate_size": 12}
        data["block"]["at"]["0"]["ffn"]["intermediate_size"] = 20
        return data

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_at_once(processes, wide, layout):
    """MTP, balance losses, packed documents, recomputed blocks, stages of unequal length."""
    testing.assert_same(processes, testing.Case(wide(), LAYOUTS[layout], recompute=True, documents=True, ignored=True))


@pytest.mark.parametrize("layout", ["dualpipe-v", "zb-v", "1f1b sharded", "fsdp experts"])
@pytest.mark.parametrize("feature", ["biases and norms", "plain query", "tied"])
def test_one_feature(processes, wide, layout, feature):
    attention = {"biases and norms": GQA, "plain query": PLAIN_QUERY}.get(feature, "mla")
    testing.assert_same(processes, testing.Case(wide(attention, mtp=feature != "tied", tied=feature == "tied"), LAYOUTS[layout]))


@pytest.mark.parametrize("layout", ["dualpipe-v", "fsdp"])
def test_fp32(processes, wide, layout):
    testing.assert_same(processes, testing.Case(wide(), LAYOUTS[layout], dtype="float32"))


def test_fp8(processes, tiny):
    """Parts of a sum are rounded to bf16 before they are added up, so that numbers are near and not the same; a sum too few, or one too
    many, would be far off. `tests/plugins/fp8/test_parts.py` shows that the codes are the same."""
    attention = {"use": "gqa", "num_key_value_heads": 4, "head_dim": 64}
    sizes = {"num_attention_heads": 4, "hidden_size": 8}
    data = tiny(attention, {"use": "dense", "intermediate_size": 256}, layers=3, model=sizes, precision={"use": "fp8"})
    testing.assert_same(processes, testing.Case(data, V | {"tp": 2}, dtype=None, recompute=True, rate=0.0, tolerance=0.2))


def _not_sharing(case):
    """An outcome where attention offers nothing to tensor ranks, as that of others may do."""
    offered = GroupedQueryAttention.share_matrices
    del GroupedQueryAttention.share_matrices
    try:
        return testing.outcome(case)
    finally:
        GroupedQueryAttention.share_matrices = offered


def test_what_says_nothing_of_tensor_ranks_stays_whole(processes, wide):
    case = testing.Case(wide(GQA), LAYOUTS["fsdp alone"])
    wanted = testing.outcome(case.alone(1))
    for found in processes.run(_not_sharing, case, world=2):
        assert found.losses == pytest.approx(wanted.losses, rel=1e-12)
        assert found.norms == pytest.approx(wanted.norms, rel=1e-12)
