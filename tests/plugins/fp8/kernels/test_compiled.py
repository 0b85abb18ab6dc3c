"""The kernels compiled for Hopper, ahead of time and without a GPU: registers, spills, shared memory, and the instructions that matter.

Every row of the table of configurations is compiled.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton.language as tl

from bestiary.plugins.fp8.kernels import norm, swiglu
from bestiary.plugins.fp8.kernels.configurations import TABLE, configuration
from bestiary.plugins.fp8.kernels.dequantize import dequantise_kernel
from bestiary.plugins.fp8.kernels.product import DENSE, GROUPED, MASKED, product_kernel
from bestiary.plugins.fp8.kernels.quantize import program, quantise_kernel
from bestiary.plugins.fp8.kernels.tokens import tokens_kernel
from bestiary.plugins.fp8.kernels.weight_gradient import weight_gradient_kernel
from tests.kernels.compiler import SHARED, assembly, compiled, usage

FP8 = {"codes": "*fp8e4nv", "turned": "*fp8e4nv", "gate_codes": "*fp8e4nv", "up_codes": "*fp8e4nv"}
FACTORS = ("scale", "x_scale", "a_scale", "b_scale", "gate_scale", "up_scale", "inverse", "partial")
TYPES = FP8 | dict.fromkeys(FACTORS, "*fp32") | {"floor": "fp32", "eps": "fp32", "tiles": "*i32", "ends": "*i32", "where": "*i32"}
CODES = {"LARGEST": 448.0, "POWER_OF_TWO": True}


def rows_of(*kernels: str) -> list[Any]:
    """The table's configurations of some kernels."""
    return [pytest.param(name, how, id=f"{name}-{bound}") for name in kernels for bound, how in TABLE[name]]


def built(kernel: Any, folder: Path, constants: dict[str, Any], how: dict[str, Any], **types: str) -> Any:
    """The kernel, of which all pointers, and sizes of matrices, are multiples of 16; it fits an SM and spills nothing."""
    options = {name: how[name] for name in ("num_warps", "num_stages") if name in how}
    constants = constants | {name: value for name, value in how.items() if name not in options}
    if "DESCRIPTORS" in constants:
        constants["DESCRIPTORS"], options["enable_fp_fusion"] = types["a"].startswith("tensordesc"), True
    signature = {name: (TYPES | types).get(name, "i32") for name in kernel.arg_names}
    aligned = [
        name
        for name, kind in signature.items()
        if kind.startswith("*") or name in ("n", "k", "columns", "size", "stride", "width", "padded")
    ]
    made = compiled(kernel, signature, constants, tuple(name for name in aligned if name not in constants), **options)
    registers, stack = usage(made.asm["cubin"], folder)
    assert (registers <= 255, stack, made.metadata.shared <= SHARED) == (True, 0, True), (registers, stack, made.metadata.shared)
    assert not re.search(r"\b(STL|LDL)\b", assembly(made.asm["cubin"], folder))
    return made


def rounds_rightly(kernel: Any) -> None:
    ptx = kernel.asm["ptx"]
    assert "cvt.rn.satfinite.e4m3x2.f32" in ptx and "div.rn.f32" in ptx and "div.full" not in ptx


PRODUCTS = [(row, layout, out) for row in rows_of("product") for layout, out in ((DENSE, "bf16"), (GROUPED, "bf16"))]
PRODUCTS += [(row, DENSE, "fp32") for row in rows_of("product_rows")] + [(row, MASKED, "bf16") for row in rows_of("masked")]


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize(
    ("name", "how", "layout", "out"), [pytest.param(*row.values, *rest, id=f"{row.id}-{rest[0]}") for row, *rest in PRODUCTS]
)
def test_products_use_tensor_cores(name: str, how: dict[str, int], layout: int, out: str, descriptors: bool, tmp_path: Path) -> None:
    constants = {"A_ROWS": 1, "B_ROWS": 1 if name == "product_rows" else 128, "LAYOUT": layout, "STEP": 128}
    kernel = built(product_kernel, tmp_path, constants, how, **operands(how, descriptors), out=f"*{out}")
    text = assembly(kernel.asm["cubin"], tmp_path)
    assert re.search(r"QGMMA.*E4M3\.E4M3", text), "FP8 products of Hopper's tensor cores"
    assert ("UTMALDG" in text) == descriptors, "the tensor memory accelerator fetches"
    assert name == "product_rows" or text.count("FFMA") >= how["BLOCK_M"] * how["BLOCK_N"] // (32 * how["num_warps"]) > text.count("FMUL")


