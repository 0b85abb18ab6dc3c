"""How all plots look."""

from __future__ import annotations

from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6b4e00", "#4a4a4a", "#56b4e9", "#e69f00")
"""Of lines in their order: Okabe and Ito's palette for every kind of colour vision, the darker ones first."""
STYLE: Any = {
    "svg.hashsalt": "bestiary",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e2e2e2",
    "axes.axisbelow": True,
}
