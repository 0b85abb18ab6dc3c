"""The kernels compiled for Hopper, ahead of time and without a GPU: registers, spills, shared memory, and the instructions that matter."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bestiary.plugins.fp8.kernels.product import STEP, configuration, product_kernel
from bestiary.plugins.fp8.kernels.quantize import quantise_kernel, shape_of_program
from tests.kernels.compiler import SHARED, assembly, compiled, usage


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("rows", [64, 4096])
@pytest.mark.parametrize("b_rows", [1, 128])
@pytest.mark.parametrize("out", ["bf16", "fp32"])
def test_products_use_tensor_cores_and_spill_nothing(rows: int, b_rows: int, out: str, grouped: bool, tmp_path: Path) -> None:
    how = configuration(rows, b_rows)
    options = {name: how.pop(name) for name in ("num_warps", "num_stages")}
    constants = {"A_ROWS": 1, "B_ROWS": b_rows, "GROUPED": grouped, "STEP": STEP, **how}
    types = dict.fromkeys(product_kernel.arg_names, "i32") | {"a": "*fp8e4nv", "b": "*fp8e4nv", "out": f"*{out}", "blocks": "*i32"}
    types |= {"a_scale": "*fp32", "b_scale": "*fp32"}
    kernel = compiled(product_kernel, types, constants, ("a", "b", "out", "blocks", "a_scale", "b_scale", "n", "k"), **options)
    registers, stack = usage(kernel.asm["cubin"], tmp_path)
    assert (registers <= 255, stack, kernel.metadata.shared <= SHARED) == (True, 0, True), (registers, stack, kernel.metadata.shared)
    text = assembly(kernel.asm["cubin"], tmp_path)
    assert "QGMMA" in text and "E4M3" in text, "FP8 products of Hopper's tensor cores"
    assert not re.search(r"\b(STL|LDL)\b", text)


@pytest.mark.parametrize("source", ["bf16", "fp32"])
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)])
def test_quantisers_spill_nothing_and_round_rightly(tile: tuple[int, int], power: bool, source: str, tmp_path: Path) -> None:
    height, width = shape_of_program(tile)
    constants = {"LARGEST": 448.0, "POWER_OF_TWO": power, "ROWS": height, "COLUMNS": width, "TILE_ROWS": tile[0], "TILE_COLUMNS": tile[1]}
    types = dict.fromkeys(quantise_kernel.arg_names, "i32") | {"x": f"*{source}", "codes": "*fp8e4nv", "scale": "*fp32", "floor": "fp32"}
    kernel = compiled(quantise_kernel, types, constants, ("x", "codes", "scale", "columns"))
    registers, stack = usage(kernel.asm["cubin"], tmp_path)
    assert registers <= 255 and stack == 0, (registers, stack)
    ptx = kernel.asm["ptx"]
    assert "cvt.rn.satfinite.e4m3x2.f32" in ptx and "div.rn.f32" in ptx and "div.full" not in ptx
