"""What a recipe says about its data."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from ...core.component import Options

STDLIB = "stdlib"
BYTES = "bytes"
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class DataOptions(Options):
    source: Names = (STDLIB,)
    """Files and folders of text, or `stdlib`: the sources of the Python standard library on this machine."""
    suffixes: Names = (".py", ".md", ".txt")
    """Files that count in a folder."""
    tokenizer: str = BYTES
    """`bytes`, or the path of a `tokenizer.json` or its folder."""
    sequence_length: int = Field(default=256, gt=1)
    """Tokens of a row (S)."""
    seed: int = Field(default=0, ge=0)
    """Of the order of rows; models that are compared share it."""
    mask_documents: bool = False
    """Whether a token sees its own document only, and no document predicts the next one's first token."""
    held_out: float = Field(default=0.02, gt=0, lt=1)
    """Part of the documents kept for evaluation."""
    eval_tokens: int = Field(default=32768, gt=0)
    """Held-out tokens that each evaluation reads, rounded up to whole rows; fewer when there are fewer."""
