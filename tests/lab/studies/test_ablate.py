"""Studies: fair, reusable, and reported with the numbers of their runs."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from bestiary.lab.studies.ablate import StudyResult, ablate
from bestiary.lab.studies.reading import read_equal, training
from bestiary.lab.training.metrics import Line
from bestiary.lab.training.result import RunResult, Summary, read_run
from bestiary.lab.units import short, signed

STUDY = """
schema = 1
title = "Beasts & <experts>"
recipe = "recipe.toml"
baseline = "base"
[variants.base]
[variants.gqa]
block.attention.use = "gqa"
"""


@pytest.fixture
def study(lab: Path) -> Path:
    (lab / "study.toml").write_text(STUDY)
    return lab / "study.toml"


def run(study: Path) -> StudyResult:
    return ablate(study, out=study.parent / "out", progress=False)


def test_a_study_trains_reports_and_reuses(study: Path):
    first = run(study)
    assert first.reused == ()
    summaries = [result.summary for result in first.runs.values()]
    assert len({summary.data_digest for summary in summaries}) == 1
    assert len({summary.manifest_digest for summary in summaries}) == 2
    check_report(first)

    changed = study.read_text().replace('use = "gqa"', 'use = "gqa"\nblock.attention.num_key_value_heads = 1')
    study.write_text(changed + "[variants.hot]\nmodel.initializer_range = 1e20\n")
    before = {name: (result.folder / "summary.json").stat().st_mtime_ns for name, result in first.runs.items()}
    second = run(study)
    assert second.reused == ("base",), "what did not change is used again"
    assert (second.runs["base"].folder / "summary.json").stat().st_mtime_ns == before["base"]
    assert (second.runs["gqa"].folder / "summary.json").stat().st_mtime_ns != before["gqa"]
    assert second.runs["hot"].summary.status == "diverged"
    assert "hot diverged." in (second.folder / "report.md").read_text()

    assert run(study).reused == ("base", "gqa", "hot")


def test_ctrl_c_ends_the_study_and_keeps_what_is_finished(study: Path):
    text = (study.parent / "recipe.toml").read_text().replace("steps = 12", "steps = 100000").replace("eval_every = 4", "eval_every = 0")
    (study.parent / "recipe.toml").write_text(text)
    out = study.parent / "out"
    code = f"from bestiary.lab.studies.ablate import ablate; ablate({str(study)!r}, out={str(out)!r}, progress=False)"
    child = subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.PIPE, text=True)
    metrics, deadline = out / "base" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert "Interrupted during 'base'" in errors
    stopped = read_run(out / "base")
    assert stopped is not None and stopped.summary.status == "interrupted" and stopped.model.is_dir()
    assert not (out / "gqa").exists() and not (out / "report.html").exists()


def check_report(result: StudyResult) -> None:
    page, text = result.report.read_text(), (result.folder / "report.md").read_text()
    base, gqa = (result.runs[name].summary for name in ("base", "gqa"))
    assert base.bits_per_byte and gqa.bits_per_byte
    for shown in (text, html.unescape(page)):
        for summary in (base, gqa):
            assert f"{summary.bits_per_byte:.3f}" in shown
            assert short(summary.active_parameters) in shown
            assert short(summary.cache_bytes_per_token, "B") in shown
            assert summary.digest[:16] in shown
        assert signed(gqa.bits_per_byte - base.bits_per_byte) in shown
        assert "block.attention" in shown and "bestiary ablate" in shown and "one seed" in shown
    assert "Beasts &amp; &lt;experts&gt;" in page and page.count("<svg") == 2
    assert not re.search(r'(src|href)="(http|//|(?!#)[^"]*\.(js|css|png))', page), "the page needs nothing else"
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (result.folder / name).read_text().startswith("<svg")


def made(folder: Path, points: list[tuple[int, float, float]], status: str = "finished") -> RunResult:
    """A run whose evaluations are (tokens, flops, bits per byte)."""
    folder.mkdir()
    lines = [Line("eval", index, tokens, flops, 0.0, value) for index, (tokens, flops, value) in enumerate(points)]
    lines += [Line("train", index, index, index, 0.0, float(index % 2)) for index in range(1, 101)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
    summary: dict = dict.fromkeys(Summary.__dataclass_fields__, 0) | {"status": status}
    return RunResult(folder, Summary(**summary))


def test_equal_budgets_by_hand(tmp_path: Path):
    """At 200 tokens both have ended; 3e9 FLOPs are 3/4 of b's way and the end of a's."""
    runs = {
        "a": made(tmp_path / "a", [(0, 0, 8.0), (100, 1.5e9, 4.0), (200, 3e9, 3.0)]),
        "b": made(tmp_path / "b", [(0, 0, 8.0), (100, 2e9, 5.0), (200, 4e9, 2.0)]),
        "c": made(tmp_path / "c", [(0, 0, 8.0), (10, 1e6, 9.0)], status="diverged"),
    }
    tokens, flops = read_equal(runs, "tokens"), read_equal(runs, "flops")
    assert tokens and flops
    assert (tokens.budget, tokens.values) == (200, {"a": 3.0, "b": 2.0})
    assert flops.budget == 3e9
    assert flops.values == {"a": 3.0, "b": pytest.approx(3.5)}


def test_smoothing_averages_and_keeps_constants(tmp_path: Path):
    _, values = training(made(tmp_path / "a", [(0, 0, 8.0)]), "tokens", window=0.2)
    assert len(values) == 100
    assert values[0] == 1.0, "the first point is itself"
    assert values[-1] == pytest.approx(0.5, abs=0.03)


def test_numbers_read_as_people_write_them():
    assert [short(value) for value in (0, 640, 2_007_984, 999_600, 17_389_248, 1.5e15)] == ["0", "640", "2.01M", "1.00M", "17.4M", "1.50P"]
    assert short(1_032_388_608, "B") == "1.03 GB"
    assert [signed(value) for value in (0.0525, -0.0525)] == ["+0.052", "\N{MINUS SIGN}0.052"]
