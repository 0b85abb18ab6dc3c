"""What tensor parallelism would cut through is said with the degrees that are possible, before anything is built."""

from __future__ import annotations

import re

import pytest

import bestiary
from bestiary.core.errors import BestiaryError

FP8 = {
    "precision.use": "fp8",
    "block.attention": {"use": "gqa", "num_key_value_heads": 4, "head_dim": 64},
    "block.ffn": {"use": "dense", "intermediate_size": 1024},
    'block.at."0".ffn.intermediate_size': 512,
    "objective.mtp": False,
}


def refusal(name, changes):
    with pytest.raises(BestiaryError) as caught:
        bestiary.resolve(name, set=changes)
    return str(caught.value)


@pytest.mark.parametrize("use", ["pipeline", "dualpipe", "dualpipe-v", "fsdp"])
def test_heads_are_not_cut(use):
    told = refusal("deepseek-v3-nano", {"parallelism.use": use, "parallelism.tp": 3})
    assert "parallelism: tp = 3 does not divide the 4 heads of model.layers.0.self_attn.q_b_proj.weight, nor those of" in told
    assert "Use one of [1, 2, 4]." in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"block.attention": {"use": "gqa", "num_key_value_heads": 2}, "parallelism.tp": 4},
            "the 2 heads of .*k_proj.*Use one of .1, 2.[.]",
        ),
        ({'block.at."0".ffn.intermediate_size': 482, "parallelism.tp": 4}, "the 482 columns of .*gate_proj.*Use one of .1, 2.[.]"),
        ({"block.ffn.intermediate_size": 98, "parallelism.tp": 4}, "the 98 columns of .*layers.1.mlp.shared_experts.*Use one of .1, 2.[.]"),
        (FP8 | {"parallelism.tp": 4}, "the 4 heads of .* in tiles of 128.*Use one of .1, 2.[.]"),
        (FP8 | {"precision.weights": "row", "parallelism.tp": 2}, "'fp8' has factors over whole rows or matrices.*Use tp = 1"),
    ],
)
def test_widths_and_tiles_are_not_cut(changes, told):
    assert re.search(told, " ".join(refusal("deepseek-v3-nano", {"parallelism.use": "fsdp"} | changes).split()))


def test_what_fits_is_not_refused():
    for changes in ({"parallelism.tp": 4}, FP8 | {"parallelism.tp": 2}, {"block.attention.use": "gqa", "parallelism.tp": 2}):
        assert bestiary.resolve("deepseek-v3-nano", set={"parallelism.use": "fsdp"} | changes).parallelism.options.tp > 1
    assert bestiary.resolve("deepseek-v3", set={"parallelism.use": "fsdp", "precision.use": "fp8", "parallelism.tp": 16})


def test_a_rank_is_described_with_its_part():
    dual = bestiary.resolve("deepseek-v3-nano", set={"parallelism.use": "dualpipe-v", "parallelism.pp": 2, "parallelism.tp": 2})
    parallelism = dual.parallelism.build(dual.site)
    assert parallelism.processes == 4
    assert [parallelism.describe(dual, rank) for rank in (0, 3)] == [
        "stage 0 (layers 0 to 1) and stage 3 (no layer) of dualpipe-v, as tensor rank 0 of 2",
        "stage 1 (layer 2) and stage 2 (layer 3) of dualpipe-v, as tensor rank 1 of 2",
    ]
    data = bestiary.resolve("deepseek-v3-nano", set={"parallelism.use": "fsdp", "parallelism.dp": 2, "parallelism.tp": 2})
    assert data.parallelism.build(data.site).describe(data, 2) == "part 1 of 2 of every layer, as tensor rank 0 of 2"
