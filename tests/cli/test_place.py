"""`bestiary place`: from the load of a run to where its experts should lie."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import bestiary
from bestiary.cli.app import app
from bestiary.core.distributed.placement import place_experts
from bestiary.core.errors import BestiaryError
from bestiary.lab.training.metrics import Line, Log

MOE = {"n_routed_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 9, "router": {"use": "sigmoid-group", "n_group": 2}}
LOAD = [0.5, 0.1, 0.3, 0.1]


@pytest.fixture
def finished(tmp_path, tiny):
    """The folder of a run whose last evaluation found `LOAD`."""
    manifest = bestiary.resolve(tiny("gqa", {"use": "moe", **MOE}, objective={"mtp": {"use": "mtp"}, "next-token": {"use": "next-token"}}))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest.table()))
    log = Log(tmp_path)
    for load in ([0.25] * 4, LOAD):
        log.write(Line("eval", 0, 0, 0.0, 0.0, expert_load={"0": load, "1": load, "2": load}))
    log.close()
    return tmp_path


def run(*arguments: object):
    done = CliRunner().invoke(app, ["place", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_the_last_load_is_placed_layer_by_layer_with_mtp(finished):
    found = json.loads(run(finished, "--ranks", 2, "--redundant", 2, "--json"))
    assert [row["layer"] for row in found] == [0, 1, 2]
    placement = place_experts(LOAD, ranks=2, slots=6)
    assert found[0]["ranks"] == [list(held) for held in placement.by_rank]
    assert found[0]["balancedness"] == pytest.approx({"in_order": 0.5 / 0.6, "placed": placement.balancedness(LOAD)})


def test_groups_stay_on_a_node_and_the_table_says_what_was_gained(finished):
    told = run(finished, "--ranks", 4, "--nodes", 2, "--redundant", 4)
    assert "83.3%" not in told
    assert "50.0%" in told
    assert {expert // 2 for held in json.loads(run(finished, "--ranks", 4, "--nodes", 2, "--json"))[0]["ranks"][:2] for expert in held} == {
        0
    }


def test_experts_that_do_not_divide_in_order_are_placed_with_copies(finished):
    row = json.loads(run(finished, "--ranks", 3, "--redundant", 2, "--json"))[0]
    assert row["balancedness"]["in_order"] is None
    assert len(row["ranks"]) == 3
    assert "none" in run(finished, "--ranks", 3, "--redundant", 2)


def test_what_cannot_be_placed_is_refused(tmp_path, finished):
    with pytest.raises(BestiaryError, match="4 slots do not divide among 3 ranks"):
        run(finished, "--ranks", 3)
    with pytest.raises(BestiaryError, match="holds no run"):
        run(tmp_path / "none", "--ranks", 2)
    Log(finished).close()
    with pytest.raises(BestiaryError, match="no evaluation of this run"):
        run(finished, "--ranks", 2)
