"""A part of the fuzz run, small enough for every day."""

from __future__ import annotations

from pathlib import Path

from .drive import drive


def test_hostile_checkpoints(tmp_path: Path) -> None:
    counts = drive(500, 7, tmp_path)
    outcomes = {outcome for _, _, outcome in (key.partition(": ") for key in counts)}
    assert outcomes == {"refused", "loaded"}, "some of the damage does not matter, most does"
    assert {key.partition(":")[0] for key in counts} == {"header", "index", "config", "manifest", "file"}
