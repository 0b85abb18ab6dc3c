"""What the GPU benchmark makes of its cases, without a GPU."""

from __future__ import annotations

from io import StringIO

import pytest
import torch
from rich.console import Console

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Case, Row, checked, relative_error, table, timed, wrong

CARD = {"copy": 1e12, "bf16": 1e14, "fp8": 2e14}


def test_a_case_is_right_up_to_its_bound():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    near = Case("near 2", lambda: None, lambda: relative_error(exact + 0.005, exact), 0.0015)
    far = Case("far 2", lambda: None, lambda: relative_error(exact + 0.006, exact), 0.0015)
    assert wrong([near, far]) == ["far"]


@pytest.mark.parametrize(("nbytes", "flops", "share"), [(5e7, 0, 0.5), (5e7, 1.6e10, 0.8)], ids=["memory", "products"])
def test_shares_are_of_the_limit_that_takes_longer(monkeypatch, nbytes, flops, share):
    monkeypatch.setattr(measure, "median", lambda call: 100.0)
    case = Case("quick", lambda: None, lambda: 0.0, 0.0, nbytes, flops, "fp8", peers={"broken": lambda: None})
    row = checked(case)
    timed(case, row, CARD)
    assert row.share == pytest.approx(share) and row.peers == {"broken": 100.0}


def test_the_table_tells_what_is_wrong_and_what_is_slow():
    rows = [Row("slow", 0.0, True, 10.0, 0.3, 0.5, {"torch": 9.0, "other": "not installed"}), Row("bad", 2.0, False)]
    console = Console(file=StringIO(), width=120, force_terminal=True)
    console.print(table(rows, "card"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[33m30%" in text and "\x1b[31mWRONG 2" in text and "torch 9.0, other: not installed" in text