def operands(how: dict[str, int], descriptors: bool, a: str = "fp8e4nv") -> dict[str, Any]:
    """Types of `a` and `b`."""
    if not descriptors:
        return {"a": f"*{a}", "b": "*fp8e4nv"}
    return {"a": f"tensordesc<{a}[{how['BLOCK_M']}, 128]>", "b": f"tensordesc<fp8e4nv[{how['BLOCK_N']}, 128]>"}


@pytest.mark.parametrize(("name", "how"), rows_of("weight_gradient"))
@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("grad", ["fp8e4nv", "fp8e5"])
def test_weight_gradients_use_tensor_cores(name: str, how: dict[str, int], grad: str, descriptors: bool, tmp_path: Path) -> None:
    kernel = built(weight_gradient_kernel, tmp_path, {"TILE": 128}, how, **operands(how, descriptors, grad), out="*fp32")
    assert "QGMMA" in assembly(kernel.asm["cubin"], tmp_path)


@pytest.mark.parametrize("source", ["bf16", "fp32"])
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)])
def test_quantisers(tile: tuple[int, int], power: bool, source: str, tmp_path: Path) -> None:
    for turned in {False, tile == (128, 128)}:
        constants = {"LARGEST": 448.0, "POWER_OF_TWO": power, "TURNED": turned}
        rounds_rightly(built(quantise_kernel, tmp_path, constants, program(tile), x=f"*{source}"))


@pytest.mark.parametrize("out", ["bf16", "fp32"])
def test_dequantiser(out: str, tmp_path: Path) -> None:
    built(dequantise_kernel, tmp_path, {"HEIGHT": 128, "WIDTH": 128}, TABLE["dequantise"][0][1], out=f"*{out}")


@pytest.mark.parametrize("decode", [False, True])
def test_codes_along_tokens(decode: bool, tmp_path: Path) -> None:
    constants = CODES | {"DECODE": decode, "DTYPE": tl.bfloat16, "TILE": 128}
    kernel = built(tokens_kernel, tmp_path, constants, TABLE["tokens"][0][1], x="*fp8e4nv" if decode else "*bf16")
    rounds_rightly(kernel)


@pytest.mark.parametrize("routed", [False, True])
def test_swiglu(routed: bool, tmp_path: Path) -> None:
    numbers = dict.fromkeys(("gate", "up", "weights", "hidden"), "*bf16")
    constants = CODES | {"WEIGHTED": routed, "HIDDEN": False, "KEEP": True, "TILE": 128}
    rounds_rightly(built(swiglu.swiglu_kernel, tmp_path, constants, TABLE["swiglu"][0][1], **numbers))
    numbers = dict.fromkeys(("grad", "weights", "to_gate", "to_up", "to_weights"), "*bf16") | dict.fromkeys(("gate", "up"), "*fp8e4nv")
    constants = {"WEIGHTED": routed, "CODES": True, "TILE": 128}
    built(swiglu.gradient_kernel, tmp_path, constants, TABLE["swiglu_gradient"][0][1], **numbers)


@pytest.mark.parametrize("size", [2048, norm.WIDEST])
def test_norms(size: int, tmp_path: Path) -> None:
    numbers = dict.fromkeys(("x", "y", "grad", "to_x"), "*bf16") | {"weight": "*fp32"}
    constants = CODES | {"TILES": size // 128, "TILE": 128}
    rounds_rightly(built(norm.norm_kernel, tmp_path, constants, configuration("norm", size), **numbers))
    built(norm.gradient_kernel, tmp_path, {"WIDTH": size}, configuration("norm", size), **numbers)
