"""What differs between two manifests."""

from __future__ import annotations

import bestiary
from bestiary.core.manifest_diff import differences

NANO = "deepseek-v3-nano"


def rows(**changes) -> dict[str, tuple]:
    found = differences(bestiary.resolve(NANO), bestiary.resolve(NANO, set={path.replace("__", "."): v for path, v in changes.items()}))
    return {row.path: (row.a, row.b) for row in found}


def test_equal_manifests_do_not_differ():
    assert rows() == {}


def test_one_setting_is_one_row_for_all_layers():
    assert rows(block__attention__kv_lora_rank=32) == {"block.attention.kv_lora_rank": (64, 32)}


def test_layers_that_differ_alike_are_one_slice():
    found = rows(block__ffn__use="dense", block__ffn__intermediate_size=480)
    assert found['block.at."1:4".ffn.use'] == ("moe", "dense")
    assert found['block.at."1:4".ffn.n_routed_experts'] == (16, None)
    assert all(path.startswith('block.at."1:4".ffn') for path in found), "layer 0 is dense in both"


def test_layers_that_only_one_model_has_stand_against_nothing():
    found = rows(model__num_hidden_layers=5)
    assert found["model.num_hidden_layers"] == (4, 5)
    assert found['block.at."4:5".ffn.use'] == (None, "moe")
    assert all(path.startswith(('block.at."4:5"', "model.")) for path in found)


def test_objectives_and_placement_are_compared():
    assert rows(objective__mtp=False)["objective.mtp.use"] == ("mtp", None)
    assert rows(parallelism__micro_batches=2) == {"parallelism.micro_batches": (1, 2)}
