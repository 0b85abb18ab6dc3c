"""`bestiary train --nproc`: real processes on real text, killed, restarted, and gone on with in other numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[3]
RECIPE = ROOT / "examples" / "recipes" / "nano.toml"
SHORT = ["train.steps=6", "train.batch_size=8", "log.eval_every=3", "checkpoint.every=2", "set.precision.use=fp32"]
SHORT += ["data.sequence_length=64", "data.eval_tokens=2048", "train.peak_flops=1e11"]
FOUR = [f"set.parallelism.{row}" for row in ("use=dualpipe-v", "pp=2", "dp=2", "ep=2", "micro_batches=4")]
TWO = [f"set.parallelism.{row}" for row in ("use=fsdp", "dp=2", "ep=2", "micro_batches=4")]
TENSOR = [f"set.parallelism.{row}" for row in ("use=dualpipe-v", "pp=2", "tp=2", "ep=2", "micro_batches=8")]
ONE = ["set.parallelism.micro_batches=8"]


def command(out: Path, changes: list[str], *options: str) -> list[str]:
    sets = [word for change in [*SHORT, *changes] for word in ("--set", change)]
    return [sys.executable, "-m", "bestiary", "train", str(RECIPE), "--out", str(out), *options, *sets]


def trained(out: Path, changes: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(out, changes, *options), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done


def curve(out: Path) -> list[tuple[str, int, float]]:
    """Kind, step and loss of every line."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line.get("loss") or line["bits_per_byte"]) for line in lines]


def same(found: list, wanted: list) -> None:
    assert [line[:2] for line in found] == [line[:2] for line in wanted]
    assert [line[2] for line in found] == pytest.approx([line[2] for line in wanted], rel=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    trained(out, ONE)
    return out


def rank_of(out: Path, rank: int) -> int:
    """The process of a rank of the run that writes to `out`."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"no rank {rank} of {out}")


def killed_after(
    out: Path, step: int, *options: str, changes: list[str] = FOUR, number: int = signal.SIGKILL
) -> tuple[subprocess.CompletedProcess[str], float]:
    """A run whose rank 2 gets a signal after a step, and the seconds until all is over."""
    started = subprocess.Popen(command(out, changes, "--nproc", "4", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or f'"step": {step},' not in (out / "metrics.jsonl").read_text():
        assert time.monotonic() < until and started.poll() is None
        time.sleep(0.05)
    os.kill(rank_of(out, 2), number)
    begin = time.monotonic()
    said, complained = started.communicate(timeout=150)
    return subprocess.CompletedProcess(started.args, started.returncode, said, complained), time.monotonic() - begin


def test_four_processes_train_as_one_does(alone, tmp_path):
    out = tmp_path / "run"
    told = trained(out, FOUR, "--nproc", "4").stderr
    assert told.count("FLOPs") == told.count("0-1     0, 3") == told.count("2-3     1, 2") == 1, "one table of ranks and their layers"
    same(curve(out), curve(alone))
    found, wanted = (load_file(next((folder / "model").glob("*.safetensors"))) for folder in (out, alone))
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().mean() / wanted[name].abs().mean()) for name in wanted) < 1e-3


def test_torchrun_gives_the_same_run(tmp_path):
    """Digit by digit, and started as one would on several machines."""
    launched, ours = tmp_path / "launched", tmp_path / "ours"
    arguments = command(launched, TWO)[1:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    subprocess.run(command(ours, TWO, "--nproc", "2"), check=True, capture_output=True, timeout=200, env=environment)
    assert curve(launched) == curve(ours)


def test_a_layout_that_does_not_fit_is_told_before_processes_start(tmp_path):
    changes = [f"set.parallelism.{row}" for row in ("use=fsdp", "dp=3", "ep=3")]
    done = subprocess.run(command(tmp_path / "run", changes, "--nproc", "3"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.count("ep = 3 does not divide 16 experts. Use one of [1].") == 1
    assert not (tmp_path / "run").exists()


def test_a_killed_rank_is_named_and_fewer_processes_go_on(alone, tmp_path):
    out = tmp_path / "run"
    done, seconds = killed_after(out, 3)
    assert done.returncode == 1
    assert seconds < 30
    told = " ".join(done.stderr.split())
    assert "rank 2, which has stage 1 (layer 2) and stage 2 (layer 3) of dualpipe-v, was ended by SIGKILL" in told
    assert "goes on from the last complete checkpoint" in told
    assert "goes on after step 2 of 6" in trained(out, TWO, "--nproc", "2").stderr
    same(curve(out), curve(alone))


def test_one_process_goes_on_with_what_tensor_ranks_began(alone, tmp_path):
    out = tmp_path / "run"
    done, _ = killed_after(out, 3, changes=TENSOR)
    told = " ".join(done.stderr.split())
    assert "rank 2, which has stage 1 (layer 2) and stage 2 (layer 3) of dualpipe-v, as tensor rank 0 of 2, was ended by SIGKILL" in told
    assert "goes on after step 2 of 6" in trained(out, ONE).stderr
    same(curve(out), curve(alone))


def test_restarts_give_the_same_curve(alone, tmp_path):
    out = tmp_path / "run"
    done, _ = killed_after(out, 3, "--max-restarts", "1", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "goes on after step 2 of 6" in done.stderr
    same(curve(out), curve(alone))


def test_a_rank_that_hangs_ends_the_run_within_the_timeout(tmp_path):
    out = tmp_path / "run"
    SHORT.append("train.timeout=5")
    try:
        done, seconds = killed_after(out, 3, number=signal.SIGSTOP)
    finally:
        SHORT.pop()
    assert done.returncode == 1
    assert seconds < 60
    assert "imed out" in done.stderr


def test_the_wrong_number_of_processes_is_told_once(tmp_path):
    done = subprocess.run(command(tmp_path / "run", FOUR, "--nproc", "2"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.count("--nproc 2, and parallelism.use = 'dualpipe-v' is for 4 processes") == 1
    done = subprocess.run(command(tmp_path / "run", FOUR), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "needs 4 processes, and there are 1" in " ".join(done.stderr.split())
