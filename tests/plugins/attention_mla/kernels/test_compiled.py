"""The kernels compiled for Hopper, ahead of time and without a GPU, for the shapes of DeepSeek-V3."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bestiary.plugins.attention_mla.kernels import decode, prefill, tiles  # noqa: E402
from tests.kernels.compiler import SHARED, assembly, usage  # noqa: E402

PREFILL = {"forward": tiles.FORWARD, "query_gradient": tiles.QUERY_GRADIENT, "key_gradient": tiles.KEY_GRADIENT}
WIDTHS = {"HEADS": 128, "NOPE": 128, "ROPE": 64, "VALUE": 128}
TYPES = {"lse": "*fp32", "product": "*fp32", "segments": "*i64", "table": "*i32", "lengths": "*i64", "scale": "fp32"}
NUMBERS = ("rows", "columns", "heads", "splits", "capacity", "queries")


def fits(kernel: Any, number: str, constants: dict[str, Any], how: dict[str, int], folder: Path, **types: str) -> str:
    """The instructions of a kernel that spills nothing and fits into shared memory, for tensors of this type."""
    constants = constants | {name: size for name, size in how.items() if name.startswith("BLOCK")}
    every = (
        dict.fromkeys(kernel.arg_names, f"*{number}")
        | dict.fromkeys(NUMBERS, "i32")
        | TYPES
        | types
        | dict.fromkeys(constants, "constexpr")
    )
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name in places if every[name].startswith("*")}
    source = ASTSource(kernel, {name: every[name] for name in places}, {places[name]: value for name, value in constants.items()}, aligned)
    options = {name: how[name] for name in ("num_warps", "num_stages") if name in how}
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    registers, stack = usage(binary.asm["cubin"], folder)
    assert (registers <= 255, stack, binary.metadata.shared <= SHARED) == (True, 0, True), (registers, stack, binary.metadata.shared)
    text = assembly(binary.asm["cubin"], folder)
    assert not re.search(r"\b(STL|LDL)\b", text)
    return text


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("number", ["bf16", "fp32"])
@pytest.mark.parametrize("name", PREFILL)
def test_attention_and_its_gradients(name: str, number: str, segments: bool, tmp_path: Path) -> None:
    short = number == "bf16"
    kernel, constants = getattr(prefill, f"{name}_kernel"), WIDTHS | {"SEGMENTS": segments}
    text = fits(kernel, number, constants, PREFILL[name][short], tmp_path)
    assert ("HGMMA" in text) == short, "16 bits by the products of Hopper's tensor cores"
    assert "LDGSTS" in text or not short, "the next tiles are on their way"


@pytest.mark.parametrize("page", [0, tiles.PAGE])
@pytest.mark.parametrize("number", ["bf16", "fp32"])
@pytest.mark.parametrize("heads", [16, 128])
def test_decoding(heads: int, number: str, page: int, tmp_path: Path) -> None:
    how = (tiles.DECODE_FEW if heads <= tiles.FEW else tiles.DECODE)[number == "bf16"]
    text = fits(decode.attend_kernel, number, {"HEADS": heads, "LATENT": 512, "ROPE": 64, "PAGE": page}, how, tmp_path)
    if number == "bf16":
        assert ("HGMMA" if heads > tiles.FEW else "HMMA") in text, "a product of Hopper's needs 64 rows, one of Ampere's 16"
        assert "LDGSTS" in text


@pytest.mark.parametrize("splits", [2, 16])
def test_combining(splits: int, tmp_path: Path) -> None:
    constants = {"LATENT": 512, "WIDTH": 512, "SPLITS": splits}
    fits(decode.combine_kernel, "bf16", constants, {}, tmp_path, parts="*fp32", part_lse="*fp32")


def test_a_tile_of_decoding_lies_in_one_page() -> None:
    assert all(tiles.PAGE % how["BLOCK_N"] == 0 for table in (tiles.DECODE, tiles.DECODE_FEW) for how in table.values())
