"""What a recipe says about its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from ...core.component import Options

STDLIB = "stdlib"
BYTES = "bytes"
HF = "hf:"
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class HfOptions(Options):
    config: str | None = None
    """Configuration of the dataset (`load_dataset`'s `name`); its default one when not set."""
    split: str = "train"
    """Which split is read; our own held-out part is taken from it."""


class DataOptions(Options):
    source: Names = Field(default=(STDLIB,), min_length=1)
    """Files and folders of text, JSONL or Parquet; `hf:organisation/name[@revision]` or `hf:folder` for Hugging Face
    datasets; `stdlib` for the sources of the Python standard library on this machine."""
    suffixes: Names = (".py", ".md", ".txt", ".jsonl", ".jsonl.gz", ".parquet")
    """Files that count in a folder."""
    text_field: str = Field(default="text", min_length=1)
    """Where the text of a JSONL line, a Parquet row or a dataset's example stands."""
    hf: HfOptions = HfOptions()
    """Which part of the `hf:` sources is read."""
    limit_documents: int | None = Field(default=None, gt=0)
    """Documents read of each source, from its start; all when not set."""
    limit_bytes: int | None = Field(default=None, gt=0)
    """Bytes of text read of each source, from its start; the document that reaches the limit is the last one."""
    tokenizer: str = BYTES
    """`bytes`, the path of a `tokenizer.json` or its folder, or a Hub id."""
    cache: str = ""
    """Folder for tokens; `tokens` in `$BESTIARY_CACHE`, or in `~/.cache/bestiary`, when empty."""
    sequence_length: int = Field(default=256, gt=1)
    """Tokens of a row (S)."""
    seed: int = Field(default=0, ge=0)
    """Of the order of rows and of the cuts of fill-in-the-middle; models that are compared share it."""
    mask_documents: bool = False
    """Whether a token sees its own document only, and no document predicts the next one's first token."""
    fim_rate: float = Field(default=0.0, ge=0, le=1)
    """Part of the training documents that are rearranged for fill-in-the-middle (0.1 for DeepSeek-V3)."""
    fim_tokens: tuple[int | str, int | str, int | str] | None = None
    """Tokens before prefix, suffix and middle, as ids or as the tokenizer writes them; when not set, those that the
    tokenizer is known to have, and three unused ids for bytes."""
    held_out: float = Field(default=0.02, gt=0, lt=1)
    """Part of the documents kept for evaluation."""
    eval_tokens: int = Field(default=32768, gt=0)
    """Held-out tokens that each evaluation reads, rounded up to whole rows; fewer when there are fewer."""

    @model_validator(mode="after")
    def _used(self) -> DataOptions:
        if self.hf != HfOptions() and not any(source.startswith(HF) for source in self.source):
            raise ValueError(f"data.hf describes a dataset, and no source is one. Add '{HF}organisation/name' to data.source")
        if self.fim_tokens is not None and not self.fim_rate:
            raise ValueError("data.fim_tokens is set, and data.fim_rate is 0. Set data.fim_rate = 0.1, or leave out the tokens")
        if self.fim_tokens is not None and len(set(self.fim_tokens)) < 3:
            raise ValueError("data.fim_tokens needs three different tokens: before prefix, suffix and middle")
        return self

    def at(self, folder: Path) -> DataOptions:
        """The same with absolute paths, relative ones starting at `folder`; Hub ids stay as they are."""
        tokenizer, cache = self.tokenizer, self.cache
        changed = {
            "source": tuple(_source(source, folder) for source in self.source),
            "tokenizer": tokenizer if tokenizer == BYTES or _hub_id(tokenizer, folder) else _path(tokenizer, folder),
            "cache": cache and _path(cache, folder),
        }
        return self.model_copy(update=changed)


def hub_id(reference: str) -> bool:
    """Whether `organisation/name[@revision]` is meant, and no path."""
    return reference.count("/") == 1 and not reference.startswith((".", "/", "~")) and not reference.endswith(".json")


def _hub_id(reference: str, folder: Path) -> bool:
    return hub_id(reference) and not (folder / reference).exists()


def _source(source: str, folder: Path) -> str:
    if source == STDLIB:
        return source
    kind, reference = (HF, source.removeprefix(HF)) if source.startswith(HF) else ("", source)
    is_path = not kind or (folder / reference).exists() or reference.startswith((".", "/", "~"))
    return kind + (_path(reference, folder) if is_path else reference)


def _path(text: str, folder: Path) -> str:
    return str((folder / Path(text).expanduser()).resolve())
