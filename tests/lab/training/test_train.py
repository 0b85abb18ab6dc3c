"""Training: it learns, it repeats itself exactly, it stops cleanly."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary import BestiaryError
from bestiary.core.accounting import account
from bestiary.lab.recipe import load_recipe
from bestiary.lab.training.result import read_run
from bestiary.lab.training.train import train
from bestiary.lab.training.trainer import Diverged


def run(lab: Path, *changes: str, out: str = "out", **options):
    return train(load_recipe(lab / "recipe.toml", set=changes), out=lab / out, progress=False, **options)


def losses(result) -> list[float]:
    return [line.loss for line in result.lines() if line.kind == "train"]


def test_a_run_learns_and_leaves_everything_that_repeats_it(lab: Path):
    result = run(lab, "train.steps=40", "log.eval_every=0.25")
    lines, summary = result.lines(), result.summary
    held_out = [line.bits_per_byte for line in lines if line.kind == "eval"]
    assert [line.step for line in lines if line.kind == "eval"] == [0, 10, 20, 30, 40]
    assert held_out[0] == pytest.approx(math.log2(264), rel=0.05), "an untrained model knows nothing"
    assert held_out[-1] < 0.7 * held_out[0]
    assert summary.status == "finished" and summary.bits_per_byte == held_out[-1]
    assert summary.tokens == 40 * 4 * 32
    cost = account(load_recipe(lab / "recipe.toml").manifest(), sequence_length=32)
    assert summary.flops == summary.tokens * cost.flops_training
    assert summary.active_parameters == cost.active_parameters
    again = train(result.folder / "recipe.json", out=lab / "again", progress=False)
    assert losses(again) == losses(result)
    assert again.summary.digest == summary.digest


def test_a_run_in_fp8_says_what_multiplies(lab: Path, capsys: pytest.CaptureFixture[str]):
    recipe = load_recipe(lab / "recipe.toml", set=["train.steps=1", "set.precision.use=fp8", "optimizer.moments=bfloat16"])
    train(recipe, out=lab / "out", progress=True)
    said = "precision fp8 here: backend emulation, reason auto: no other backend was measured to be faster on"
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_saved_model_is_the_trained_one(lab: Path):
    result = run(lab, "train.steps=5")
    model = bestiary.load(result.model)
    assert model.manifest.digest == result.summary.manifest_digest
    assert (result.model / "tokenizer.json").is_file()
    fresh = bestiary.create_model(model.manifest)
    assert (model.model.embed_tokens.weight != fresh.model.embed_tokens.weight).any()
    assert json.loads((result.folder / "manifest.json").read_text())["model"]["hidden_size"] == 32


def test_equal_seeds_give_equal_losses_to_the_bit_and_others_do_not(lab: Path):
    one, two, other = run(lab, out="1"), run(lab, out="2"), run(lab, "train.seed=1", out="3")
    assert losses(one) == losses(two)
    assert losses(one) != losses(other)


def test_every_line_carries_its_figures(lab: Path):
    line = next(line for line in run(lab, "train.steps=2").lines() if line.kind == "train")
    assert set(line.parts) == {"next-token", "mtp-1", "balance"}
    assert line.bits_per_byte == pytest.approx(line.parts["next-token"] / math.log(2), rel=0.01)
    assert line.loss == pytest.approx(line.parts["next-token"] + 0.3 * line.parts["mtp-1"] + line.parts["balance"], rel=1e-5)
    assert set(line.max_vio) == {"1", "2"}, "the layer of experts, and the block that MTP adds"
    assert min(line.max_vio.values()) >= 0 and line.mfu and line.mfu_noncausal and line.mfu_noncausal > line.mfu and line.memory
    assert line.grad_norm and line.lr and line.tokens_per_second and line.flops


def test_masked_documents_train(lab: Path):
    assert run(lab, "data.mask_documents=true", "train.steps=3").summary.bits_per_byte


def test_a_diverging_run_stops_names_its_step_and_keeps_what_was_logged(lab: Path):
    with pytest.raises(Diverged, match=r"Step \d+ of 12: the (loss is|norm of the gradients is) (nan|inf)"):
        run(lab, "optimizer.lr=1e30")
    result = read_run(lab / "out")
    assert result is not None and result.summary.status == "diverged" and result.summary.bits_per_byte is None
    assert len([line for line in result.lines() if line.kind == "train"]) == result.summary.steps > 0
    assert not result.model.exists()


def test_a_run_is_replaced_only_when_asked(lab: Path):
    run(lab, "train.steps=1")
    with pytest.raises(BestiaryError, match="holds a run already"):
        run(lab, "train.steps=1")
    assert run(lab, "train.steps=2", overwrite=True).summary.steps == 2
    (lab / "other").mkdir()
    (lab / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(BestiaryError, match="no run"):
        run(lab, out="other", overwrite=True)


def test_nothing_is_written_when_data_and_model_do_not_fit(lab: Path):
    with pytest.raises(BestiaryError, match="no device 'abacus'"):
        run(lab, "train.device=abacus")
    with pytest.raises(BestiaryError, match="exceed the model's"):
        run(lab, "data.sequence_length=5000")
    with pytest.raises(BestiaryError, match="need the objective 'next-token'"):
        run(lab, "objective.next-token=false")
    assert not (lab / "out").exists()


def test_ctrl_c_finishes_the_step_and_saves_a_model_that_loads(lab: Path, change):
    change("steps = 12", "steps = 100000")
    recipe = change("eval_every = 4", "eval_every = 0")
    code = f"from bestiary.lab.training.train import train; train({str(recipe)!r}, out={str(lab / 'out')!r}, progress=False)"
    child = subprocess.Popen([sys.executable, "-P", "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    metrics, deadline = lab / "out" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors.decode()
    result = read_run(lab / "out")
    assert result is not None and result.summary.status == "interrupted"
    assert 0 < result.summary.steps < 100000
    assert result.lines()[-1].kind == "eval" and result.lines()[-1].bits_per_byte == result.summary.bits_per_byte
    logits = bestiary.load(result.model)(torch.zeros(1, 4, dtype=torch.int64))
    assert logits.isfinite().all()
