"""Runs at once, runs on Ray, and runs that fail: the same results wherever they are carried out."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bestiary.core.errors import BestiaryError
from bestiary.lab.recipe import load_recipe
from bestiary.lab.studies.ablate import ablate
from bestiary.lab.studies.engines import Engine, Job, open_engine
from bestiary.lab.studies.engines.local import Local, share
from bestiary.lab.training.result import read_run

STUDY = 'schema = 1\nrecipe = "recipe.toml"\n[variants.gqa]\nblock.attention.use = "gqa"\n'


@pytest.fixture
def study(lab: Path) -> Path:
    (lab / "study.toml").write_text(STUDY)
    return lab / "study.toml"


def results(lab: Path, name: str, engine: Engine) -> dict[int, float | None]:
    """Held-out figures of two runs, by seed."""
    recipes = {seed: load_recipe(lab / "recipe.toml", set=[f"train.seed={seed}"]) for seed in (0, 1)}
    jobs = [Job("base", seed, recipe, lab / name / str(seed), "") for seed, recipe in recipes.items()]
    assert {(job.seed, code) for job, code in engine.run(jobs)} == {(0, 0), (1, 0)}
    done = {seed: read_run(lab / name / str(seed)) for seed in recipes}
    assert all(run is not None and run.summary.status == "finished" for run in done.values())
    return {seed: run.summary.bits_per_byte for seed, run in done.items() if run is not None}


@pytest.mark.slow  # six processes that import torch
def test_two_at_once_give_what_one_after_another_gives(lab: Path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = results(lab, "alone", Local(progress=False))
    assert alone[0] != alone[1]
    assert results(lab, "two", Local(2, progress=False)) == alone


@pytest.mark.slow  # starts a cluster
def test_runs_on_a_local_ray_cluster(lab: Path):
    ray = pytest.importorskip("ray")
    ray.init(address="local", include_dashboard=False, num_cpus=2, logging_level="error", log_to_driver=False)
    try:
        done = results(lab, "ray", open_engine("ray", jobs=2))
        assert done[0] != done[1]
        failing = Job("base", 0, load_recipe(lab / "recipe.toml", set=["train.device=cuda:77"]), lab / "failing", "")
        assert list(open_engine("ray").run([failing])) == [(failing, 1)]
        assert ray.is_initialized(), "a cluster that was there stays"
    finally:
        ray.shutdown()


def test_a_run_that_fails_stops_the_study_and_says_which(study: Path):
    """The text goes between the check and the run."""

    class Vanish(Local):
        def run(self, jobs):
            for text in (study.parent / "text").iterdir():
                text.unlink()
            return super().run(jobs)

    with pytest.raises(BestiaryError, match="the run of 'baseline, seed 0' ended with exit code 1 and left no result"):
        ablate(study, out=study.parent / "out", engine=Vanish(progress=False), progress=False)
    assert not (study.parent / "out" / "gqa").exists()


def test_closing_an_engine_early_lets_runs_save_themselves(lab: Path):
    """The long run is given time to begin; then nobody asks for further results."""
    recipe = load_recipe(lab / "recipe.toml", set=["train.steps=60"])
    endless = load_recipe(lab / "recipe.toml", set=["train.steps=1000000"])
    ended = Local(2, progress=False).run([Job("long", 0, endless, lab / "long", ""), Job("short", 0, recipe, lab / "short", "")])
    job, code = next(ended)
    assert (job.variant, code) == ("short", 0)
    deadline = time.monotonic() + 60
    while not (lab / "long" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ended.close()
    stopped = read_run(lab / "long")
    assert stopped is not None and stopped.summary.status == "interrupted"


def test_threads_are_shared(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [share(jobs) for jobs in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert share(10_000) == 1


def test_unknown_and_missing_engines_are_named(monkeypatch):
    with pytest.raises(BestiaryError, match=r"no engine 'rey'. Did you mean 'ray'"):
        open_engine("rey")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BestiaryError, match=r"pip install bestiary\[ray\]"):
        open_engine("ray")
