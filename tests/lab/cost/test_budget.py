"""Whole runs: what DeepSeek published for V3 is the check."""

from __future__ import annotations

import pytest

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.lab.cost.budget import budget
from bestiary.lab.cost.runs import published_runs

V3 = bestiary.resolve("deepseek-v3")


def test_the_published_hours_and_money_add_up():
    run = published_runs()["deepseek-v3"]
    assert run.hours == 2_788_000 and run.hours * run.price == 5_576_000
    done = budget(V3)
    assert [phase.hours for phase in done.published] == [2_664_000, 119_000, 5_000]
    assert sum(phase.money for phase in done.published) == 5_576_000


def test_the_published_hours_imply_the_published_speed_and_an_mfu():
    pretraining, extension, post = budget(V3).published
    assert pretraining.hours / 14.8 == pytest.approx(180_000, rel=1e-12)
    assert pretraining.days / 14.8 == pytest.approx(3.66, abs=0.01)
    assert pretraining.tokens_per_second_per_gpu == pytest.approx(1543, abs=1)
    assert pretraining.mfu.causal_bf16 == pytest.approx(1543.2 * 260.65e9 / 989.4e12, rel=1e-4)
    assert extension.mfu.causal_bf16 < pretraining.mfu.causal_bf16
    assert post.mfu is None


def test_at_the_implied_mfu_the_estimate_is_the_published_figure():
    implied = budget(V3).published[0].mfu.causal_bf16
    first, extension, post = budget(V3, mfu=implied, price=2.0).phases
    assert first.parts[0].hours == pytest.approx(2_664_000)
    assert first.parts[0].money == pytest.approx(5_328_000)
    assert [part.sequence_length for part in extension.parts] == [32768, 131072]
    assert not post.parts


def test_the_mfu_of_later_phases_is_that_of_the_measured_speed():
    done = budget(V3, tokens_per_second_per_gpu=1000.0)
    assert done.phases[0].parts[0].tokens_per_second_per_gpu == pytest.approx(1000)
    assert len({round(part.mfu.causal_bf16, 9) for part in done.parts}) == 1


def test_what_is_not_estimated_is_said():
    done = budget(V3, price=2)
    assert done.left_out == ["post-training"]
    assert done.hours == pytest.approx(sum(part.hours for part in done.parts))


def test_a_changed_model_has_its_own_estimate_beside_the_published_figures():
    swapped = bestiary.resolve("deepseek-v3", set={"block.attention.use": "gqa", "block.attention.head_dim": 128})
    assert budget(swapped).hours > budget(V3).hours
    assert budget(swapped).published == budget(V3).published


def test_a_model_without_a_published_run_has_one_phase_and_needs_tokens():
    nano = bestiary.resolve("deepseek-v3-nano")
    done = budget(nano, tokens=1e9)
    assert [phase.name for phase in done.phases] == ["pre-training"] and done.run is None and done.published == ()
    with pytest.raises(BestiaryError, match="--tokens"):
        budget(nano)


def test_a_budget_as_data_is_plain():
    import json

    data = json.loads(json.dumps(budget(V3, price=2).table()))
    assert data["published"]["money"] == 5_576_000
    assert data["phases"][1]["parts"][1]["sequence_length"] == 131072
