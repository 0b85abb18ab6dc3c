"""From a resolved manifest to a model, in one fixed order:

precision -> blocks on meta -> declared equals built -> shape check -> objectives extend
-> parallelism places -> weights load or initialise
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .backbone import CausalLM
from .component import Part
from .contracts import Context, Precision
from .distributed.cuts import Cut, fill, like_whole
from .errors import BestiaryError, Problem
from .manifest import Manifest, nested
from .table import ATTENTION, FFN, own_entries
from .weights import Entry

PROBE = (2, 4)
"""Batch and sequence length of the shape check."""


Model = TypeVar("Model", bound=CausalLM)


def assemble(
    manifest: Manifest,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kind: type[Model] = CausalLM,
    place: bool = True,
) -> Model:
    """The model with its parameters allocated but not filled.

    Args:
        manifest: the resolved manifest.
        device: where the parameters go; `meta` allocates nothing.
        dtype: dtype of parameters and activations. None stores what training needs, as the precision component says
            (fp32 master weights under `bf16`), and computes in the component's dtype.
        kind: the class of the model.
        place: whether its parallelism takes away what lies on other ranks.

    Raises:
        BestiaryError: a component builds other parameters than it declares, or breaks its slot's shape contract.
    """
    precision: Precision = manifest.precision.build(manifest.site)
    if dtype is not None:
        precision = precision.cast(dtype)
    with torch.device("meta"):
        model = kind(manifest, precision)
        _check_shapes(model)
        _extend(model)
    table = own_entries(manifest)
    _check_declared(model, table)
    for entry in table.values():
        _set_dtype(model, entry, precision)
    model.parallelism = manifest.parallelism.build(manifest.site)
    if place:
        model = cast(Model, model.parallelism.place(model))
    if torch.device(device).type != "meta":
        allocate(model, table, torch.device(device))
    return model


def allocate(model: CausalLM, table: dict[str, Entry], device: torch.device) -> None:
    """Gives every parameter storage on `device`, unfilled; buffers outside the table (statistics) become zero."""
    model.to_empty(device=device)
    clear_statistics(model, table)


@torch.no_grad()
def clear_statistics(model: CausalLM, table: Mapping[str, Entry] | None = None) -> None:
    """Sets buffers that are no weights (statistics of the step under way) to zero."""
    weights = own_entries(model.manifest) if table is None else table
    for name, buffer in model.named_buffers():
        if name not in weights:
            buffer.zero_()


@torch.no_grad()
def initialise(model: CausalLM, *, seed: int, only: Iterable[str] | None = None) -> None:
    """Fills parameters with fresh values: normal with the manifest's standard deviation, ones, or zeros.

    Each parameter draws from a generator seeded by `seed` and its own name, so that two models that share a
    parameter's name and shape start it equally, whatever else differs between them.
    """
    std = model.manifest.model.initializer_range
    tensors = state(model)
    names = tensors.keys() if only is None else set(only)
    for name, entry in own_entries(model.manifest).items():
        if name in names:
            _fill(tensors[name], entry, std, seed, model.cuts.get(name))


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name: the tensors themselves, not copies."""
    return dict(model.state_dict(keep_vars=True))


def _fill(tensor: Tensor, entry: Entry, std: float, seed: int, cut: Cut | None) -> None:
    if cut is not None or isinstance(tensor, DTensor):
        whole = like_whole(tensor, entry.weight.shape)
        _fill(whole, entry, std, seed, None)
        fill(tensor, whole, cut)
        return
    match entry.weight.init:
        case "ones":
            tensor.fill_(1)
        case "zeros":
            tensor.zero_()
        case "normal":
            key = hashlib.sha256(f"{seed}:{entry.name}".encode()).digest()
            generator = torch.Generator(tensor.device).manual_seed(int.from_bytes(key[:8], "little") >> 1)
            tensor.normal_(0.0, std, generator=generator)


def _extend(model: CausalLM) -> None:
    manifest = model.manifest
    site = replace(manifest.site, precision=model.precision, layer=manifest.model.num_hidden_layers)
    for key, part in manifest.objectives.items():
        goal = part.build(site)
        added = goal.extend(model, site)
        if added is not None:
            model.objectives[key] = added
        model.goals[key] = goal


def _check_declared(model: CausalLM, table: dict[str, Entry]) -> None:
    built = {name: tuple(tensor.shape) for name, tensor in state(model).items()}
    declared = {name: entry.weight.shape for name, entry in table.items()}
    problems = [
        Problem(f"built as {built.get(name, 'nothing')}, declared as {declared.get(name, 'nothing')}.", name)
        for name in sorted(built.keys() | declared.keys())
        if built.get(name) != declared.get(name)
    ]
    if problems:
        remedy = "Make the component's `weights` list exactly the parameters and persistent buffers of the module that `build` makes."
        raise BestiaryError(*problems[:8], Problem(remedy))


def _set_dtype(model: CausalLM, entry: Entry, precision: Precision) -> None:
    path, _, name = entry.name.rpartition(".")
    owner, dtype = model.get_submodule(path), precision.storage_dtype(entry.weight.role)
    if name in owner._parameters:
        old: Any = owner._parameters[name]
        owner._parameters[name] = nn.Parameter(old.detach().to(dtype), requires_grad=old.requires_grad)
    else:
        owner._buffers[name] = owner._buffers[name].to(dtype)  # type: ignore[union-attr]


@torch.no_grad()
def _check_shapes(model: CausalLM) -> None:
    """Runs one layer of every kind on `[2, 4, D]` without data, where a component comes from someone else."""
    batch, length = PROBE
    x = torch.empty(batch, length, model.manifest.model.hidden_size, dtype=model.precision.compute_dtype)
    for start, _, layer in model.manifest.runs():
        block = model.model.layers[start]
        for slot, part in ((ATTENTION, layer.attention), (FFN, layer.ffn)):
            if _built_in(part) and _built_in(model.manifest.precision):
                continue
            y = getattr(block, slot)(x, Context(torch.empty(1, length, dtype=torch.int64)))
            if y.shape != x.shape or y.dtype != x.dtype:
                raise BestiaryError(
                    Problem(
                        f"'{part.use}' turns {tuple(x.shape)} {x.dtype} into {tuple(y.shape)} {y.dtype}; "
                        "its slot must keep shape and dtype.",
                        f"layer {start}, {slot}",
                        f"Mend the component{f', from {part.component.origin}' if part.component.origin else ''}.",
                    )
                )


def _built_in(part: Part) -> bool:
    return all(inner.component.origin is not None and inner.component.origin.built_in for _, inner in nested(part))
