"""Small C++ kernels for decoding on a CPU, where a step is a few rows and torch's per-call cost would dominate.

A kernel is one `.cpp` file of plain C functions beside the component that uses it. It is compiled the first time that it is
wanted (two seconds), kept in a cache folder under a name that depends on source, compiler and processor, and called
through ctypes. Without a C++ compiler, or with `BESTIARY_NATIVE=0`, the same functions run as torch operations; they are the
definition, and the tests compare the two.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FEW_ROWS = 16
"""Up to this many rows a kernel that streams the weights once is faster than a general matrix product."""

HEADERS = Path(__file__).parent
COMPILE = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=c++17", "-ffast-math", "-fno-finite-math-only")
LINK = ("-shared", "-fopenmp")
"""Without `-ffast-math`: linking with it would make the whole process flush denormal numbers."""


def few_rows(x: Tensor) -> bool:
    """Whether `x` is what the kernels are for: bf16 on a CPU, one to `FEW_ROWS` rows, nothing to differentiate."""
    return (
        x.dtype is torch.bfloat16
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and 0 < x.numel() <= FEW_ROWS * x.shape[-1]
        and x.is_contiguous()
    )


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled functions of a `.cpp` file; None where they cannot be had (`why_not` says why)."""
    if reason := why_not():
        _failed[source] = reason
        return None
    target = _cache_folder() / f"{source.stem}-{_fingerprint(source)}.so"
    try:
        if not target.exists():
            _compile(source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        _failed[source] = str(getattr(error, "stderr", None) or error)
        return None


_failed: dict[Path, str] = {}


def why_not() -> str:
    """Why kernels are not compiled here, or an empty string."""
    if os.environ.get("BESTIARY_NATIVE") == "0":
        return "switched off by BESTIARY_NATIVE=0"
    return "" if _compiler() else "no C++ compiler (g++ or clang++) is installed"


def _compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def _flags() -> list[str]:
    return [*COMPILE, *os.environ.get("CXXFLAGS", "").split()]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "bestiary" / "native"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint(source: Path) -> str:
    compiler = _compiler() or ""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    text = "".join(file.read_text() for file in (source, *sorted(HEADERS.glob("*.h"))))
    return hashlib.sha256("\0".join([text, version, *_flags(), _processor()]).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _compile(source: Path, target: Path) -> None:
    """Compiles and links beside the target, then renames, so that two processes may do it at once."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        compiler = str(_compiler())
        for command in (
            [compiler, *_flags(), f"-I{HEADERS}", "-c", str(source), "-o", str(compiled)],
            [compiler, *LINK, str(compiled), "-o", str(linked)],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        linked.replace(target)
