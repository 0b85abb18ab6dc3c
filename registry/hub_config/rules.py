"""Rules between a Hub `config.json` and a manifest: one table per architecture, read in both directions.

A rule reads its keys of a config into *flat values* (`attention.kv_lora_rank`, see `flat`), and writes those values back.
Reading collects everything that cannot be taken over; writing consumes values, and whatever no rule consumed has no
place in that architecture's config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...core.errors import Problem

REQUIRED: Any = object()
"""Marks a key that every config of an architecture must have."""


def dotted(path: str) -> str:
    """A flat value's place in the manifest."""
    head, _, rest = path.partition(".")
    places = {
        "attention": "block.attention",
        "dense": "block.ffn",
        "moe": "block.ffn",
        "router": "block.ffn.router",
        "mtp": "objective.mtp",
    }
    return f"{places.get(head, head)}.{rest}"


class Inexpressible(Exception):
    """A manifest that a `config.json` cannot say, and why."""


@dataclass
class Config:
    """A `config.json` while it is read: its data, and what is wrong with it."""

    data: dict[str, Any]
    source: str
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, key: str, fact: str, remedy: str) -> None:
        self.problems.append(Problem(fact, f"{self.source}: {key}", remedy))

    def integer(self, key: str, absent: int) -> int:
        """A count; anything else is noted as a problem."""
        value = self.data.get(key)
        if value is None:
            return absent
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.refuse(key, f"expected a whole number, found {value!r}.", "Fetch config.json again.")
            return absent
        return value


Values = dict[str, Any]


class Rule(Protocol):
    """A correspondence between some keys and some flat values."""

    def read(self, config: Config, values: Values) -> None:
        """Puts what the config's keys say into `values`, and notes what it cannot take over."""
        ...

    def write(self, values: Values, config: dict[str, Any]) -> None:
        """Takes its own out of `values` and sets the config's keys.

        Raises:
            Inexpressible: these values have no form in this architecture's config.
        """
        ...


@dataclass(frozen=True)
class Key:
    """One key, one value."""

    key: str
    path: str
    absent: Any = REQUIRED
    """What transformers takes when the key is not there."""
    null: Any = None
    """What a JSON null stands for."""
    fill: Callable[[Values], Any] | None = None
    """What to write where the value is None but transformers would take another default."""
    omit: bool = False
    """Whether None is written by leaving the key away, where transformers cannot read a null."""

    def read(self, config: Config, values: Values) -> None:
        if self.key in config.data:
            value = config.data[self.key]
            values[self.path] = self.null if value is None else value
        elif self.absent is REQUIRED:
            config.refuse(self.key, "this key is missing.", "The architecture needs it: fetch config.json again, or add it.")
        else:
            values[self.path] = self.absent

    def write(self, values: Values, config: dict[str, Any]) -> None:
        if self.path in values:
            value = values.pop(self.path)
            if value is None and self.fill:
                value = self.fill(values)
            if value is not None or not self.omit:
                config[self.key] = value


@dataclass(frozen=True)
class Only:
    """A key that changes the function, in the one setting that is supported."""

    key: str
    value: Any
    why: str
    absent: Any = REQUIRED
    """What transformers takes when the key is not there; the supported value unless given."""

    def read(self, config: Config, values: Values) -> None:
        found = config.data.get(self.key, self.value if self.absent is REQUIRED else self.absent)
        if found != self.value and not (found is None and self.absent is REQUIRED):
            config.refuse(self.key, f"found {found!r}, supported is {self.value!r}.", self.why)

    def write(self, values: Values, config: dict[str, Any]) -> None:
        config[self.key] = self.value


@dataclass(frozen=True)
class Fixed:
    """A value that the architecture implies and its config never says."""

    path: str
    value: Any

    def read(self, config: Config, values: Values) -> None:
        values[self.path] = self.value

    def write(self, values: Values, config: dict[str, Any]) -> None:
        found = values.pop(self.path, self.value)
        if found != self.value:
            raise Inexpressible(f"{dotted(self.path)} = {found!r}, where this architecture always has {self.value!r}")


@dataclass(frozen=True)
class Unsaid:
    """Values that only training sees, for which configs have no key."""

    paths: tuple[str, ...]

    def read(self, config: Config, values: Values) -> None:
        return

    def write(self, values: Values, config: dict[str, Any]) -> None:
        for path in self.paths:
            values.pop(path, None)


@dataclass(frozen=True)
class When:
    """Rules that a config follows only if a condition holds, such as having any expert layer."""

    condition: Callable[[Config], bool]
    rules: tuple[Rule, ...]
    present: str
    """A value whose presence says, when writing, that the rules apply."""

    def read(self, config: Config, values: Values) -> None:
        if self.condition(config):
            for rule in self.rules:
                rule.read(config, values)

    def write(self, values: Values, config: dict[str, Any]) -> None:
        if self.present in values:
            for rule in self.rules:
                rule.write(values, config)


@dataclass(frozen=True)
class Family:
    """An architecture of the Hub and the `model_type`s that share it."""

    model_types: tuple[str, ...]
    """The first is written unless the manifest's `hub.model_type` names another."""
    architecture: str
    rules: tuple[Rule, ...]
