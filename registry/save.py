"""Models into the Hub's layout: safetensors, an index, `config.json` for transformers, vLLM and SGLang, and `bestiary.json`.

A folder appears complete or not at all: everything is written next to it first and moved into place at the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.manifest import Manifest
from .checkpoint import INDEX
from .dtypes import config_name
from .hub_config import config_from_manifest
from .record import RECORD, record, working_tree
from .staging import staged

if TYPE_CHECKING:
    import torch

    from ..core.backbone import CausalLM
    from ..core.blocks import Block
    from .shards import Shards

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class SaveReport:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    tensors: int
    nbytes: int
    """Bytes of all tensors."""
    not_expressed: str
    """Why there is no `config.json`; empty when there is one."""

    def __str__(self) -> str:
        text = f"{self.folder}: {self.tensors:,} tensors, {self.nbytes:,} bytes in {len(self.files)} files"
        return text if not self.not_expressed else f"{text}; only bestiary loads it. {self.not_expressed}"


def save(model: CausalLM, folder: str | Path, *, max_shard_size: int | str = "4GB", dtype: torch.dtype | None = None) -> SaveReport:
    """Writes a model as a Hub repository holds it.

    Experts become one tensor each, and copies of embedding and head are written where the Hub has them. A model that no
    architecture of transformers computes gets no `config.json`; the report says why, and `bestiary.load` still loads it.

    Args:
        model: on any device.
        folder: is created, or replaced if it holds a checkpoint; its other files (tokenizer, card) are kept.
        max_shard_size: bytes of one file, or a text like `"4GB"`; a single larger tensor gets a file of its own.
        dtype: what to save in; None keeps each parameter's own, codes and factors of FP8 blocks included. Selection biases
            stay at least fp32.

    Raises:
        BestiaryError: the folder holds something that is no checkpoint, or is a file; or only some matrices are FP8 blocks.
    """
    from .shards import Shards

    shards = Shards(model, max_shard_size, dtype)
    made = documents(model.manifest, shards)
    with staged(Path(folder)) as temporary:
        for name in shards.files:
            shards.write(name, temporary / name)
        for name, content in made.files.items():
            (temporary / name).write_bytes(content)
        files = tuple(sorted(path.name for path in temporary.iterdir()))
    return SaveReport(Path(folder), files, shards.tensors, shards.nbytes, made.not_expressed)


@dataclass(frozen=True)
class Documents:
    """The small files beside a model's weights."""

    manifest: Manifest
    """The model as these weights store it."""
    files: dict[str, bytes]
    """Name to content: index, configs and `bestiary.json`."""
    not_expressed: str
    """Why there is no `config.json`; empty when there is one."""


def documents(manifest: Manifest, shards: Shards) -> Documents:
    """What is written beside the files of `shards`."""
    hub = replace_hub(manifest, dtype=config_name(shards.dtype), block=shards.block)
    expressed = config_from_manifest(hub)
    files = {RECORD: _json(record(hub, source=working_tree(Path.cwd())))}
    if shards.index:
        files[INDEX] = json.dumps(shards.index, separators=(",", ":")).encode()
    if expressed.config is not None:
        files["config.json"] = _json(expressed.config)
    if special := _special_tokens(hub):
        files[GENERATION] = _json(special)
    return Documents(hub, files, expressed.reason)


def replace_hub(manifest: Manifest, *, dtype: str, block: Block | None) -> Manifest:
    """The manifest of weights stored in `dtype`, and in FP8 blocks of `block`, whatever the published ones are stored in."""
    return replace(manifest, hub=manifest.hub.model_copy(update={"dtype": dtype, "weight_block_size": block}))


def _special_tokens(manifest: Manifest) -> dict[str, Any]:
    tokens = {"bos_token_id": manifest.model.bos_token_id, "eos_token_id": manifest.model.eos_token_id}
    return {name: token for name, token in tokens.items() if token is not None}


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
