"""`make demo`: everything once, on real text, in about five minutes on two cores.

Shows DeepSeek-V3's figures, trains `deepseek-v3-nano` and two swapped variants on the Python standard library's own sources,
compares them in a report, loads the trained base back, and lets it write.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).parent
RUNS = Path("runs/demo")
MODEL = RUNS / "mla-moe" / "seed-0" / "model"
PROMPT = "def read_lines(path):\n    "
console = Console(highlight=False)


def main() -> None:
    started = time.perf_counter()
    step("What DeepSeek-V3 is made of and what it costs, from its manifest alone")
    bestiary("show", "deepseek-v3")
    step("What one line changes: grouped-query attention instead of MLA in the small model")
    bestiary("diff", "deepseek-v3-nano", "deepseek-v3-nano", "--set", "block.attention.use=gqa")
    step("Train it and two variants on the standard library's sources, and compare them")
    bestiary("ablate", str(HERE / "studies" / "demo.toml"), "--out", str(RUNS))
    step("Load the trained base back, by its folder alone")
    load()
    step("Let it write")
    bestiary("generate", str(MODEL), "--prompt", PROMPT, "--temperature", "0.7", "--seed", "1", "--max-new-tokens", "200")
    step(f"Done in {time.perf_counter() - started:.0f} s. What lies where")
    for what, where in (("report", RUNS / "report.html"), ("the same as Markdown", RUNS / "report.md"), ("trained base", MODEL)):
        console.print(f"  {what:22} {where}", soft_wrap=True)


def step(title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")


def bestiary(*arguments: str) -> None:
    """Runs one verb of the command line, as anyone would."""
    console.print(f"[bold]$ bestiary {shlex.join(arguments)}[/]", soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", "bestiary", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def load() -> None:
    """The Python way: one call, and a report of what was taken from where."""
    import bestiary

    console.print(f'[bold]>>> model = bestiary.load("{MODEL}"); print(model.load_report)[/]')
    model = bestiary.load(MODEL)
    console.print(str(model.load_report))


if __name__ == "__main__":
    main()
