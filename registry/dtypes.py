"""Names and sizes of number formats: safetensors' (`BF16`), configs' and torch's (`bfloat16`)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
"""Bytes per number, by safetensors name."""

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Formats from which parameters are read directly."""

FP8 = "F8_E4M3"
"""The format of block-quantised weights."""


@cache
def stored_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors name in which its bytes are what they are, FP8 included."""
    import torch

    return torch.float8_e4m3fn if name == FP8 else getattr(torch, FLOATS[name])


@cache
def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors name; FP8 gives the format in which its numbers come out, bf16."""
    import torch

    return getattr(torch, FLOATS.get(name, "bfloat16"))


def config_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def hub_name(config: str) -> str:
    """`BF16` for `bfloat16`; `F32` for anything unknown."""
    return next((hub for hub, name in FLOATS.items() if name == config), "F32")
