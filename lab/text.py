"""Text in, text out: a prompt continued piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BestiaryError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..core.backbone import CausalLM
    from ..core.speculate import Speculation


def find_tokenizer(reference: str, tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer of a model folder or Hub repository, or the one that was named instead.

    Raises:
        BestiaryError: there is none.
    """
    from tokenizers import Tokenizer

    from ..registry.hub import fetch

    path = Path(tokenizer or reference).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    elif not path.exists() and not tokenizer:
        path = fetch(reference, "tokenizer.json") or path
    if not path.is_file():
        raise BestiaryError(f"There is no tokenizer.json in {tokenizer or reference}. Give one with --tokenizer.")
    return Tokenizer.from_file(str(path))


def stream(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    speculation: Speculation | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """The continuation of `prompt`, in pieces as they are decoded; the prompt itself is not repeated.

    Raises:
        BestiaryError: the prompt holds no token, or is too long, or the model cannot draft as `speculation` says.
    """
    import torch
    from tokenizers.decoders import DecodeStream

    from ..core.generate import stream as tokens
    from ..core.sampling import Sampling

    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids], dtype=torch.int64, device=model.device)
    decode = DecodeStream(skip_special_tokens=True)
    for token in tokens(model, ids, max_new_tokens=max_new_tokens, sampling=Sampling(**sampling), speculation=speculation):
        piece = decode.step(tokenizer, int(token))
        if piece:
            yield piece
