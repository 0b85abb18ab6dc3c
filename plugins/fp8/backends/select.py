"""Which backend multiplies on a machine, and why: what was asked for or nothing, and for `auto` the fastest that was measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from ....core.errors import BestiaryError
from ..options import FP8Options
from . import Backend

Capability = tuple[int, int]

LADDER = ("deepgemm", "scaled_mm", "triton", "emulation")
"""Fastest first, as others report; the first that runs is what is proposed in the place of one that does not."""
MEASURED: Mapping[Capability, tuple[str, ...]] = {}
"""Backends that were measured to be faster than emulation, fastest first, by compute capability. None was measured yet."""

FP8_BEGINS, HOPPER = (8, 9), (9, 0)
CUDA_WITH_BLOCKS = (12, 9)


@dataclass(frozen=True)
class Machine:
    """What decides where a backend runs."""

    gpu: str = ""
    """Its name; empty where there is none."""
    capability: Capability = (0, 0)
    cuda: tuple[int, ...] = ()
    """Version of CUDA that torch was built with."""
    interpreted: bool = False
    """Whether Triton's kernels run in its interpreter, without a GPU."""

    @classmethod
    def here(cls) -> Machine:
        """The machine at hand, by its current GPU."""
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not torch.cuda.is_available():
            return cls(interpreted=interpreted)
        cuda = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
        return cls(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), cuda, interpreted)


def choose(options: FP8Options, machine: Machine | None = None) -> Backend:
    """The backend of these options, chosen once, when the first layer of a model is made.

    Raises:
        BestiaryError: what is asked for cannot run here; says why, and what can.
    """
    machine = machine or Machine.here()
    name, reason = _chosen(options, machine)
    if why := why_not(name, options, machine):
        runs = next(other for other in LADDER if not why_not(other, options, machine))
        raise BestiaryError(f"precision.backend = '{name}': {why} Set precision.backend = '{runs}', which runs here.")
    return _build(name, options, machine, reason)


def described(options: FP8Options) -> Mapping[str, str]:
    """What multiplies on this machine, and why; or why it cannot."""
    machine = Machine.here()
    name, reason = _chosen(options, machine)
    why = why_not(name, options, machine)
    return {"backend": name, "reason": f"asked for, and cannot run here: {why}" if why else reason}


def why_not(name: str, options: FP8Options, machine: Machine) -> str:
    """Why a backend cannot run with these options on a machine, as a sentence; empty if it can."""
    if name == "emulation":
        return ""
    if name == "triton":
        return _no_triton(machine)
    if not machine.gpu:
        return "it runs on a GPU, and there is none here."
    return _no_deepgemm(options, machine) if name == "deepgemm" else _no_scaled_mm(machine)


def _chosen(options: FP8Options, machine: Machine) -> tuple[str, str]:
    """Name and reason."""
    if options.backend != "auto":
        return options.backend, "asked for"
    for name in MEASURED.get(machine.capability, ()):
        if options.accumulation == "fp32" and not why_not(name, options, machine):
            return name, f"auto: the fastest that was measured on compute capability {_dotted(machine.capability)} and runs here"
    return "emulation", f"auto: no other backend was measured to be faster on {machine.gpu or 'a CPU'}"


def _no_triton(machine: Machine) -> str:
    if find_spec("triton") is None:
        return "Triton is not installed; `pip install 'bestiary[gpu]'` brings it."
    if machine.interpreted:
        return ""
    if not machine.gpu:
        return "its kernels run on a GPU, and there is none here."
    if machine.capability < FP8_BEGINS:
        return f"{machine.gpu} has no FP8, which begins at compute capability {_dotted(FP8_BEGINS)}."
    return ""


def _no_deepgemm(options: FP8Options, machine: Machine) -> str:
    from .deepgemm import K_GROUPED, SYMBOLS

    major = machine.capability[0]
    if machine.capability not in ((9, 0), (10, 0), (10, 3)):
        return f"DeepGEMM runs on compute capability 9.0 and 10.x, and {machine.gpu} has {_dotted(machine.capability)}."
    if major == 10 and options.scales == "fp32":
        return "on Blackwell DeepGEMM takes factors that are powers of two, and precision.scales is 'fp32'."
    try:
        library = _library()
    except (ImportError, OSError, RuntimeError) as error:
        return f"DeepGEMM is not installed ({error}); github.com/deepseek-ai/DeepGEMM says how."
    missing = [symbol for symbol in (*SYMBOLS, K_GROUPED[major]) if not hasattr(library, symbol)]
    return f"the installed deep_gemm has no {', '.join(missing)}; it is too old, or another package." if missing else ""


def _no_scaled_mm(machine: Machine) -> str:
    if not hasattr(torch.nn.functional, "scaled_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.scaled_mm."
    if machine.capability != HOPPER:
        return f"torch multiplies FP8 blocks on compute capability 9.0 only, and {machine.gpu} has {_dotted(machine.capability)}."
    if machine.cuda < CUDA_WITH_BLOCKS:
        return f"FP8 blocks need CUDA {_dotted(CUDA_WITH_BLOCKS)}, and this torch was built with {_dotted(machine.cuda)}."
    return ""


def _build(name: str, options: FP8Options, machine: Machine, reason: str) -> Backend:
    from .emulation import Emulation

    if name == "emulation":
        return Emulation(options.accumulation, reason)
    beside = Emulation()
    if not _no_triton(machine):
        from .kernels import Kernels

        beside = Kernels(reason)
    if name == "triton":
        return beside
    if name == "scaled_mm":
        from .scaled_mm import ScaledMM

        return ScaledMM(beside, reason)
    from .deepgemm import DeepGEMM

    return DeepGEMM(_library(), beside, major=machine.capability[0], reason=reason)


def _library() -> ModuleType:
    return import_module("deep_gemm")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
