"""The table of a model's parameters, from its manifest alone: 61 layers in milliseconds, nothing built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .errors import BestiaryError, Problem
from .manifest import Manifest
from .weights import Entry, Weight, norm

ATTENTION, FFN = "self_attn", "mlp"
"""What the two slots of a block are called in parameter names."""
MATRICES = 5_000_000
"""Most matrices of experts that a model may stack; DeepSeek-V3 has 45,240. More is a mistake, or an attack on memory."""


def entries(manifest: Manifest) -> list[Entry]:
    """Every parameter and persistent buffer of the model, and every duplicate that the Hub stores, in saving order.

    Raises:
        BestiaryError: the model has more experts than any could have.
    """
    found, matrices = [], 0
    for entry in _entries(manifest):
        matrices += entry.weight.shape[0] if len(entry.weight.shape) > 2 else 0
        if matrices > MATRICES:
            fact = f"its layers have more than {MATRICES:,} matrices of experts, and no model has."
            raise BestiaryError(Problem(fact, f"{manifest.name}: {entry.name}", "Lower n_routed_experts or num_hidden_layers."))
        found.append(entry)
    return found


def _entries(manifest: Manifest) -> Iterator[Entry]:
    model, site = manifest.model, manifest.site
    size = (model.vocab_size, model.hidden_size)
    yield _place(Weight("embed_tokens.weight", size, "embedding", active=0), "model.", "embedding")
    for index, layer in enumerate(manifest.layers):
        prefix = f"model.layers.{index}."
        yield _place(norm("input_layernorm", model.hidden_size), prefix, "norm", index)
        for weight in layer.attention.weights(site.at(index)):
            yield _place(weight, f"{prefix}{ATTENTION}.", "attention", index)
        yield _place(norm("post_attention_layernorm", model.hidden_size), prefix, "norm", index)
        for weight in layer.ffn.weights(site.at(index)):
            yield _place(weight, f"{prefix}{FFN}.", "ffn", index)
    yield _place(norm("norm", model.hidden_size), "model.", "norm")
    if not model.tie_word_embeddings:
        yield _place(Weight("weight", size, "head"), "lm_head.", "head")
    for key, part in manifest.objectives.items():
        for weight in part.weights(site.at(model.num_hidden_layers)):
            if model.tie_word_embeddings and weight.duplicate_of == "lm_head.weight":
                weight = replace(weight, duplicate_of="model.embed_tokens.weight")
            yield Entry(f"objectives.{key}.{weight.name}", weight, "model.", key, site.num_hidden_layers)


def _place(weight: Weight, prefix: str, part: str, layer: int | None = None) -> Entry:
    return Entry(prefix + weight.name, weight, prefix, part, layer)


def own_entries(manifest: Manifest) -> dict[str, Entry]:
    """The entries that have a parameter of their own, by full name."""
    return {entry.name: entry for entry in entries(manifest) if not entry.weight.duplicate_of}
