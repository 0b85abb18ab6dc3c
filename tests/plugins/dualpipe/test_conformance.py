"""Every pipeline, with every feature, computes what one process computes."""

from __future__ import annotations

import pytest

from bestiary import testing

V = {"use": "dualpipe-v", "pp": 2, "micro_batches": 4}
LAYOUTS = {
    "dualpipe-v": V,
    "dualpipe-v 4": {"use": "dualpipe-v", "pp": 4, "micro_batches": 9},
    "dualpipe": {"use": "dualpipe", "pp": 4, "micro_batches": 8},
    "1f1b": {"use": "pipeline", "schedule": "1f1b", "pp": 4, "micro_batches": 5},
    "interleaved": {"use": "pipeline", "schedule": "interleaved", "pp": 2, "micro_batches": 4},
    "interleaved-overlap": {"use": "pipeline", "schedule": "interleaved-overlap", "pp": 2, "dp": 2, "ep": 2, "micro_batches": 6},
    "zb1p": {"use": "pipeline", "schedule": "zb1p", "pp": 4, "micro_batches": 6},
    "zb-v": {"use": "pipeline", "schedule": "zb-v", "pp": 4, "micro_batches": 8},
    "dualpipe-v data": V | {"dp": 2},
    "dualpipe-v experts": V | {"dp": 2, "ep": 2},
    "dualpipe experts": {"use": "dualpipe", "pp": 2, "dp": 2, "ep": 2, "micro_batches": 4, "overlap": "backward-first"},
    "dualpipe sharded": {"use": "dualpipe", "pp": 2, "dp": 2, "zero": 3, "micro_batches": 4},
    "1f1b sharded, experts": {"use": "pipeline", "schedule": "1f1b", "pp": 2, "dp": 2, "ep": 2, "zero": 3, "micro_batches": 3},
    "fsdp": {"use": "fsdp", "dp": 4, "micro_batches": 2},
    "fsdp copies": {"use": "fsdp", "dp": 4, "shard": 2, "reshard": False},
    "fsdp experts": {"use": "fsdp", "dp": 4, "ep": 2, "micro_batches": 2},
    "experts alone": {"use": "dualpipe-v", "pp": 1, "dp": 4, "ep": 2, "micro_batches": 3},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_at_once(processes, model, layout):
    """MTP, balance losses, packed documents, recomputed blocks, stages of unequal length."""
    testing.assert_same(processes, testing.Case(model(), LAYOUTS[layout], recompute=True, documents=True, ignored=True))


@pytest.mark.parametrize("layout", ["dualpipe-v", "dualpipe", "1f1b", "dualpipe-v experts", "dualpipe sharded", "fsdp experts"])
@pytest.mark.parametrize("feature", ["plain", "tied", "tied and mtp", "two rows"])
def test_one_feature(processes, model, layout, feature):
    data = model(mtp="mtp" in feature, tied="tied" in feature)
    testing.assert_same(processes, testing.Case(data, LAYOUTS[layout], rows=2 if feature == "two rows" else 1))


@pytest.mark.parametrize("layout", ["dualpipe-v", "zb-v", "dualpipe-v experts"])
@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_fp32(processes, model, layout, attention):
    testing.assert_same(processes, testing.Case(model(attention), LAYOUTS[layout], dtype="float32"))


@pytest.mark.parametrize("layout", ["dualpipe-v", "dualpipe", "zb1p"])
def test_fp8(processes, model, layout):
    """The same codes, so that only the order of fp32 sums of gradients differs."""
    testing.assert_same(processes, testing.Case(model(precision="fp8"), LAYOUTS[layout], dtype=None, recompute=True, rate=0.0))
