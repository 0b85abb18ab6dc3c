"""Mends Triton's interpreter, which rounds FP8 and bf16 wrongly and multiplies the bits of bf16 (triton#8322): casts and dots by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

TYPES = {
    "fp32": (torch.float32, np.uint32),
    "fp64": (torch.float64, np.uint64),
    "fp16": (torch.float16, np.uint16),
    "bf16": (torch.bfloat16, np.uint16),
    "fp8e4nv": (torch.float8_e4m3fn, np.uint8),
    "fp8e5": (torch.float8_e5m2, np.uint8),
}
stock = interpreter._convert_float


def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """The bits of `data` as another float type, rounded to nearest."""
    if str(source) not in TYPES or str(target) not in TYPES or (rounding is not None and "RTZ" in str(rounding)):
        return stock(data, source, target, rounding)
    (old, _), (new, bits) = TYPES[str(source)], TYPES[str(target)]
    numbers = torch.frombuffer(bytearray(data.tobytes()), dtype=old) if data.size else torch.empty(0, dtype=old)
    return np.frombuffer(numbers.to(new).view(torch.uint8).numpy().tobytes(), dtype=bits).reshape(data.shape)


def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """Products of small floats in fp32."""
    wide = [h.data if str(h.dtype.scalar) == "fp32" else convert(h.data, h.dtype.scalar, tl.float32, None).view(np.float32) for h in (a, b)]
    return interpreter.TensorHandle(np.matmul(*wide, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def mend(patch: pytest.MonkeyPatch) -> None:
    """Replaces both, for as long as `patch` lasts."""
    patch.setattr(interpreter, "_convert_float", convert)
    patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
