"""Going on exactly where a run was cut off: killed, interrupted, out of disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary import BestiaryError
from bestiary.lab.recipe import load_recipe
from bestiary.lab.training.checkpoint import Checkpoints
from bestiary.lab.training.options import CheckpointOptions
from bestiary.lab.training.result import METRICS, read_run
from bestiary.lab.training.train import train

LONG = ("train.steps=60", "checkpoint.every=7", "log.eval_every=10", "train.ema=0.9", "schedule.decay=0.5")
TIMED = ("seconds", "tokens_per_second", "mfu", "mfu_noncausal", "memory")


def lines(result) -> list[dict]:
    """Everything that was logged, but for time and memory."""
    return [{key: value for key, value in vars(line).items() if key not in TIMED} for line in result.lines()]


def run(lab: Path, *changes: str, out: str = "out", **options):
    return train(load_recipe(lab / "recipe.toml", set=changes), out=lab / out, progress=False, **options)


def start(lab: Path, *changes: str, out: str = "out", limit: str = "") -> subprocess.Popen:
    """The same run in a process of its own; `limit` is a line of code that runs first."""
    code = (
        f"{limit}\nfrom bestiary.lab.recipe import load_recipe\nfrom bestiary.lab.training.train import train\n"
        f"train(load_recipe({str(lab / 'recipe.toml')!r}, set={list(changes)!r}), out={str(lab / out)!r}, progress=False)"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.005)


def kill_after(lab: Path, step: int, *changes: str) -> None:
    """`kill -9` as soon as that step is logged."""
    child, metrics = start(lab, *changes), lab / "out" / METRICS
    wait_for(lambda: metrics.exists() and f'"step": {step},' in metrics.read_text(), child)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("optimizer", [(), ("optimizer.moments=bfloat16", "optimizer.muon.lr=0.01")], ids=["adamw", "muon-bf16"])
def test_a_run_that_is_killed_twice_ends_with_the_losses_of_one_that_was_not(lab: Path, optimizer):
    whole = run(lab, *LONG, *optimizer, out="whole")
    kill_after(lab, 17, *LONG, *optimizer)
    kill_after(lab, 38, *LONG, *optimizer)
    resumed = run(lab, *LONG, *optimizer)
    assert lines(resumed) == lines(whole)
    assert resumed.summary.digest == whole.summary.digest and resumed.summary.status == "finished"
    assert resumed.summary.bits_per_byte_average == whole.summary.bits_per_byte_average is not None
    one, two = bestiary.load(whole.model), bestiary.load(resumed.model)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_at_most_the_steps_since_the_last_checkpoint_are_taken_again(lab: Path):
    kill_after(lab, 30, *LONG, "checkpoint.asynchronous=false")
    before = (lab / "out" / METRICS).read_text().count("\n")
    found = Checkpoints(lab / "out", CheckpointOptions()).complete()[-1]
    assert found.step == 28 and before >= 30
    assert found.record["bits_per_byte"] is None, "step 28 was not evaluated"


def test_ctrl_c_and_the_same_command_again(lab: Path):
    whole, child, metrics = run(lab, *LONG, out="whole"), start(lab, *LONG), lab / "out" / METRICS
    wait_for(lambda: metrics.exists() and '"step": 12,' in metrics.read_text(), child)
    child.send_signal(signal.SIGINT)
    assert child.wait(120) == 0
    stopped = read_run(lab / "out")
    assert stopped is not None and stopped.summary.status == "interrupted" and stopped.summary.steps < 60
    resumed = run(lab, *LONG)
    train_lines = [[line for line in lines(result) if line["kind"] == "train"] for result in (resumed, whole)]
    assert train_lines[0] == train_lines[1]


def test_only_the_last_and_the_best_are_kept(lab: Path):
    result = run(lab, "train.steps=20", "checkpoint.every=2", "checkpoint.keep_last=2", "log.eval_every=4", "checkpoint.keep_best=true")
    kept = Checkpoints(result.folder, CheckpointOptions()).complete()
    held_out = {line.step: line.bits_per_byte for line in result.lines() if line.kind == "eval" and line.step}
    assert [one.step for one in kept] == sorted({18, 20, min(held_out, key=held_out.__getitem__)})
    assert not [path for path in (result.folder / "checkpoints").iterdir() if path.name.startswith(".")]


def test_the_best_stays_when_later_ones_are_worse(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, CheckpointOptions(keep_last=1, keep_best=True))
    for step, held_out in ((1, 3.0), (2, 2.0), (3, None), (4, 2.5)):
        checkpoints.save({"x": torch.full((3,), float(step))}, {"step": step, "bits_per_byte": held_out})
    checkpoints.finish()
    assert [one.step for one in checkpoints.complete()] == [2, 4]
    tensors = {"x": torch.zeros(3)}
    checkpoints.complete()[0].read(tensors)
    assert tensors["x"].tolist() == [2.0] * 3


def test_what_is_saved_is_the_state_at_that_moment_although_training_goes_on(tmp_path: Path):
    checkpoints, x = Checkpoints(tmp_path, CheckpointOptions()), torch.zeros(1 << 22)
    checkpoints.save({"x": x}, {"step": 1, "bits_per_byte": None})
    x += 1
    checkpoints.finish()
    back = {"x": torch.ones(1 << 22)}
    checkpoints.complete()[0].read(back)
    assert not back["x"].any()


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_intact(lab: Path):
    run(lab, *LONG, "train.steps=60", out="whole")
    size = max(path.stat().st_size for path in (lab / "whole" / "checkpoints").rglob("*.distcp"))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))"
    kill_after(lab, 10, *LONG, "checkpoint.asynchronous=false")
    child = start(lab, *LONG, limit=limit)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "a checkpoint could not be written" in errors and "File too large" in errors, errors
    assert "The checkpoint of step 7 is intact" in errors
    assert [one.step for one in Checkpoints(lab / "out", CheckpointOptions()).complete()] == [7]
    assert lines(run(lab, *LONG)) == lines(read_run(lab / "whole")), "and goes on when there is room again"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_too_little_room_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 100}))
    checkpoints = Checkpoints(tmp_path, CheckpointOptions())
    with pytest.raises(BestiaryError, match=r"it needs 4.10 kB and the disk has 100 B left. There is no earlier one"):
        checkpoints.save({"x": torch.zeros(1024)}, {"step": 1, "bits_per_byte": None})
    assert checkpoints.complete() == [] and not list((tmp_path / "checkpoints").iterdir())


def test_another_recipe_does_not_go_on_from_these_checkpoints(lab: Path):
    kill_after(lab, 15, *LONG)
    with pytest.raises(BestiaryError, match="unfinished run of another recipe, model or data"):
        run(lab, *LONG, "optimizer.lr=0.1")
    changed = run(lab, *LONG, "optimizer.lr=0.1", overwrite=True)
    assert changed.lines()[1].lr != run(lab, *LONG, out="whole").lines()[1].lr and changed.summary.steps == 60


def test_a_damaged_checkpoint_is_named(lab: Path):
    kill_after(lab, 15, *LONG, "checkpoint.asynchronous=false")
    for path in (lab / "out" / "checkpoints").rglob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BestiaryError, match="step-00000014: this checkpoint cannot be read"):
        run(lab, *LONG)
