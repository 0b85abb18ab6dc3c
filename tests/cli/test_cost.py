"""`bestiary cost` and `bestiary plan` as their users meet them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def bestiary(*arguments):
    code = (
        "import sys; sys.argv = ['bestiary', *sys.argv[1:]]\n"
        "from bestiary.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    import os

    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment)
    assert "AssertionError" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_cost_shows_the_estimate_beside_the_published_figures():
    code, out, err = bestiary("cost", "deepseek-v3", "--tokens", "14.8T", "--gpu", "h800", "--price", "2")
    assert code == 0, err
    for expected in ("260.65", "2,788,000", "$5.576M", "1,543", "post-training"):
        assert expected in out


def test_cost_as_json_holds_hours_money_and_days_of_every_phase():
    _, out, _ = bestiary("cost", "deepseek-v3", "--price", "2", "--json")
    data = json.loads(out)
    assert [phase["name"] for phase in data["phases"]] == ["pre-training", "context extension", "post-training"]
    assert {"hours", "money", "days", "flops", "mfu"} <= set(data["phases"][0]["parts"][0])
    assert data["published"]["hours"] == 2_788_000


def test_plan_names_the_worst_rank_and_says_whether_it_fits():
    code, out, err = bestiary("plan", "deepseek-v3", "--gpus", 2048, "--layout", "pp=16,ep=64,zero=1", "--schedule", "dualpipe")
    assert code == 0, err
    assert "fits: the most is" in out and "of 80.0 GB, on pipeline rank 0" in out
    _, out, _ = bestiary("plan", "deepseek-v3", "--gpus", 8)
    assert "does not fit" in out


def test_plan_as_json_has_every_rank():
    _, out, _ = bestiary("plan", "deepseek-v3", "--gpus", 2048, "--layout", "pp=16,ep=64", "--moments", "bf16", "--json")
    data = json.loads(out)
    assert len(data["ranks"]) == 16 and data["fits"]
    assert data["ranks"][0]["memory"]["total"] == sum(v for k, v in data["ranks"][0]["memory"].items() if k != "total")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cost", "kimi-k2"], "--tokens"),
        (["cost", "deepseek-v3", "--tokens", "lots"], "--tokens lots"),
        (["plan", "deepseek-v3", "--gpus", "2048", "--layout", "pp=15"], "pp=16"),
    ],
)
def test_bad_input_is_one_message(arguments, expected):
    code, _, err = bestiary(*arguments)
    assert code == 1 and expected in err and "Traceback" not in err
