"""What a model costs, summed from what its components report; nothing is built, no formula knows a whole model.

Conventions, the same for every figure that Bestiary prints:

- *active* parameters are those that one token uses, with the head and without the input embedding (DeepSeek's "37B").
- FLOPs count 2 for each active trained parameter and forward pass ("6N" for training: the backward pass counts
  twice), plus attention: each query meets `(sequence_length) / 2` keys on average when causal, all of them
  in the non-causal figure that some reports use.
- memory is what tensors hold, allocator overhead left out. Activations are what autograd keeps with an attention kernel that
  keeps no probabilities; `core.layers.attend` on a CPU keeps up to `heads * sequence_length / 2` more per token and layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .component import Cost, Storage
from .manifest import Manifest
from .table import entries
from .weights import Entry, Role

GRADIENT_STATE = 3
"""Forward once, backward twice."""
COPIED: tuple[Role, ...] = ("linear", "expert", "projection", "head")
"""Roles of which training keeps a copy to compute with, where master weights are wider (`Storage.copy`)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.cache


@dataclass(frozen=True)
class Account:
    """The figures of one model at one sequence length."""

    sequence_length: int
    parameters: int
    """Of the main model, router biases included, what objectives add left out."""
    active_parameters: int
    """Used by one token: head included, input embedding left out."""
    objective_parameters: int
    """Added by objectives (MTP), copies of embedding and head left out."""
    flops_forward: float
    """Per token of a sequence of this length, causal attention, objectives left out."""
    flops_forward_noncausal: float
    flops_training: float
    """Per token, forward and backward, with what objectives add."""
    flops_training_main: float
    """The same without what objectives add."""
    flops_training_noncausal: float
    cache_bytes_per_token: float
    """Of the decoding cache, in the dtype of activations."""
    training: Memory
    """One sequence of this length on one device, AdamW, nothing recomputed."""
    inference: Memory
    """One sequence of this length on one device."""

    def table(self) -> dict[str, Any]:
        data = asdict(self)
        for name in ("training", "inference"):
            data[name]["total"] = getattr(self, name).total
        return data


def account(manifest: Manifest, *, sequence_length: int | None = None) -> Account:
    """Counts a model, in milliseconds.

    Args:
        manifest: the resolved manifest.
        sequence_length: tokens per sequence; at most 4096 by default, or what the model was made for.
    """
    length = sequence_length or min(4096, manifest.model.max_position_embeddings)
    rows = [entry for entry in entries(manifest) if not entry.weight.duplicate_of]
    main = [entry for entry in rows if entry.part not in manifest.objectives]
    added = [entry for entry in rows if entry.part in manifest.objectives]
    layers, objectives = layer_cost(manifest), objective_cost(manifest)
    storage = manifest.precision.storage()
    forward, wide = _forward(main, manifest, layers, length)
    extra, extra_wide = _forward(added, None, objectives, length)
    return Account(
        sequence_length=length,
        parameters=_count(main),
        active_parameters=_active(main, manifest),
        objective_parameters=_count(added),
        flops_forward=forward,
        flops_forward_noncausal=wide,
        flops_training=GRADIENT_STATE * (forward + extra),
        flops_training_main=GRADIENT_STATE * forward,
        flops_training_noncausal=GRADIENT_STATE * (wide + extra_wide),
        cache_bytes_per_token=layers.cache_elements * storage.activation,
        training=_training(rows, manifest, layers, objectives, storage, length),
        inference=_inference(main, layers, storage, length),
    )


def layer_costs(manifest: Manifest) -> list[Cost]:
    """The cost of every block, its norms included."""
    norms = Cost(saved_elements=2 * manifest.model.hidden_size)
    costs: list[Cost] = []
    for start, stop, layer in manifest.runs():
        parts = (part.cost(manifest.site.at(start)) for part in (layer.attention, layer.ffn))
        costs += [add([norms, *parts])] * (stop - start)
    return costs


def layer_cost(manifest: Manifest) -> Cost:
    """The cost of all blocks together, their norms included."""
    return add(layer_costs(manifest))


def objective_cost(manifest: Manifest) -> Cost:
    """The cost of what all objectives add."""
    site = manifest.site.at(manifest.model.num_hidden_layers)
    return add(part.cost(site) for part in manifest.objectives.values())


def add(costs: Iterable[Cost]) -> Cost:
    """The sum, field by field."""
    total: dict[str, int] = asdict(Cost())
    for cost in costs:
        for name, value in asdict(cost).items():
            total[name] += value
    return Cost(**total)


def _count(rows: Iterable[Entry]) -> int:
    return sum(entry.weight.numel for entry in rows)


def _active(rows: list[Entry], manifest: Manifest) -> int:
    return sum(entry.weight.active_numel for entry in rows) + _tied_head(manifest)


def _tied_head(manifest: Manifest | None) -> int:
    """A tied embedding is used as the head."""
    if manifest is None or not manifest.model.tie_word_embeddings:
        return 0
    return manifest.model.vocab_size * manifest.model.hidden_size


def _forward(rows: list[Entry], manifest: Manifest | None, cost: Cost, length: int) -> tuple[float, float]:
    """FLOPs per token of a forward pass: causal, non-causal."""
    used = sum(entry.weight.active_numel for entry in rows if entry.weight.role != "state")
    products = 2 * (used + _tied_head(manifest) + cost.reused_parameters)
    return products + cost.pair_macs * length, products + 2 * cost.pair_macs * length


def _training(rows: list[Entry], manifest: Manifest, layers: Cost, objectives: Cost, storage: Storage, length: int) -> Memory:
    trained = sum(entry.weight.numel for entry in rows if entry.weight.role != "state")
    state = _count(rows) - trained
    size = manifest.model.vocab_size * manifest.model.hidden_size
    heads = 1 + objectives.reused_parameters / size
    saved = (layers.saved_elements + objectives.saved_elements) * storage.activation + 4 * (layers.saved_fp32 + objectives.saved_fp32)
    top = heads * (manifest.model.vocab_size + 2 * manifest.model.hidden_size) * storage.activation
    matrices = sum(entry.weight.numel for entry in rows if entry.weight.role in COPIED)
    return Memory(
        weights=int(trained * storage.master + matrices * storage.copy + state * 4),
        gradients=int(trained * storage.gradient),
        optimizer=int(trained * storage.moments),
        activations=int(length * (saved + top)),
    )


def _inference(rows: list[Entry], layers: Cost, storage: Storage, length: int) -> Memory:
    low = sum(entry.weight.numel for entry in rows if entry.weight.role in ("linear", "expert"))
    state = sum(entry.weight.numel for entry in rows if entry.weight.role == "state")
    high = _count(rows) - low - state
    return Memory(
        weights=int(low * storage.inference + high * storage.inference_high + 4 * state),
        cache=int(length * layers.cache_elements * storage.activation),
    )
