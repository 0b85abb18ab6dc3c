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
from bestiary.lab.studies.engines.local import Local
from bestiary.lab.studies.reading import apart, band, read_equal, smooth, trained
from bestiary.lab.studies.tables import compare, training_loss
from bestiary.lab.training.metrics import Line
from bestiary.lab.training.result import RunResult, Summary, read_run
from bestiary.lab.units import percent, short, signed

STUDY = """
schema = 1
title = "Beasts & <experts>"
recipe = "recipe.toml"
baseline = "base"
seeds = [0, 4]
full_scale = { model = "deepseek-v3", tokens = "14.8T", price = 2 }
[variants.base]
[variants.gqa]
block.attention.use = "gqa"
match = { same = "active_parameters", by = "block.attention.head_dim", multiple_of = 2, tolerance = 0.05 }
"""


@pytest.fixture
def study(lab: Path) -> Path:
    (lab / "study.toml").write_text(STUDY)
    return lab / "study.toml"


def run(study: Path) -> StudyResult:
    return ablate(study, out=study.parent / "out", engine=Local(2, progress=False), progress=False)


def stamp(run: RunResult) -> int:
    return (run.folder / "summary.json").stat().st_mtime_ns


@pytest.mark.slow  # six runs, each in a process that imports torch
def test_a_study_trains_reports_and_reuses(study: Path):
    first = run(study)
    assert first.reused == ()
    assert {name: list(own) for name, own in first.runs.items()} == {"base": [0, 4], "gqa": [0, 4]}
    by_seed = {seed: {own[seed].summary.data_digest for own in first.runs.values()} for seed in (0, 4)}
    assert len(by_seed[0]) == len(by_seed[4]) == 1 and by_seed[0] != by_seed[4], "variants share the data of a seed"
    assert len({run.summary.bits_per_byte for run in first.runs["base"].values()}) == 2
    check_report(first)

    changed = study.read_text().replace("seeds = [0, 4]", "seeds = [4]").replace('"gqa"\n', '"gqa"\nblock.attention.qk_norm = true\n')
    study.write_text(changed + "[variants.hot]\nmodel.initializer_range = 1e20\n")
    second = run(study)
    assert second.reused == ("base/seed-4",), "what did not change is used again"
    assert stamp(second.runs["base"][4]) == stamp(first.runs["base"][4])
    assert second.runs["hot"][4].summary.status == "diverged"
    text = (second.folder / "report.md").read_text()
    assert "hot: 1 of 1 runs diverged: seed 4 after step 0." in text and "1, 1 diverged" in text and "one seed: nothing can be" in text

    third = run(study)
    assert third.reused == ("base/seed-4", "gqa/seed-4", "hot/seed-4"), "runs that diverged are not tried again"


