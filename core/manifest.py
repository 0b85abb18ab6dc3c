"""A resolved manifest: one component and its checked options for every slot of every layer.

This is what a model is. It is plain data all the way down, can be written out and read back, and has a
digest: same digest, same model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from pydantic import Field

from .component import Component, Options, Part
from .site import Site

SCHEMA = 1
MOST_LAYERS = 10_000
"""A deeper model is a typing error, or an attack on memory."""


class ModelOptions(Options):
    """What gives shape and is shared by all parts."""

    hidden_size: int = Field(gt=0)
    """Width of the residual stream (D)."""
    num_hidden_layers: int = Field(gt=0, le=MOST_LAYERS)
    """Number of blocks, without those that an objective adds."""
    num_attention_heads: int = Field(gt=0)
    """Query heads per attention (H)."""
    vocab_size: int = Field(gt=0)
    """Rows of the embedding and of the head (V)."""
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in every RMSNorm of a block."""
    tie_word_embeddings: bool = False
    """Whether the head is the embedding."""
    max_position_embeddings: int = Field(default=4096, gt=0)
    """Longest sequence that the weights were made for."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of freshly initialised matrices (0.006 in DeepSeek-V3's report, section 4.2)."""
    bos_token_id: int | None = None
    """Token that begins a text."""
    eos_token_id: int | list[int] | None = None
    """Token or tokens that end a text."""


class HubOptions(Options):
    """Where published weights are and how they are stored there; no part of the model's identity."""

    repo: str = ""
    """`organisation/name` on the Hugging Face Hub."""
    license: str = ""
    """Licence of the published weights."""
    dtype: str = "bfloat16"
    """Dtype of the published tensors that are not block-quantised."""
    weight_block_size: tuple[int, int] | None = None
    """Rows and columns of an FP8 block; None when the published weights are not FP8."""
    model_type: str = ""
    """The `model_type` to write into `config.json` where several share one architecture (`kimi_k2`)."""


@dataclass(frozen=True)
class Layer:
    """The two components of one block."""

    attention: Part
    ffn: Part

    def table(self) -> dict[str, Any]:
        return {"attention": self.attention.table(), "ffn": self.ffn.table()}


@dataclass(frozen=True)
class Setting:
    """One resolved option and who set it: a row of `bestiary explain`."""

    path: str
    value: Any
    source: str


@dataclass(frozen=True)
class Manifest:
    """A model, as data."""

    name: str
    model: ModelOptions
    layers: tuple[Layer, ...]
    precision: Part
    parallelism: Part
    objectives: Mapping[str, Part]
    hub: HubOptions = field(default_factory=HubOptions)
    description: str = ""
    settings: tuple[Setting, ...] = field(default=(), compare=False, repr=False)

    @cached_property
    def site(self) -> Site:
        """The site of the model itself; parts of layer i stand at `site.at(i)`."""
        m = self.model
        return Site(
            hidden_size=m.hidden_size,
            num_hidden_layers=m.num_hidden_layers,
            num_attention_heads=m.num_attention_heads,
            vocab_size=m.vocab_size,
            rms_norm_eps=m.rms_norm_eps,
            block=(self.layers[-1].attention, self.layers[-1].ffn),
        )

    def runs(self) -> list[tuple[int, int, Layer]]:
        """Equal neighbouring layers as `(start, stop, layer)`."""
        runs: list[tuple[int, int, Layer]] = []
        for _, group in groupby(enumerate(self.layers), key=lambda item: _canonical(item[1].table())):
            members = list(group)
            runs.append((members[0][0], members[-1][0] + 1, members[0][1]))
        return runs

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every filled slot with its dotted path, equal layers once."""
        for start, stop, layer in self.runs():
            yield f'block.at."{start}:{stop}".attention', layer.attention
            yield f'block.at."{start}:{stop}".ffn', layer.ffn
        yield "precision", self.precision
        yield "parallelism", self.parallelism
        for key, part in self.objectives.items():
            yield f"objective.{key}", part

    def components(self) -> list[Component[Any]]:
        """Every component that the model is made of, sub-slots included, each once."""
        return list(self.components_by_slot().values())

    def components_by_slot(self) -> dict[str, Component[Any]]:
        """The same, by `slot/name`."""
        found: dict[str, Component[Any]] = {}
        for path, part in self.parts():
            slot = "objective" if path.startswith("objective.") else path.rpartition(".")[2]
            for inner_slot, inner in nested(part, slot):
                found.setdefault(f"{inner_slot}/{inner.use}", inner.component)
        return found

    def table(self) -> dict[str, Any]:
        """The whole manifest with every default filled in; reading it back gives the same manifest."""
        return {
            "schema": SCHEMA,
            "description": self.description,
            **self._identity(),
            "block": self._block(),
            "objective": {key: part.table() for key, part in self.objectives.items()},
            "parallelism": self.parallelism.table(),
            "hub": self.hub.model_dump(mode="json", exclude_defaults=True),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that can change a result; `[parallelism]` and `[hub]` cannot."""
        objectives = [[key, part.table()] for key, part in self.objectives.items()]
        return hashlib.sha256(_canonical({**self._identity(), "objective": objectives}).encode()).hexdigest()

    def _block(self) -> dict[str, Any]:
        """The last layer's components as those of every layer, and rows for the layers that differ, so that a change of
        `block.attention` laid on top means what it would mean in a manifest written by hand."""
        base = self.layers[-1].table()
        rows = {
            f"{start}:{stop}": {slot: table for slot, table in layer.table().items() if table != base[slot]}
            for start, stop, layer in self.runs()
        }
        return base | {"at": {key: row for key, row in rows.items() if row}}

    def _identity(self) -> dict[str, Any]:
        at = {f"{start}:{stop}": layer.table() for start, stop, layer in self.runs()}
        return {"model": self.model.table(), "block": {"at": at}, "precision": self.precision.table()}


def nested(part: Part, slot: str = "") -> Iterator[tuple[str, Part]]:
    """The part and those in its sub-slots, each with the name of its slot."""
    yield slot, part
    for name in type(part.options).model_fields:
        value = getattr(part.options, name)
        if isinstance(value, Part):
            yield from nested(value, name)


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
