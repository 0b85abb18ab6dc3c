"""The parts of all ranks make the whole, and each rank reads only its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.core.layout import Layout, parse_layout
from bestiary.core.table import own_entries
from bestiary.registry.checkpoint import open_checkpoint
from bestiary.registry.coverage import uncovered
from bestiary.registry.load_rank import load_rank, plan_ranks
from bestiary.registry.plan import make_plan
from tests.registry.conftest import LLAMA, V3, fresh
from tests.registry.test_fp8 import quantised

LAYOUTS = ["", "zero=3", "pp=3", "ep=2", "ep=6", "tp=3", "pp=2,ep=3", "pp=2,ep=3,zero=3", "tp=3,ep=6,zero=3", "pp=3,tp=3,ep=3"]
OF = {"": 5, "zero=3": 4, "pp=3": 3, "ep=2": 4, "ep=6": 6, "tp=3": 3, "pp=2,ep=3": 6, "pp=2,ep=3,zero=3": 12, "tp=3,ep=6,zero=3": 6}
WIDE = V3 | {
    "model": V3["model"] | {"hidden_size": 48, "vocab_size": 54},
    "block": V3["block"] | {"at": {"0": {"ffn": {"use": "dense", "intermediate_size": 39}}}},
}
"""Divisible by three heads, with blocks that are ragged everywhere."""


def joined(folder: Path, of: int, layout: str, **options) -> dict[str, torch.Tensor]:
    """The parameters from the parts of all ranks; parts that several hold must be equal."""
    whole = {name: torch.full(entry.weight.shape, float("nan")) for name, entry in own_entries(bestiary.resolve(str(folder))).items()}
    for rank in range(of):
        part = load_rank(folder, rank=rank, of=of, layout=layout, **options)
        assert part.tensors.keys() == part.regions.keys()
        for name, tensor in part.tensors.items():
            place = whole[name][part.regions[name]]
            known = ~place.isnan()
            assert torch.equal(place[known], tensor.float()[known])
            whole[name][part.regions[name]] = tensor.float()
    return whole


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stored", ["bf16", "fp8"])
def test_parts_of_all_ranks_are_the_whole(tmp_path: Path, layout: str, stored: str) -> None:
    folder = tmp_path / "model"
    if stored == "bf16":
        bestiary.save(fresh(WIDE), folder, dtype=torch.bfloat16)
    else:
        quantised(folder, WIDE, (7, 5))
    expected = bestiary.load(folder).state_dict()
    found = joined(folder, OF.get(layout, 9), layout)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.float()), name


def test_tied_embedding_is_on_the_first_and_the_last_stage(tmp_path: Path) -> None:
    bestiary.save(fresh(LLAMA | {"model": LLAMA["model"] | {"tie_word_embeddings": True}}), tmp_path / "tied")
    parts = [load_rank(tmp_path / "tied", rank=rank, of=2, layout="pp=2").tensors for rank in range(2)]
    assert all("model.embed_tokens.weight" in part for part in parts)
    assert "model.norm.weight" not in parts[0] and "model.layers.0.input_layernorm.weight" not in parts[1]


def test_rank_needs_only_its_own_shards(sharded: Path) -> None:
    whole = load_rank(sharded, rank=1, of=3, layout="pp=3")
    table = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in table.items() if name.startswith("model.layers.1.")}
    removed = [path.unlink() for path in sharded.glob("*.safetensors") if path.name not in needed]
    assert removed
    part = load_rank(sharded, rank=1, of=3, layout="pp=3")
    assert all(torch.equal(part.tensors[name], tensor) for name, tensor in whole.tensors.items())
    with pytest.raises(BestiaryError, match=r"is missing|not there"):
        for other in (0, 2):
            load_rank(sharded, rank=other, of=3, layout="pp=3")


def test_bytes_read_are_those_of_the_regions(checkpoint: Path) -> None:
    manifest = bestiary.resolve(str(checkpoint))
    plan = make_plan(manifest, open_checkpoint(checkpoint))
    for rank in plan_ranks(manifest, plan, Layout(dp=4, zero=3), range(4)):
        assert rank.nbytes == rank.held, "fp32 stored and held"
        assert not uncovered(rank.reads, rank.regions)


@pytest.mark.parametrize(
    ("layout", "of", "told"),
    [
        ("tp=2", 2, "tp=2 does not divide model.layers.0.self_attn.q_b_proj.weight .* there are 3, nor 14 others"),
        ("pp=4", 4, "the model has 3 layers"),
        ("ep=4", 6, "ep=4 does not divide"),
    ],
)
def test_layouts_that_do_not_fit(checkpoint: Path, layout: str, of: int, told: str) -> None:
    with pytest.raises(BestiaryError, match=told):
        load_rank(checkpoint, rank=0, of=of, layout=layout)
    with pytest.raises(BestiaryError, match="the ranks of --of 2 are 0 to 1"):
        load_rank(checkpoint, rank=2, of=2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_holes_and_overlaps_are_found(checkpoint: Path, data: st.DataObject) -> None:
    manifest = bestiary.resolve(str(checkpoint))
    of = data.draw(st.integers(1, 7))
    plan = make_plan(manifest, open_checkpoint(checkpoint))
    (rank,) = plan_ranks(manifest, plan, parse_layout("zero=3", of), [data.draw(st.integers(0, of - 1))])
    reads = list(rank.reads)
    assert not uncovered(reads, rank.regions)
    victim = data.draw(st.integers(0, len(reads) - 1))
    assert uncovered(reads[:victim] + reads[victim + 1 :], rank.regions)
    assert uncovered([*reads, reads[victim]], rank.regions)
    other = data.draw(st.integers(0, len(reads) - 1))
    if other != victim and reads[other].target == reads[victim].target and reads[other].source.shape == reads[victim].source.shape:
        assert uncovered([r if i != victim else reads[other] for i, r in enumerate(reads)], rank.regions)
