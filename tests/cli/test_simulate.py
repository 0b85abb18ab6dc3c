"""`bestiary simulate`: figures, charts, comparisons."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from bestiary.cli.app import app
from bestiary.core.errors import BestiaryError


def run(*arguments: str):
    done = CliRunner().invoke(app, ["simulate", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_all_schedules_of_one_model_are_compared():
    rows = {row["schedule"]: row for row in json.loads(run("--ranks", "8", "--microbatches", "24", "--overlap", "1", "--json").stdout)}
    assert {name: max(row["wall_idle"]) for name, row in rows.items()} == {
        "1f1b": 42,
        "interleaved": 21,
        "interleaved-overlap": 21,
        "zb1p": 14,
        "zb-v": 7,
        "dualpipe-v": 14,
        "dualpipe": 12,
    }
    assert max(rows["dualpipe-v"]["in_flight"]) == 8.5
    assert rows["dualpipe"]["copies"] == 2


def test_what_does_not_fit_is_left_out_with_the_reason():
    said = run("--ranks", "5", "--microbatches", "11").stdout
    assert "dualpipe needs an even number of pipeline ranks" in " ".join(said.split())
    assert "dualpipe-v is faster than zb-v where a pair takes less than" in " ".join(said.split())


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_chart_has_every_pass(tmp_path, kind):
    path = tmp_path / f"chart.{kind}"
    run("dualpipe-v", "--ranks", "4", "--microbatches", "10", "--out", str(path))
    if kind == "png":
        assert path.read_bytes().startswith(b"\x89PNG")
        return
    texts = [node.text for node in ElementTree.parse(path).iter() if node.tag.endswith("text")]
    assert "rank 3" in texts and "weight gradients" in texts
    numbers = [text for text in texts if text in {str(n) for n in range(10)}]
    assert len(numbers) >= 8 * 10 * 2, "forward and backward pass of ten micro-batches in eight stages"


def test_times_come_from_a_model():
    (row,) = json.loads(run("zb-v", "--ranks", "16", "--microbatches", "32", "--model", "deepseek-v3", "--json").stdout)
    assert row["stages"] == 32
    assert 5e3 < row["makespan"] < 2e4, "milliseconds of 32 sequences of 4,096 tokens at 0.35 of an H800 on sixteen of them"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dualpip"], "Did you mean 'dualpipe'"),
        (["--out", "x.svg"], "A chart is of one schedule"),
        (["zb-v", "--out", "x.pdf"], "pictures are .svg or .png"),
        (["dualpipe", "--ranks", "3"], "even number of pipeline ranks"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(BestiaryError, match=message):
        run(*arguments)
