"""Cost: the arithmetic, the conventions of MFU, and input that cannot be meant."""

from __future__ import annotations

import pytest

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.lab.cost.estimate import estimate
from bestiary.lab.cost.gpus import Gpu, find_gpu, gpus
from bestiary.lab.cost.quantity import quantity

V3 = bestiary.resolve("deepseek-v3")


def test_hours_money_and_days_follow_from_flops_and_the_peak():
    gpu = Gpu(name="round", bf16=1e15, memory=1, source="none")
    done = estimate(V3, tokens=1e12, gpu=gpu, mfu=0.5, price=2, gpus=1000)
    assert done.hours == pytest.approx(1e12 * done.flops_per_token / 0.5e15 / 3600)
    assert done.money == pytest.approx(2 * done.hours)
    assert done.days == pytest.approx(done.hours / 24_000)
    assert done.flops == pytest.approx(1e12 * 260.65e9, rel=1e-4)


def test_speed_and_utilisation_say_the_same():
    by_mfu = estimate(V3, tokens=1e12, mfu=0.4)
    by_speed = estimate(V3, tokens=1e12, tokens_per_second_per_gpu=by_mfu.tokens_per_second_per_gpu)
    assert by_speed.hours == pytest.approx(by_mfu.hours)
    assert by_speed.mfu.causal_bf16 == pytest.approx(0.4)


def test_every_convention_of_mfu_is_given_where_the_gpu_has_it():
    h800, a100 = (estimate(V3, tokens=1, gpu=name, mfu=0.4).mfu for name in ("h800", "a100"))
    attention = 30.70 * 62 / 61  # GFLOP a token at 4K, MTP's block with it
    assert h800.noncausal_bf16 / h800.causal_bf16 == pytest.approx((260.65 + attention) / 260.65, rel=1e-4)
    assert h800.causal_fp8 == pytest.approx(0.2, rel=1e-3)
    assert a100.causal_fp8 is None and a100.noncausal_fp8 is None


def test_money_needs_a_price():
    assert estimate(V3, tokens=1e12).money is None


def test_a_longer_sequence_costs_more_for_a_token_and_the_default_is_the_one_of_show():
    assert estimate(V3, tokens=1).sequence_length == 4096
    assert estimate(V3, tokens=1, sequence_length=32768).hours > 1.8 * estimate(V3, tokens=1).hours


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpu": "h80"}, "Did you mean 'h800'"),
        ({"mfu": 0.4, "tokens_per_second_per_gpu": 1000.0}, "one of them"),
        ({"mfu": 2.5}, "at most 2"),
        ({"mfu": 0.0}, "impossible"),
        ({"gpu": "a100", "mfu": 1.2}, "at most 1"),
        ({"tokens_per_second_per_gpu": 1e6}, "tokens/s"),
        ({"price": -1.0}, "price = -1.0"),
        ({"gpus": 0}, "gpus = 0"),
        ({"tokens": 0.0}, "tokens = 0"),
    ],
)
def test_impossible_input_is_refused(wrong, message):
    with pytest.raises(BestiaryError, match=message):
        estimate(V3, **({"tokens": 1e12} | wrong))


def test_gpus_are_found_in_any_case_and_say_where_their_figures_are_from():
    assert find_gpu("H100") is find_gpu("h100")
    assert all(gpu.source and (gpu.fp8 is None or 1.9 < gpu.fp8 / gpu.bf16 < 2.1) for gpu in gpus().values())


@pytest.mark.parametrize(
    ("text", "value"), [("14.8T", 14.8e12), ("63B", 63e9), ("1e6", 1e6), ("500_000", 5e5), (" 2.5m ", 2.5e6), ("7K", 7e3)]
)
def test_large_numbers_are_read_as_people_write_them(text, value):
    assert quantity(text, of="--tokens") == value


@pytest.mark.parametrize("text", ["", "T", "many", "-3B", "0", "nan", "inf", "3TB"])
def test_what_is_no_positive_number_is_refused(text):
    with pytest.raises(BestiaryError, match="--tokens"):
        quantity(text, of="--tokens")
