"""Kernels compiled for Hopper, ahead of time and without a GPU, and what their binaries need and hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = 227 << 10
"""Bytes of shared memory of one block on sm_90."""


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], aligned: tuple[str, ...], **options: int) -> Any:
    """The kernel for sm_90; `aligned` arguments are known to be multiples of 16. Multiply-adds are fused only if asked for."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, hints)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False, **options})


def usage(binary: bytes, folder: Path) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack."""
    (folder / "k.cubin").write_bytes(binary)
    text = subprocess.run([TOOLS / "cuobjdump", "-res-usage", folder / "k.cubin"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def assembly(binary: bytes, folder: Path) -> str:
    """The instructions."""
    (folder / "k.cubin").write_bytes(binary)
    return subprocess.run([TOOLS / "nvdisasm", "-c", folder / "k.cubin"], capture_output=True, text=True, check=True).stdout
