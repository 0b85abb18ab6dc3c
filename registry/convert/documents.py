"""The small files of a converted checkpoint: the source's own, with what the conversion changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.blocks import Block
from ...core.manifest import Manifest
from ..checkpoint import INDEX
from ..dtypes import FLOATS
from ..pull import small_files
from ..record import RECORD, record
from ..safe_json import read_object
from .options import Options

CONFIG = "config.json"


def converted_manifest(manifest: Manifest, options: Options, block: Block) -> Manifest:
    """The manifest of the new checkpoint: the same model, stored otherwise."""
    changes: dict[str, Any] = {}
    if options.to is not None:
        changes["weight_block_size"] = block if options.to == "fp8" else None
        if options.to != "fp8":
            changes["dtype"] = FLOATS[options.plain]
    return replace(manifest, hub=manifest.hub.model_copy(update=changes))


def documents(folder: Path, manifest: Manifest, options: Options, index: dict[str, Any] | None) -> dict[str, bytes]:
    """Name to content of everything beside the weights.

    Args:
        folder: the source.
        manifest: of the new checkpoint.
        options: what was asked for.
        index: of the new checkpoint; None when it has one file.
    """
    names = small_files(sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")))
    files = {name: (folder / name).read_bytes() for name in names if name != INDEX}
    if CONFIG in files:
        files[CONFIG] = _text(_config(read_object(folder / CONFIG), manifest, options))
    if RECORD in files:
        held = read_object(folder / RECORD)
        told = {key: held[key] for key in ("source", "figures") if isinstance(held.get(key), dict)}
        files[RECORD] = _text(record(manifest, **told))
    if index is not None:
        files[INDEX] = json.dumps(index, separators=(",", ":")).encode()
    return files


def _config(config: dict[str, Any], manifest: Manifest, options: Options) -> dict[str, Any]:
    block = manifest.hub.weight_block_size
    if options.to is not None:
        config.pop("quantization_config", None)
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = FLOATS[options.plain]
        if block:
            scales = {"scale_fmt": "ue8m0"} if options.power_of_two_scales else {}
            fixed = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
            config["quantization_config"] = {**fixed, **scales, "weight_block_size": list(block)}
    if options.names == "deepseek" and "num_nextn_predict_layers" in config:
        config["num_nextn_predict_layers"] = 0
    return config


def _text(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
