"""`bestiary plan --of`: what ranks read of a checkpoint, and which options go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bestiary
from bestiary.cli.app import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "nano"
    bestiary.save(bestiary.create_model("deepseek-v3-nano"), path, max_shard_size="200KB")
    for shard in path.glob("*.safetensors"):
        shard.unlink()  # the index is enough
    return path


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_every_rank_is_a_row(folder: Path) -> None:
    text = run(folder, "--of", 3)
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()][:3] == ["0", "1", "2"]
    assert "3 ranks read" in text and "1 times" in text and "exactly once" in text


def test_json_has_totals_and_figures_of_every_rank(folder: Path) -> None:
    data = json.loads(run(folder, "--of", 4, "--layout", "pp=2", "--json"))
    assert [rank["rank"] for rank in data["ranks"]] == [0, 1, 2, 3]
    assert sum(rank["bytes_read"] for rank in data["ranks"]) == data["bytes_read"] > data["bytes"]
    assert data["ranks"][0] | {"rank": 1} == data["ranks"][1], "dp=2: each stage is held twice"


def test_one_rank_lists_every_tensor_and_its_slice(folder: Path) -> None:
    data = json.loads(run(folder, "--of", 2, "--rank", 1, "--json"))
    reads = {read["from"].partition("[")[0]: read for read in data["reads"]}
    vocabulary, width = bestiary.resolve("deepseek-v3-nano").model.vocab_size, bestiary.resolve("deepseek-v3-nano").model.hidden_size
    head = reads["lm_head.weight"]
    assert head["from"] == f"lm_head.weight[{vocabulary // 2}:{vocabulary}, 0:{width}]"
    assert head["into"] == f"lm_head.weight[0:{vocabulary // 2}, 0:{width}]"
    assert sum(read["bytes"] for read in data["reads"]) == data["bytes_read"] == data["ranks"][0]["bytes_read"]
    assert "lm_head.weight" in run(folder, "--of", 2, "--rank", 1)


def test_changes_of_the_manifest_count(folder: Path) -> None:
    whole, less = (json.loads(run(folder, "--of", 1, "--json", *more))["bytes"] for more in ([], ["--set", "objective.mtp=false"]))
    assert less < whole


def sets(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in ("--set", f"parallelism.{name}={value}")]


def test_a_layout_is_that_of_the_manifest_unless_it_is_said() -> None:
    own = sets(use="dualpipe-v", pp=2, dp=4, ep=2, micro_batches=6)
    found, said = (
        json.loads(run("deepseek-v3-nano", "--gpus", 8, "--json", *options))
        for options in (own, [*own, "--layout", "pp=2,ep=2,zero=0", "--schedule", "dualpipe-v", "--micro-batches", 6])
    )
    assert found == said
    assert found["schedule"] == "dualpipe-v" and found["micro_batches"] == 6 and found["layout"]["dp"] == 4
    other = json.loads(run("deepseek-v3-nano", "--gpus", 8, "--json", *own, "--layout", "pp=4"))
    assert other["layout"]["pp"] == 4 and other["schedule"] == "1f1b"
    shared = json.loads(run("deepseek-v3-nano", "--gpus", 4, "--json", *sets(use="fsdp", dp=2, tp=2)))
    assert shared["layout"] == {"pp": 1, "tp": 2, "dp": 2, "ep": 1, "zero": 3}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpus", 8, *sets(use="dualpipe-v", pp=2)], "pp . tp . dp = 2 . 1 . 1 makes 2 GPUs, and --gpus says 8. Set parallelism.dp=4"),
        (["--gpus", 7, *sets(use="dualpipe-v", pp=2)], "The nearest that fits: --gpus 6"),
        ([], "Say either --gpus N"),
        (["--of", 2, "--gpus", 2], "Say either --gpus N"),
        (["--of", 2, "--schedule", "zb1p", "--gpu", "h100"], "--gpu, --schedule says nothing with --of"),
        (["--gpus", 2, "--rank", 0], "--rank says nothing with --gpus"),
        (["--of", 2, "--rank", 2], "0 to 1"),
        (["--of", 2, "--layout", "ep=3"], "ep=3 does not divide"),
    ],
)
def test_options_that_do_not_go_together(folder: Path, options: list[object], told: str) -> None:
    with pytest.raises(bestiary.BestiaryError, match=told):
        run(folder, *options)
