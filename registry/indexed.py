"""A checkpoint that is not here, from its index and manifest alone: which file holds which tensor, of what shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.manifest import Manifest
from ..core.table import entries
from .catalog import list_models
from .checkpoint import INDEX, SINGLE, Checkpoint, open_checkpoint, weight_map
from .dtypes import FP8, SIZES, hub_name
from .header import Stored
from .layout import SCALE, scale_shape
from .ranges import remote_header
from .repository import Folder, Repository, open_repository


def checkpoint_of(repository: Repository, folder: Path, manifest: Manifest) -> Checkpoint:
    """What is known of a repository's tensors without fetching its weights.

    Args:
        repository: where they are.
        folder: the local folder with its index, if it has one.
        manifest: what its config says.

    Raises:
        BestiaryError: index or header is damaged.
    """
    sizes = {file.path: file.size for file in repository.files()}
    if INDEX in sizes:
        return from_index(manifest, weight_map(folder / INDEX), folder)
    if isinstance(repository, Folder) or SINGLE not in sizes:
        return open_checkpoint(folder)
    return Checkpoint(folder, {tensor.name: tensor for tensor in remote_header(repository, SINGLE, sizes[SINGLE])})


def from_index(manifest: Manifest, table: Mapping[str, str], folder: Path) -> Checkpoint:
    """The tensors that an index names, with the shapes of the manifest; names that it does not know get no elements.

    Offsets count from the start of each tensor, since an index does not say where in its file one begins.
    """
    shapes = {piece.hub: (piece.shape, entry.weight.role) for entry in entries(manifest) for pieces in entry.layouts() for piece in pieces}
    plain, block = hub_name(manifest.hub.dtype), manifest.hub.weight_block_size
    tensors = {}
    for name, file in table.items():
        known = shapes.get(name.removesuffix(SCALE) if block else name)
        if known is None:
            tensors[name] = Stored(folder / file, name, plain, (0,), 0, 0)
            continue
        shape, role = known
        dtype = "F32" if role == "state" else plain
        if block and name.endswith(SCALE):
            shape, dtype = scale_shape(shape, block), "F32"
        elif block and name + SCALE in table:
            dtype = FP8
        tensors[name] = Stored(folder / file, name, dtype, shape, 0, math.prod(shape) * SIZES[dtype])
    return Checkpoint(folder, tensors)


@dataclass(frozen=True)
class Holdings:
    """What a repository or folder really holds."""

    tensors: int
    nbytes: int
    """Of its safetensors files, headers included."""
    files: int
    commit: str


def holdings(reference: str) -> Holdings | None:
    """What lies where a reference points, from its index or header; None for manifests without weights."""
    if reference in list_models() or Path(reference).expanduser().is_file():
        return None
    repository = open_repository(reference)
    sizes = {file.path: file.size for file in repository.files()}
    if INDEX in sizes:
        table = weight_map(repository.fetch([INDEX]) / INDEX)
        files, tensors = set(table.values()) & sizes.keys(), len(table)
    elif SINGLE in sizes:
        files, tensors = {SINGLE}, len(remote_header(repository, SINGLE, sizes[SINGLE]))
    else:
        return None
    return Holdings(tensors, sum(sizes[name] for name in files), len(files), repository.commit)
