"""Checkpoints of tensor-parallel ranks hold the whole model: one process reads what they wrote, and they what one process wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bestiary
from bestiary import testing
from bestiary.core.errors import BestiaryError
from bestiary.lab.training.checkpoint import Checkpoint
from bestiary.lab.training.optimizer import Optimizers
from bestiary.lab.training.options import MuonOptions, OptimizerOptions
from bestiary.lab.training.trainer import State

LAYOUTS = {
    "sharded": {"use": "pipeline", "pp": 1, "dp": 2, "tp": 2, "zero": 3, "micro_batches": 1},
    "fsdp copies and experts": {"use": "fsdp", "dp": 2, "shard": 1, "tp": 2, "ep": 2},
    "pipeline": {"use": "dualpipe-v", "pp": 2, "tp": 2, "micro_batches": 4},
}
ALONE = {"use": "local"}


@pytest.fixture(scope="module")
def processes():
    with testing.Processes(4, timeout=30) as pool:
        yield pool


@pytest.fixture
def data(tiny):
    """A manifest whose heads and widths two divides, and hardly anything else."""
    made = tiny("gqa", layers=3, model={"num_attention_heads": 4})
    made["block"]["attention"] = {"use": "gqa", "num_key_value_heads": 2, "head_dim": 6, "qkv_bias": True, "o_bias": True}
    made["block"]["ffn"] = made["block"]["ffn"] | {"intermediate_size": 10}
    return made | {"objective": {"next-token": {"use": "next-token"}, "mtp": {"use": "mtp"}}}


def state_of(data, parallelism, seed):
    """A model of a seed, and moments that are its parameters."""
    model = bestiary.create_model({**data, "parallelism": parallelism}, dtype=torch.float64, seed=seed)
    state = State(model, Optimizers(model, OptimizerOptions(lr=0.1)))
    state.optimizers.allocate()
    parameters = dict(model.named_parameters())
    for name, moments in state.optimizers.state().items():
        moments["exp_avg"].copy_(parameters[name].detach())
    return state


def write(data, parallelism, seed, folder):
    Checkpoint(Path(folder), {}).write(state_of(data, parallelism, seed).tensors())


def read(data, parallelism, folder):
    """Whole tensors of what was read."""
    state = state_of(data, parallelism, seed=9)
    tensors = state.tensors()
    Checkpoint(Path(folder), {}).read(tensors)
    tables = {"model": tensors["model"]} | {name: one for name, one in tensors["optimizer"].items()}
    return {(kind, name): _whole(tensor) for kind, table in tables.items() for name, tensor in table.items()}


def _whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_tensor_ranks_wrote_is_the_model_and_the_other_way_round(processes, data, tmp_path, layout):
    processes.run(write, data, LAYOUTS[layout], 3, tmp_path / "spread")
    write(data, ALONE, 3, tmp_path / "alone")
    wanted = read(data, ALONE, tmp_path / "alone")
    assert _same(read(data, ALONE, tmp_path / "spread"), wanted) == len(wanted)
    parts = processes.run(read, data, LAYOUTS[layout], tmp_path / "alone")
    assert all(_same(found, wanted) for found in parts)
    assert set().union(*parts) == set(wanted)


def _same(found, wanted):
    """How many tensors were compared."""
    for key, tensor in found.items():
        assert torch.equal(tensor, wanted[key]), key
    return len(found)


def _muon(data):
    model = bestiary.create_model({**data, "parallelism": {"use": "fsdp", "dp": 1, "tp": 2}})
    try:
        Optimizers(model, OptimizerOptions(lr=0.1, muon=MuonOptions(lr=0.1)))
    except BestiaryError as error:
        return str(error)
    return ""


def test_muon_is_refused(processes, data):
    for told in processes.run(_muon, data, world=2):
        assert "optimizer.muon: muon needs whole matrices, and tensor-parallel ranks share some, such as model.layers.0.self_attn." in told
