"""Which backend is taken where, why, and what is said where it cannot run."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import bestiary
from bestiary.plugins.fp8.backends import select
from bestiary.plugins.fp8.backends.deepgemm import K_GROUPED, SYMBOLS
from bestiary.plugins.fp8.backends.select import Machine, choose, described
from bestiary.plugins.fp8.options import FP8Options
from bestiary.plugins.fp8.quantize import Rule

CPU = Machine()
HOPPER = Machine("NVIDIA H800", (9, 0), (12, 9))
BLACKWELL = Machine("NVIDIA B200", (10, 0), (13, 0))
AMPERE = Machine("NVIDIA A100", (8, 0), (12, 9))
ADA = Machine("NVIDIA L40", (8, 9), (12, 9))
OLD_CUDA = replace(HOPPER, cuda=(12, 8))
NANO = "deepseek-v3-nano"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A `deep_gemm` that has every symbol."""
    module = ModuleType("deep_gemm")
    for symbol in (*SYMBOLS, *K_GROUPED.values()):
        setattr(module, symbol, lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "deep_gemm", module)
    return module


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deep_gemm", None)


@pytest.mark.parametrize(("machine", "place"), [(CPU, "a CPU"), (HOPPER, "NVIDIA H800"), (AMPERE, "NVIDIA A100")])
def test_auto_is_emulation_where_nothing_was_measured(machine: Machine, place: str) -> None:
    backend = choose(FP8Options(), machine)
    assert backend.name == "emulation" and backend.reason == f"auto: no other backend was measured to be faster on {place}"


@pytest.mark.usefixtures("library")
def test_auto_takes_the_fastest_measured_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "MEASURED", {(9, 0): ("deepgemm", "scaled_mm")})
    backend = choose(FP8Options(), HOPPER)
    assert backend.name == "deepgemm"
    assert backend.reason == "auto: the fastest that was measured on compute capability 9.0 and runs here"
    assert choose(FP8Options(accumulation="hopper"), HOPPER).name == "emulation"
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    assert choose(FP8Options(), HOPPER).name == "scaled_mm"
    assert choose(FP8Options(), OLD_CUDA).name == choose(FP8Options(), BLACKWELL).name == "emulation"


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("emulation", CPU),
        ("emulation", HOPPER),
        ("triton", ADA),
        ("triton", replace(CPU, interpreted=True)),
        ("scaled_mm", HOPPER),
        ("deepgemm", HOPPER),
        ("deepgemm", BLACKWELL),
    ],
)
@pytest.mark.usefixtures("library")
def test_what_is_asked_for_is_taken(name: Any, machine: Machine) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    backend = choose(FP8Options(backend=name), machine)
    assert (backend.name, backend.reason) == (name, "asked for")


@pytest.mark.parametrize(
    ("name", "machine", "why", "instead"),
    [
        ("triton", CPU, "its kernels run on a GPU, and there is none here.", "emulation"),
        ("triton", AMPERE, "NVIDIA A100 has no FP8, which begins at compute capability 8.9.", "emulation"),
        ("scaled_mm", CPU, "it runs on a GPU, and there is none here.", "emulation"),
        ("scaled_mm", ADA, "on compute capability 9.0 only, and NVIDIA L40 has 8.9.", "triton"),
        ("scaled_mm", OLD_CUDA, "FP8 blocks need CUDA 12.9, and this torch was built with 12.8.", "triton"),
        ("deepgemm", CPU, "it runs on a GPU, and there is none here.", "emulation"),
        ("deepgemm", ADA, "DeepGEMM runs on compute capability 9.0 and 10.x, and NVIDIA L40 has 8.9.", "triton"),
        ("deepgemm", HOPPER, "DeepGEMM is not installed", "scaled_mm"),
    ],
)
@pytest.mark.usefixtures("no_library")
def test_what_cannot_run_is_refused_with_what_can(name: Any, machine: Machine, why: str, instead: str) -> None:
    pytest.importorskip("triton")
    with pytest.raises(bestiary.BestiaryError) as caught:
        choose(FP8Options(backend=name), machine)
    message = str(caught.value)
    assert message.startswith(f"precision.backend = '{name}': ") and why in message
    assert message.endswith(f"Set precision.backend = '{instead}', which runs here.")


def test_a_library_that_is_too_old_or_wants_other_factors(library: ModuleType) -> None:
    with pytest.raises(bestiary.BestiaryError, match=r"takes factors that are powers of two, and precision\.scales is 'fp32'"):
        choose(FP8Options(backend="deepgemm", scales="fp32"), BLACKWELL)
    assert choose(FP8Options(backend="deepgemm", scales="fp32"), HOPPER).name == "deepgemm"
    del library.fp8_gemm_nt
    with pytest.raises(bestiary.BestiaryError, match="the installed deep_gemm has no fp8_gemm_nt; it is too old, or another package"):
        choose(FP8Options(backend="deepgemm"), HOPPER)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    with pytest.raises(
        bestiary.BestiaryError, match=r"Triton is not installed; `pip install 'bestiary\[gpu\]'`.*'scaled_mm', which runs here"
    ):
        choose(FP8Options(backend="triton"), HOPPER)
    assert getattr(choose(FP8Options(backend="scaled_mm"), HOPPER), "beside").name == "emulation"  # noqa: B009


@pytest.mark.parametrize("backend", ["scaled_mm", "deepgemm"])
@pytest.mark.parametrize(
    ("option", "value"), [("activations", "row"), ("gradients", "block"), ("weights", "tensor"), ("gradient_format", "e5m2")]
)
def test_what_libraries_do_not_multiply_is_refused_in_the_manifest(backend: str, option: str, value: str) -> None:
    with pytest.raises(bestiary.BestiaryError, match=f"backend = '{backend}' has {option} = '.*' only, not '{value}'"):
        bestiary.resolve(NANO, set={"precision.use": "fp8", "precision.backend": backend, f"precision.{option}": value})


def test_one_choice_for_a_model_and_none_where_nothing_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr("bestiary.plugins.fp8.recipe.choose", lambda options: made.append(options.backend) or choose(options))
    bestiary.create_model(NANO, set=["precision.use=fp8"], device="meta")
    assert made == ["auto"]
    bestiary.create_model(NANO, set=["precision.use=fp8", "precision.backend=deepgemm"], device="meta", dtype=torch.bfloat16)
    assert made == ["auto"], "without FP8 nothing is asked of the machine"


def test_a_model_says_what_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert described(FP8Options()) == {"backend": "emulation", "reason": "auto: no other backend was measured to be faster on a CPU"}
    said = bestiary.resolve(NANO, set={"precision.use": "fp8", "precision.backend": "deepgemm"}).precision.describe()
    assert said["backend"] == "deepgemm" and said["reason"].startswith("asked for, and cannot run here: it runs on a GPU")
    assert bestiary.resolve(NANO).precision.describe() == {}


def test_kernels_refuse_tensors_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that lies elsewhere than the GPU for which the backend was chosen."""
    pytest.importorskip("triton")
    from bestiary.plugins.fp8.backends import kernels

    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(bestiary.BestiaryError, match=r"this tensor is on cpu\. Set precision\.backend = 'emulation'"):
        kernels.Kernels().quantise(torch.ones(2, 128), (1, 128), Rule())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(bestiary.BestiaryError, match=r"NVIDIA A100 has no FP8, which begins at compute capability 8\.9"):
        kernels.check_device(SimpleNamespace(device=torch.device("cuda")))  # type: ignore[arg-type]
