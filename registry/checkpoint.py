"""A folder with safetensors: one file, or shards and an index, read by their headers alone."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..core.errors import BestiaryError, Problem
from .header import AGAIN, Stored, read_header
from .safe_json import INDEX as LONGEST_INDEX
from .safe_json import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors that a folder holds."""

    folder: Path
    tensors: Mapping[str, Stored]
    """By name, file after file, in the order of their bytes."""


def open_checkpoint(folder: Path, wanted: Collection[str] | None = None) -> Checkpoint:
    """Reads the headers of a folder's safetensors.

    Args:
        folder: holds them.
        wanted: names of tensors; shards that the index gives none of these need not be there. None for all.

    Raises:
        BestiaryError: there are none, or the index or a file is damaged; all damaged files are named together.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise BestiaryError(f"{folder}: it holds both {SINGLE} and {INDEX}, so two sets of weights. Remove one of them.")
    if index.exists():
        return Checkpoint(folder, _sharded(folder, index, wanted))
    if single.exists():
        return Checkpoint(folder, {tensor.name: tensor for tensor in read_header(single)})
    raise BestiaryError(_nothing(folder))


def _nothing(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{folder}: its weights are in pickle files, which can run code when read, and no safetensors are there. Convert them "
            "where you trust them: load them with transformers and call save_pretrained, which writes safetensors."
        )
    return f"{folder}: it holds neither {SINGLE} nor {INDEX}. Fetch the weights, or give the folder that has them."


def _sharded(folder: Path, index: Path, wanted: Collection[str] | None) -> dict[str, Stored]:
    table = weight_map(index)
    files = dict.fromkeys(file for name, file in table.items() if wanted is None or name in wanted)
    problems: list[Problem] = []
    tensors: dict[str, Stored] = {}
    for name in files:
        try:
            for tensor in read_header(_present(folder, index, name)):
                if table.get(tensor.name) != name:
                    problems.append(Problem(f"{index.name} does not place tensor {tensor.name} there.", str(folder / name), AGAIN))
                tensors[tensor.name] = tensor
        except BestiaryError as error:
            problems.extend(error.problems)
    if not problems:
        absent = [(tensor, name) for tensor, name in table.items() if name in files and tensor not in tensors]
        problems = [Problem(f"tensor {t} is not there, although {index.name} says so.", str(folder / name), AGAIN) for t, name in absent]
    if problems:
        raise BestiaryError(*problems)
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """The table of an index from tensors to files, all of them inside its folder.

    Raises:
        BestiaryError: it is no index, or names a file elsewhere or one that holds no safetensors.
    """
    table = read_object(index, most=LONGEST_INDEX, remedy=AGAIN).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise BestiaryError(f"{index}: there is no table `weight_map` from tensors to files in it. {AGAIN}")
    for name in dict.fromkeys(table.values()):
        path = PurePosixPath(name)
        leaves = path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive
        if leaves or path.suffix != ".safetensors":
            fact = f"it names the file '{name}', and shards are .safetensors files inside its folder."
            raise BestiaryError(Problem(fact, str(index), "Do not use this checkpoint unless you know who made it."))
    return table


def _present(folder: Path, index: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if not os.path.isfile(folder / path):
        raise BestiaryError(Problem(f"the shard '{name}' is missing.", str(index), "Fetch it; the download was perhaps cut off."))
    return folder / path