def test_ctrl_c_ends_the_study_and_keeps_what_is_finished(study: Path):
    text = (study.parent / "recipe.toml").read_text().replace("steps = 12", "steps = 100000").replace("eval_every = 4", "eval_every = 0")
    (study.parent / "recipe.toml").write_text(text)
    out = study.parent / "out"
    code = (
        "from bestiary.lab.studies.ablate import ablate; from bestiary.lab.studies.engines import open_engine\n"
        f"ablate({str(study)!r}, out={str(out)!r}, engine=open_engine('local', jobs=2, progress=False), progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.PIPE, text=True)
    both = [out / name / "seed-0" / "metrics.jsonl" for name in ("base", "gqa")]
    deadline = time.monotonic() + 120
    while not all(metrics.exists() and metrics.read_text().count("\n") > 3 for metrics in both):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert "Interrupted after 0 of 4 runs" in errors
    for name in ("base", "gqa"):
        stopped = read_run(out / name / "seed-0")
        assert stopped is not None and stopped.summary.status == "interrupted" and stopped.model.is_dir()
    assert not (out / "base" / "seed-4").exists() and not (out / "report.html").exists()


def check_report(result: StudyResult) -> None:
    page, text = result.report.read_text(), (result.folder / "report.md").read_text()
    compared = compare(result.runs, "base")["gqa"]
    matched = result.study.matched["gqa"]
    assert compared.low is not None and compared.high is not None
    summaries = [run.summary for own in result.runs.values() for run in own.values()]
    for shown in (text, html.unescape(page)):
        for summary in summaries:
            assert f"{summary.bits_per_byte:.4f}" in shown
            assert short(summary.active_parameters) in shown and short(summary.cache_bytes_per_token, "B") in shown
            assert summary.digest[:12] in shown
        for figure in (signed(compared.mean), f"{signed(compared.low)} to {signed(compared.high)}", percent(matched.deviation)):
            assert figure in shown
        assert "block.attention" in shown and "bestiary ablate" in shown and "bestiary diff" in shown
        assert "$6.189M" in shown, "the baseline at full scale is DeepSeek-V3"
        assert training_loss(result.runs, "base").rows[1][-1] in shown
        assert "within a sequence" in shown and "agreement of mtp-1" in shown
    assert "Beasts &amp; &lt;experts&gt;" in page and page.count("<svg") == 7
    assert len(page) < 300_000
    assert not re.search(r'(src|href)="(http|//|(?!#)[^"]*\.(js|css|png))', page), "the page needs nothing else"
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (result.folder / name).read_text().startswith("<svg")


def made(folder: Path, points: list[tuple[int, float, float]], status: str = "finished") -> RunResult:
    """A run whose evaluations are (tokens, flops, bits per byte)."""
    folder.mkdir(parents=True)
    lines = [Line("eval", index, tokens, flops, 0.0, value) for index, (tokens, flops, value) in enumerate(points)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
    summary: dict = dict.fromkeys(Summary.__dataclass_fields__, 0) | {"status": status, "bits_per_byte": points[-1][2]}
    return RunResult(folder, Summary(**summary))


def test_equal_budgets_by_hand(tmp_path: Path):
    """At 200 tokens all have ended; 3e9 FLOPs are 3/4 of b's way and the end of a's."""
    runs = {
        "a": {0: made(tmp_path / "a", [(0, 0, 8.0), (100, 1.5e9, 4.0), (200, 3e9, 3.0)])},
        "b": {0: made(tmp_path / "b", [(0, 0, 8.0), (100, 2e9, 5.0), (200, 4e9, 2.0)])},
        "c": {0: made(tmp_path / "c", [(0, 0, 8.0), (10, 1e6, 9.0)], status="diverged")},
    }
    tokens, flops = read_equal(runs, "tokens"), read_equal(runs, "flops")
    assert tokens and flops
    assert (tokens.budget, tokens.values) == (200, {"a": {0: 3.0}, "b": {0: 2.0}, "c": {}})
    assert flops.budget == 3e9
    assert flops.values["b"] == {0: pytest.approx(3.5)}


def test_bands_are_mean_and_range_of_the_seeds_that_ended(tmp_path: Path):
    ends = {0: 3.0, 1: 5.0}
    runs = {seed: made(tmp_path / str(seed), [(0, 0, 8.0), (100, 1.0, end)]) for seed, end in ends.items()}
    runs[2] = made(tmp_path / "2", [(0, 0, 8.0), (50, 0.5, 80.0)], status="diverged")
    found = band(runs, "eval", lambda line: line.bits_per_byte)
    assert found is not None
    assert (found.x, found.mean, found.low, found.high) == ([0, 100], [8.0, 4.0], [8.0, 3.0], [8.0, 5.0])
    assert band({2: runs[2]}, "eval", lambda line: line.bits_per_byte) is None


def test_a_seed_that_diverged_is_counted_but_not_compared(tmp_path: Path):
    base = {seed: made(tmp_path / f"base{seed}", [(0, 0, 8.0), (100, 1.0, 4.0 + seed)]) for seed in range(3)}
    other = {seed: made(tmp_path / f"other{seed}", [(0, 0, 8.0), (100, 1.0, 3.0 + seed)]) for seed in range(2)}
    other[2] = made(tmp_path / "other2", [(0, 0, 8.0)], status="diverged")
    assert compare({"base": base, "other": other}, "base")["other"].differences == {0: -1.0, 1: -1.0}


def test_smoothing_averages_and_keeps_constants():
    values = smooth([float(index % 2) for index in range(1, 101)], window=0.2)
    assert len(values) == 100
    assert values[0] == 1.0, "the first point is itself"
    assert values[-1] == pytest.approx(0.5, abs=0.03)
    assert smooth([3.0] * 50, window=0.1) == pytest.approx([3.0] * 50)


def test_numbers_read_as_people_write_them():
    assert [short(value) for value in (0, 640, 2_007_984, 999_600, 17_389_248, 1.5e15)] == ["0", "640", "2.01M", "1.00M", "17.4M", "1.50P"]
    assert short(1_032_388_608, "B") == "1.03 GB"
    assert [signed(value) for value in (0.0525, -0.0525)] == ["+0.052", "\N{MINUS SIGN}0.052"]
    assert [percent(value) for value in (0.0042, -0.5, -1e-9)] == ["+0.42 %", "\N{MINUS SIGN}50.00 %", "+0.00 %"]


def test_training_losses_are_averaged_and_compared_seed_by_seed(tmp_path: Path):
    def run(name: str, seed: int, *losses: float) -> RunResult:
        found = made(tmp_path / name / str(seed), [(1, 1.0, 1.0)])
        lines = [Line("train", step, step, 1.0, 1.0, bits_per_byte=loss) for step, loss in enumerate(losses)]
        (found.folder / "metrics.jsonl").write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
        return found

    runs = {
        "base": {0: run("base", 0, 4.0, 2.0), 1: run("base", 1, 2.0)},
        "other": {0: run("other", 0, 4.0, 2.0), 1: run("other", 1, 2.02)},
    }
    assert trained(runs["base"])[0] == pytest.approx((0.9 * 4 + 2) / 1.9)
    assert training_loss(runs, "base").rows[1][2:5] == ("+0.00 %", "+1.00 %", "+0.50 %")
    gap = apart(runs["other"], runs["base"])
    assert gap is not None and gap.mean[-1] == pytest.approx(0.5) and (gap.low[-1], gap.high[-1]) == pytest.approx((0.0, 1.0))
    low, high = training_loss(runs, "base").rows[1][5].replace(" %", "").replace("\N{MINUS SIGN}", "-").split(" to ")
    assert (float(low) + float(high)) / 2 == pytest.approx(0.5)
    assert float(high) == pytest.approx(0.5 + 12.706 * 0.5, abs=0.01)  # t of one degree of freedom, half the spread of two
