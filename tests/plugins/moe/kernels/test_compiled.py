"""The kernels compiled for Hopper, ahead of time and without a GPU, for the shapes of DeepSeek-V3."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bestiary.plugins.moe.kernels import plan, product, router, rows, tiles
from tests.kernels.compiler import SHARED, assembly, compiled, usage

INDICES = dict.fromkeys(("chosen", "place", "source", "padding", "counts", "experts"), "*i64")
FLOATS = dict.fromkeys(("bias", "scores", "weights", "factors", "out_factors", "weights_grad", "scores_grad", "logits_grad"), "*fp32")
NUMBERS = dict.fromkeys(("tokens", "copies", "blocks", "multiple", "width", "n", "k"), "i32")
TYPES = INDICES | FLOATS | NUMBERS | {"before": "*i32", "scale": "fp32"}
DIVIDED = {"width", "n", "k"}
"""Multiples of 16 in these shapes."""


def fits(kernel: Any, number: str, constants: dict[str, Any], how: dict[str, int], folder: Path, registers: int = 255, **types: str) -> str:
    """The instructions of a kernel that spills nothing, needs no more registers and fits into shared memory, for tensors of this type."""
    options = {name: how[name] for name in ("num_warps", "num_stages") if name in how}
    constants = constants | {name: size for name, size in how.items() if name not in options}
    every = dict.fromkeys(kernel.arg_names, f"*{number}") | TYPES | types
    aligned = tuple(name for name in kernel.arg_names if name not in constants and (every[name].startswith("*") or name in DIVIDED))
    binary = compiled(kernel, every, constants, aligned, **options)
    used, stack = usage(binary.asm["cubin"], folder)
    assert (used <= registers, stack, binary.metadata.shared <= SHARED) == (True, 0, True), (used, stack, binary.metadata.shared)
    text = assembly(binary.asm["cubin"], folder)
    assert not re.search(r"\b(STL|LDL)\b", text)
    return text


@pytest.mark.parametrize(("count", "groups", "kept", "k"), [(256, 8, 4, 8), (160, 8, 3, 6), (384, 1, 1, 8)])
def test_the_router(count: int, groups: int, kept: int, k: int, tmp_path: Path) -> None:
    constants = {"COUNT": count, "K": k, "NORMALISE": True, "SCORES": True}
    how = tiles.route(tiles.padded(groups) * tiles.padded(count // groups))
    fits(router.route_kernel, "fp32", constants | {"GROUPS": groups, "KEPT": kept}, how, tmp_path, 168)
    fits(router.route_gradient_kernel, "fp32", constants | {"WEIGHTS": True}, tiles.route(tiles.padded(count)), tmp_path, 168)


@pytest.mark.parametrize("experts", [8, 256])
def test_plans(experts: int, tmp_path: Path) -> None:
    fits(plan.count_kernel, "i64", {"COUNT": experts}, tiles.COPIES, tmp_path, 64)
    fits(plan.add_kernel, "i64", {"COUNT": experts}, tiles.EXPERTS, tmp_path, 128)
    fits(plan.place_kernel, "i64", {"COUNT": experts, "K": 8}, tiles.COPIES, tmp_path, 64)


@pytest.mark.parametrize(("number", "size", "factors"), [("bf16", 2, 0), ("fp32", 4, 0), ("u8", 1, 56)])
def test_rows_are_copied_16_bytes_at_a_time(number: str, size: int, factors: int, tmp_path: Path) -> None:
    text = fits(rows.copy_kernel, number, {"K": 8, "FACTORS": factors}, tiles.columns(size), tmp_path, 64)
    assert len(re.findall(r"STG\.E\.128", text)) >= 8, "one store for each copy"


@pytest.mark.parametrize(("number", "size"), [("bf16", 2), ("fp32", 4)])
def test_rows_are_summed_16_bytes_at_a_time(number: str, size: int, tmp_path: Path) -> None:
    for weighted in (False, True):
        text = fits(rows.sum_kernel, number, {"K": 8, "WEIGHTED": weighted}, tiles.columns(size), tmp_path, 64)
        assert len(re.findall(r"LDG\.E\.128", text)) >= 8
    fits(rows.sum_gradient_kernel, number, {"K": 8}, tiles.columns(size), tmp_path, 64)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("number", "experts"), [("bf16", 8), ("bf16", 256), ("fp16", 8), ("fp32", 8)])
def test_products(number: str, experts: int, transposed: bool, tmp_path: Path) -> None:
    for how in (tiles.PRODUCT[number != "fp32"], tiles.PRODUCT_FEW[number != "fp32"]):
        products(fits(product.product_kernel, number, {"EXPERTS": experts, "TRANSPOSED": transposed}, how, tmp_path), number)


@pytest.mark.parametrize(
    ("number", "out", "experts"), [("bf16", "fp32", 8), ("bf16", "bf16", 8), ("bf16", "fp32", 256), ("fp32", "fp32", 8)]
)
def test_weight_gradients(number: str, out: str, experts: int, tmp_path: Path) -> None:
    how = tiles.WEIGHT_GRADIENT[number == "bf16"]
    products(fits(product.weight_gradient_kernel, number, {"EXPERTS": experts}, how, tmp_path, out=f"*{out}"), number)


def products(text: str, number: str) -> None:
    assert ("HGMMA" in text) == (number != "fp32"), "16 bits by the products of Hopper's tensor cores"
    assert "LDGSTS" in text or number == "fp32", "the next tiles are on their way"


def test_sizes_of_one_which_become_constants(tmp_path: Path) -> None:
    """A launch compiles a number that is 1 into the kernel."""
    ones = dict.fromkeys(NUMBERS.keys() - {"n", "k"}, 1)
    experts, columns = {"EXPERTS": 1}, {"K": 1, **tiles.columns(2)}
    choice = {"COUNT": 1, "K": 1, "NORMALISE": True, "SCORES": True}
    for kernel, constants in (
        (router.route_kernel, choice | {"GROUPS": 1, "KEPT": 1, **tiles.route(1)}),
        (router.route_gradient_kernel, choice | {"WEIGHTS": True, **tiles.route(1)}),
        (plan.count_kernel, {"COUNT": 1, **tiles.COPIES}),
        (plan.add_kernel, {"COUNT": 1, **tiles.EXPERTS}),
        (plan.place_kernel, {"COUNT": 1, "K": 1, **tiles.COPIES}),
        (rows.copy_kernel, columns | {"FACTORS": 1}),
        (rows.sum_kernel, columns | {"WEIGHTED": True}),
        (rows.sum_gradient_kernel, columns),
        (product.product_kernel, experts | {"TRANSPOSED": False, **tiles.PRODUCT_FEW[True]}),
    ):
        fits(kernel, "bf16", {name: size for name, size in ones.items() if name in kernel.arg_names}, constants, tmp_path)
