"""The whole 671B model on 2,048 ranks of a process group that is none, on meta."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.core.layout import Layout
from bestiary.lab.cost.memory import plan
from bestiary.plugins.dualpipe.predict import predict

LAYOUT = {"use": "dualpipe", "pp": 16, "dp": 128, "ep": 64, "micro_batches": 120}


@pytest.fixture
def world():
    """`world(rank)`: this process as one of 2,048."""

    def join(rank: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2048)

    yield join
    dist.destroy_process_group()


@pytest.mark.parametrize("pipeline", [0, 5, 15])
def test_every_rank_holds_what_the_plan_counts(world, pipeline):
    world(pipeline * 128 + 77)
    model = bestiary.create_model("deepseek-v3", set={f"parallelism.{name}": value for name, value in LAYOUT.items()}, device="meta")
    planned = plan(model.manifest, gpus=2048, layout="pp=16,ep=64,zero=1", schedule="dualpipe").ranks[pipeline]
    held = sum(tensor.numel() for tensor in model.state_dict().values())
    assert held == planned.parameters
    assert all(layer.weight.shape[0] == 4 for name, layer in model.named_modules() if name.endswith(".experts.down_proj"))


@pytest.mark.parametrize("pipeline", [0, 15])
def test_tensor_ranks_hold_what_the_plan_counts(world, pipeline):
    world(pipeline * 128 + 77)
    layout = LAYOUT | {"use": "dualpipe-v", "dp": 32, "tp": 4}
    model = bestiary.create_model("deepseek-v3", set={f"parallelism.{name}": value for name, value in layout.items()}, device="meta")
    planned = plan(model.manifest, gpus=2048, layout="pp=16,tp=4,ep=64,zero=1", schedule="dualpipe-v").ranks[pipeline]
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == planned.parameters
    attention = next(layer.self_attn for layer in model.model.layers if hasattr(layer, "self_attn"))
    assert attention.heads == 32 and attention.o_proj.weight.shape == (7168, 32 * 128)


def test_a_step_of_the_published_size_is_predicted():
    """62.9M tokens a step, as the technical report says; all numbers follow from FLOPs, the rate and the schedule."""
    manifest = bestiary.resolve("deepseek-v3")
    layout = Layout(pp=16, dp=128, ep=64)
    common = {"layout": layout, "micro_batches": 120, "length": 4096, "rate": 0.5 * 989e12}
    overlapped, one_by_one = (predict(manifest, schedule="dualpipe", overlap=share, **common) for share in (0.8, 1.0))
    assert overlapped.tokens == 15360 * 4096
    assert overlapped.seconds < one_by_one.seconds
    least = one_by_one.flops / 2048 / (0.5 * 989e12)
    assert least < one_by_one.seconds < 1.5 * least
    assert one_by_one.seconds * (1 - one_by_one.bubble) == pytest.approx(least, rel=1e-6)
    assert one_by_one.hours_per_trillion == pytest.approx(1e12 / one_by_one.tokens * one_by_one.seconds * 2048 / 3600)


def test_communication_follows_from_the_layout():
    manifest = bestiary.resolve("deepseek-v3")
    one = predict(manifest, layout=Layout(pp=16, dp=128, ep=1), schedule="1f1b", micro_batches=32, length=4096, rate=1e14)
    assert one.expert_bytes == 0
    two = predict(manifest, layout=Layout(pp=16, dp=128, ep=2), schedule="1f1b", micro_batches=32, length=4096, rate=1e14)
    row = 4 * 2 * 7168
    assert two.expert_bytes == pytest.approx(row * two.reach * 0.5 * 4096 * 32 * 4), "four ways, bf16, half of them elsewhere, four layers"
    assert 1.9 < two.reach < 2
    own = predict(manifest, layout=Layout(pp=16, dp=128, ep=64), schedule="1f1b", micro_batches=32, length=4096, rate=1e14)
    assert own.nodes < 4 < own.reach < 8, "node-limited routing"
    codes = bestiary.resolve("deepseek-v3", set={"precision.use": "fp8", "precision.dispatched_gradients": "fp8"})
    fewer = predict(codes, layout=Layout(pp=16, dp=128, ep=64), schedule="1f1b", micro_batches=32, length=4096, rate=1e14)
    assert fewer.expert_bytes / own.expert_bytes == pytest.approx((2 * 2 + 2 * (1 + 4 / 128)) / 8)
    assert two.stage_bytes == 2 * 2 * 7168 * 4096 * 32
    assert one.tensor_bytes == two.tensor_bytes == 0
    cut = predict(manifest, layout=Layout(pp=16, tp=4, dp=32, ep=2), schedule="1f1b", micro_batches=32, length=4096, rate=1e14)
    assert cut.expert_bytes == two.expert_bytes / 4, "each tensor rank sends a part of the rows that they all have"
    assert cut.tensor_bytes == 4 * 2 * 7168 * 4 * 2 * 3 / 4 * 4096 * 32, "four sums, bf16, four layers, three quarters out and back"
    assert cut.flops == two.flops / 4, "as many tokens on each of a quarter of the data ranks"
    assert two.seconds / 4 < cut.seconds < two.seconds, "latents and heads are computed on every tensor rank"
    with pytest.raises(BestiaryError, match="needs 32 micro-batches at least"):
        predict(manifest, layout=Layout(pp=16, dp=128), schedule="dualpipe", micro_batches=8, length=4096, rate=1e14)
