"""How much faster MTP drafts make decoding: speculative beside plain, greedy, in one process, on the same prompts.

    python -m benchmarks.speculate FOLDER [--draft-tokens 1 2 3] [--prompts FILE] [--json FILE]

Plain and speculative decoding take turns on every prompt, so that a slow spell of a shared machine falls on both; rates are medians
over prompts and rounds, after the prompt's pass. Without `--prompts` the prompts come from the Python sources of the installed
package `rich`, which models trained on the standard library have not seen. Prompt and new tokens together should not exceed the
length of the training sequences: beyond it small models lose the thread, and their drafts with it. End tokens do not end a row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import bestiary
from bestiary.core.backbone import CausalLM
from bestiary.core.generate import stream
from bestiary.core.host import keep_freed_memory
from bestiary.core.sampling import Sampling
from bestiary.core.speculate import Acceptance, Speculation
from bestiary.lab.text import find_tokenizer

REPORTED = "85 to 90 %"
"""Of the second tokens that DeepSeek-V3 predicts, across topics (report, section 5.4.3)."""


@dataclass
class Runs:
    """All runs with one number of draft tokens, plain ones under 0."""

    seconds: list[float] = field(default_factory=list)
    acceptance: Acceptance = field(default_factory=Acceptance)
    same: int = 0
    """Runs that gave the tokens of plain decoding; in bf16 roundings may differ."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("model", help="a folder that `bestiary train` or `bestiary.save` wrote")
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--prompts", type=Path, help="a text file from which prompts are cut")
    parser.add_argument("--count", type=int, default=8, help="prompts")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="with the new tokens, at most the length it was trained on")
    parser.add_argument("--new-tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    keep_freed_memory()
    manifest = bestiary.resolve(arguments.model)
    model = bestiary.load(arguments.model, dtype=manifest.precision.build(manifest.site).compute_dtype)
    prompts = cut_prompts(arguments)
    rows = summary(measure(model, prompts, arguments), arguments.new_tokens)
    report(rows)
    if arguments.json:
        how = {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "model": model.manifest.name,
            "dtype": str(model.precision.compute_dtype),
        }
        arguments.json.write_text(json.dumps(how | {"runs": rows}, indent=2) + "\n")


def cut_prompts(arguments: argparse.Namespace) -> list[torch.Tensor]:
    """`[1, S]` pieces at equal distances in the text."""
    ids = find_tokenizer(arguments.model).encode(text(arguments.prompts), add_special_tokens=False).ids
    if len(ids) < arguments.prompt_tokens:
        raise SystemExit(f"the text has {len(ids)} tokens; give at least {arguments.prompt_tokens}")
    starts = torch.linspace(0, len(ids) - arguments.prompt_tokens, arguments.count).long().tolist()
    return [torch.tensor([ids[start : start + arguments.prompt_tokens]]) for start in starts]


def text(file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8")
    import rich

    return "".join(path.read_text(encoding="utf-8") for path in sorted(Path(rich.__file__).parent.glob("*.py")))


def measure(model: CausalLM, prompts: list[torch.Tensor], arguments: argparse.Namespace) -> dict[int, Runs]:
    """Runs by draft tokens, 0 for plain decoding; the runs of one prompt and round follow one another."""
    runs = {count: Runs() for count in (0, *arguments.draft_tokens)}
    decode(model, prompts[0], 8, None)
    decode(model, prompts[0], 8, Speculation("mtp"))  # kernels are compiled at their first use
    for prompt in track(prompts * arguments.rounds, description="decoding", console=Console(stderr=True)):
        expected: list[int] = []
        for count, run in runs.items():
            speculation = Speculation("mtp", count, run.acceptance) if count else None
            seconds, tokens = decode(model, prompt, arguments.new_tokens, speculation)
            expected = expected or tokens
            run.seconds.append(seconds)
            run.same += tokens == expected
    return runs


def decode(model: CausalLM, prompt: torch.Tensor, new_tokens: int, speculation: Speculation | None) -> tuple[float, list[int]]:
    """Seconds after the first token, which the prompt's pass gives, and all tokens. The drafter's pass over the prompt counts."""
    tokens = stream(model, prompt, max_new_tokens=new_tokens, sampling=Sampling(eos_token_id=-1), speculation=speculation)
    first = int(next(tokens))
    start = time.perf_counter()
    rest = [int(token) for token in tokens]
    return time.perf_counter() - start, [first, *rest]


def summary(runs: dict[int, Runs], new_tokens: int) -> list[dict[str, Any]]:
    """A row for each number of draft tokens; the ratio is the median over pairs of neighbouring runs."""
    return [
        {
            "draft tokens": count,
            "tokens per second": (new_tokens - 1) / statistics.median(run.seconds),
            "ratio": statistics.median(plain / ours for plain, ours in zip(runs[0].seconds, run.seconds, strict=True)),
            "tokens per pass": run.acceptance.tokens_per_pass if count else 1.0,
            "accepted": run.acceptance.rates,
            "same tokens": run.same / len(run.seconds),
        }
        for count, run in runs.items()
    ]


def report(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table(title=f"greedy decoding, batch 1, {torch.get_num_threads()} threads", title_justify="left")
    for heading in ("drafted", "tokens/s", "of plain", "tokens a pass", "accepted by place in the draft", "runs with equal tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        accepted = ", ".join(f"{rate:.1%}" for rate in row["accepted"])
        figures = f"{row['tokens per second']:,.0f}", f"{row['ratio']:.2f} x", f"{row['tokens per pass']:.2f}"
        table.add_row(str(row["draft tokens"] or "plain"), *figures, accepted, f"{row['same tokens']:.0%}")
    Console().print(table, f"For comparison, first drafted token of DeepSeek-V3: {REPORTED} accepted, 1.8 times the tokens per second.")


if __name__ == "__main__":
    main()
