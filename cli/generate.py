"""The verb that continues a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .console import Set, err


def generate(
    model: Annotated[str, typer.Argument(help="A folder that `bestiary train` or `bestiary.save` wrote, or a Hub id.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text to continue; - reads standard input.")] = "-",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the k most likely tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the fewest tokens that hold this much probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the draw repeatable.")] = None,
    speculative: Annotated[str | None, typer.Option(help="The objective that drafts tokens for the model to check: mtp.")] = None,
    draft_tokens: Annotated[int, typer.Option(min=1, help="Tokens to draft for each pass of the model.")] = 1,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.json or its folder; the one beside the model by default.")] = None,
    set: Set = None,
) -> None:
    """Continues a prompt, printing tokens as they come."""
    from ..core.host import keep_freed_memory
    from ..core.speculate import Acceptance, Speculation
    from ..lab.text import find_tokenizer, stream
    from ..registry.load import compute_dtype, load

    keep_freed_memory()
    text = sys.stdin.read() if prompt == "-" else prompt
    words = find_tokenizer(model, tokenizer)
    loaded = load(model, set=set or [], dtype=compute_dtype(model, set=set or []), progress=err.is_terminal)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    speculation = Speculation(speculative, draft_tokens, Acceptance()) if speculative else None
    for piece in stream(loaded, words, text, max_new_tokens=max_new_tokens, speculation=speculation, **sampling):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if speculation:
        err.print(str(speculation.acceptance), style="dim", soft_wrap=True)
