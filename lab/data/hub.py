"""A Hugging Face dataset as a source: on the Hub, or a folder that `datasets` understands; always streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from ...core.errors import BestiaryError, Problem
from .document import Document
from .files import File, encoded, missing
from .options import HfOptions


@dataclass(frozen=True)
class HubSource:
    """One split of one dataset."""

    reference: str
    """`organisation/name[@revision]`, or an absolute path."""
    label: str
    options: HfOptions
    field: str

    @property
    def local(self) -> bool:
        """Whether it can be read twice without a network."""
        return self.reference.startswith("/")

    @property
    def count(self) -> None:
        """Unknown before it is read."""

    @property
    def files(self) -> list[File]:
        """Files that decide what it holds: those of a folder."""
        if not self.local:
            return []
        return [File(str(path), path, True) for path in sorted(Path(self.reference).rglob("*")) if path.is_file()]

    @property
    def identity(self) -> list[Any]:
        """Equal for equal content, as far as the Hub's commits and the files' times tell."""
        of = [file.identity for file in self.files] if self.local else self.commit
        return [self.reference, self.options.config, self.options.split, of]

    @cached_property
    def commit(self) -> str:
        """The commit that is read.

        Raises:
            BestiaryError: the Hub cannot be asked, or knows no such dataset.
        """
        name, _, revision = self.reference.partition("@")
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(name, revision=revision or None).sha)
        except Exception as error:  # of the network, of HTTP, of the Hub: all mean the same here
            remedy = "Check name and network; with a full commit after '@', tokens that are cached need no network."
            raise self._problem(f"the Hub does not say which commit is current: {_first_line(error)}.", remedy) from error

    def documents(self, left_out: list[str]) -> Iterator[Document]:
        """Its examples, in its own order."""
        stream, numbers = iter(self._open()), count()
        while True:
            number = next(numbers)
            try:
                example = next(stream)
            except StopIteration:
                return
            except Exception as error:
                fact = f"reading stopped at example {number}: {_first_line(error)}."
                raise self._problem(fact, "Mend the dataset, or read less of it by data.limit_documents.") from error
            where = f"hf:{self.reference}, example {number}"
            if self.field not in example:
                raise missing(self.field, list(example), where)
            text = encoded(example[self.field], self.field, where)
            if text:
                yield Document(f"{self.label}#{number}", text)

    def _open(self) -> Any:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise self._problem("datasets are read by the package datasets.", "Run: pip install bestiary[data]") from error
        name = self.reference if self.local else self.reference.partition("@")[0]
        revision = None if self.local else self.commit
        try:
            return load_dataset(name, self.options.config, split=self.options.split, revision=revision, streaming=True)
        except Exception as error:
            fact = f"the dataset cannot be opened: {_first_line(error)}."
            raise self._problem(fact, "Check the name, data.hf.config and data.hf.split.") from error

    def _problem(self, fact: str, remedy: str) -> BestiaryError:
        return BestiaryError(Problem(f"hf:{self.reference}: {fact}", "data.source", remedy))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
