"""Backends that hand codes to a library: what they hand over lies as the library wants it, and what comes back is emulation's result.

Numbers here are small integers times a power of two of their tile, so that every sum is exact in fp32, whatever its order, and results
are compared bit by bit. The stand-ins for libraries check layouts and compute by decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import ScalingType

import bestiary
from bestiary.plugins.fp8.backends import Backend
from bestiary.plugins.fp8.backends.deepgemm import DeepGEMM, Places
from bestiary.plugins.fp8.backends.emulation import Emulation
from bestiary.plugins.fp8.backends.layouts import column_major, padded
from bestiary.plugins.fp8.backends.scaled_mm import ScaledMM
from bestiary.plugins.fp8.grouped import FP8GroupedLinear
from bestiary.plugins.fp8.linear import FP8Linear
from bestiary.plugins.fp8.options import LIBRARIES, FP8Options
from bestiary.plugins.fp8.quantize import Quantised, Rule, quantise
from bestiary.plugins.fp8.recipe import Recipe

SHAPES = [(7, 130, 257), (128, 256, 128), (1, 5, 3), (201, 384, 640)]
SIZES = [[3, 0, 130, 7], [0, 0, 0, 1], [128, 128, 0, 256]]


def numbers(*shape: int) -> Tensor:
    """Integers up to 4, each tile of 128 rows and columns with a power of two of its own, bf16."""
    rows, columns = shape[-2:]
    power = torch.randint(0, 4, (*shape[:-2], -(-rows // 128), -(-columns // 128)))
    spread = power.repeat_interleave(128, -2)[..., :rows, :].repeat_interleave(128, -1)[..., :columns]
    return (torch.randint(-4, 5, shape) * 2.0**spread).bfloat16()


def decoded(codes: Tensor, factors: Tensor, tile: tuple[int, int] = (1, 128)) -> Tensor:
    """`[R, C]` fp32 by the definition."""
    i, j = (torch.arange(n) // size for n, size in zip(codes.shape, tile, strict=True))
    return codes.float() * factors[i[:, None], j[None, :]]


def check_fine(codes: Tensor, factors: Tensor) -> None:
    """1x128 tiles as DeepGEMM's kernels read them: codes by rows, factors by columns that begin every 16 bytes."""
    rows, k = codes.shape
    assert codes.dtype == torch.float8_e4m3fn and codes.is_contiguous() and k % 16 == 0
    assert factors.dtype == torch.float32 and factors.shape == (rows, -(-k // 128))
    assert factors.stride(0) == 1 and (factors.stride(1) == rows + -rows % 4 or factors.shape[1] == 1)


class Library:
    """Stands for the module `deep_gemm`."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def fp8_gemm_nt(self, a: Any, b: Any, d: Tensor, c: Tensor | None = None, recipe: Any = None) -> None:
        self.called.append("dense")
        check_fine(*a)
        assert d.stride(1) == 1 and d.dtype in (torch.bfloat16, torch.float32)
        if recipe == (1, 1, 128):
            check_fine(*b)
            assert c is d and d.dtype == torch.float32 and not d.any()
        else:
            assert recipe == (1, 128, 128) and c is None
            assert b[0].is_contiguous() and b[1].is_contiguous()
            assert b[1].shape == tuple(-(-n // 128) for n in b[0].shape)
        d.copy_(decoded(*a) @ decoded(*b, (recipe[1], 128)).T)

    def m_grouped_fp8_gemm_nt_contiguous(self, a: Any, b: Any, d: Tensor, m_indices: Tensor) -> None:
        self.called.append("experts")
        check_fine(*a)
        assert b[0].is_contiguous() and b[1].is_contiguous() and d.dtype == torch.bfloat16 and d.is_contiguous()
        assert m_indices.dtype == torch.int32 and len(m_indices) == len(d) and len(d) % self.get_mk_alignment_for_contiguous_layout() == 0
        left = decoded(*a)
        for block, experts in enumerate(m_indices.split(128)):
            assert experts[0] >= 0 and {*experts.tolist()} <= {int(experts[0]), -1}, "a block of 128 rows is one expert's"
            matrix = decoded(b[0][experts[0]], b[1][experts[0]], (128, 128))
            rows = slice(block * 128, block * 128 + 128)
            d[rows] = torch.where((experts >= 0)[:, None], left[rows] @ matrix.T, torch.nan).bfloat16()

    def k_grouped_fp8_gemm_nt_contiguous(self, a: Any, b: Any, d: Tensor, ks: list[int], lengths: Tensor, c: Tensor) -> None:
        self.called.append("weights, Hopper")
        self._check_lengths(d, ks, lengths, c)
        for side, columns in ((a, d.shape[1]), (b, d.shape[2])):
            assert side[0].ndim == 1 and side[0].numel() == sum(ks) * columns
            assert side[1].shape == (columns, sum(ks) // 128) and side[1].stride() == (1, columns) and columns % 4 == 0
        start = 0
        for expert, k in enumerate(ks):
            left, right = (
                decoded(codes[start * n : (start + k) * n].view(n, k), factors[:, start // 128 : (start + k) // 128])
                for (codes, factors), n in ((a, d.shape[1]), (b, d.shape[2]))
            )
            d[expert] += left @ right.T
            start += k

    def k_grouped_fp8_gemm_tn_contiguous(self, a: Any, b: Any, d: Tensor, ks: list[int], lengths: Tensor, c: Tensor) -> None:
        self.called.append("weights, Blackwell")
        self._check_lengths(d, ks, lengths, c)
        for (codes, factors), columns in ((a, d.shape[1]), (b, d.shape[2])):
            assert codes.shape == (sum(ks), columns) and codes.is_contiguous() and factors.shape == (sum(ks) // 128, columns)
        left, right = (decoded(*side, (128, 1)) for side in (a, b))
        for expert, (x, y) in enumerate(zip(left.split(ks), right.split(ks), strict=True)):
            d[expert] += x.T @ y

    def get_mk_alignment_for_contiguous_layout(self) -> int:
        return 128

    def _check_lengths(self, d: Tensor, ks: list[int], lengths: Tensor, c: Tensor) -> None:
        assert c is d and d.dtype == torch.float32 and d.is_contiguous() and not d.any()
        assert lengths.dtype == torch.int32 and lengths.tolist() == ks and all(k % 128 == 0 for k in ks) and len(ks) == len(d)


def on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


REAL = functional.scaled_mm


def scaled_mm(a: Tensor, b: Tensor, a_factors: Tensor, a_kind: Any, b_factors: Tensor, b_kind: Any, *, output_dtype: torch.dtype) -> Tensor:
    """torch's own checks on meta tensors, cuBLAS's wish for rows, then the product by decoding."""
    out = REAL(on_meta(a), on_meta(b), on_meta(a_factors), a_kind, on_meta(b_factors), b_kind, output_dtype=output_dtype)
    assert out.shape == (a.shape[0], b.shape[1]) and out.dtype == output_dtype and a.shape[0] % 4 == 0
    fine = b_kind == ScalingType.BlockWise1x128
    factors = b_factors if fine else b_factors.t()[:, : b.shape[0] // 128]
    return (decoded(a, a_factors) @ decoded(b.t(), factors, (1 if fine else 128, 128)).T).to(output_dtype)


@pytest.fixture(params=["scaled_mm", "deepgemm on Hopper", "deepgemm on Blackwell"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(functional, "scaled_mm", scaled_mm)
    for kind in (ScaledMM, DeepGEMM):
        monkeypatch.setattr(kind, "device_type", "cpu")
    if request.param == "scaled_mm":
        return ScaledMM(Emulation())
    return DeepGEMM(Library(), Emulation(), major=9 if "Hopper" in request.param else 10)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_three_products_are_those_of_emulation(m: int, n: int, k: int, backend: Backend) -> None:
    recipes = Recipe(FP8Options()), Recipe(FP8Options())
    recipes[0].backend = backend
    weight, x, dy = numbers(n, k).float(), numbers(m, k), numbers(m, n)
    results = []
    for recipe in recipes:
        layer, inputs = FP8Linear(k, n, recipe), x.clone().requires_grad_()
        layer.weight.data.copy_(weight)
        y = layer(inputs)
        y.backward(dy)
        assert inputs.grad is not None and layer.weight.grad is not None
        results.append((y, inputs.grad, layer.weight.grad))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_experts_are_those_of_emulation(sizes: list[int], backend: Backend) -> None:
    recipes = Recipe(FP8Options()), Recipe(FP8Options())
    recipes[0].backend = backend
    weight, x, dy = numbers(4, 36, 140).float(), numbers(sum(sizes), 140), numbers(sum(sizes), 36)
    results = []
    for recipe in recipes:
        layer, inputs = FP8GroupedLinear(4, 140, 36, recipe), x.clone().requires_grad_()
        layer.weight.data.copy_(weight)
        y = layer(inputs, torch.tensor(sizes))
        y.backward(dy)
        assert inputs.grad is not None and layer.weight.grad is not None
        results.append((y, inputs.grad, layer.weight.grad))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)
    if isinstance(backend, DeepGEMM):
        assert backend.library.called == ["experts", "experts", "weights, Hopper" if backend.major == 9 else "weights, Blackwell"]


@pytest.mark.parametrize("k", [128, 300, 512, 640])
def test_factors_that_are_no_powers_of_two(k: int, backend: Backend) -> None:
    rule = Rule(power_of_two=False)
    a, b = quantise(torch.randn(9, k), (1, 128), rule), quantise(torch.randn(200, k), (128, 128), rule)
    found, expected = backend.product(a, b, torch.float32), Emulation().product(a, b, torch.float32)
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_nothing_to_multiply(backend: Backend) -> None:
    for m, n, k in ((0, 5, 128), (3, 5, 0)):
        a, b = quantise(torch.zeros(m, k), (1, 128), Rule()), quantise(torch.zeros(n, k), (128, 128), Rule())
        assert torch.equal(backend.product(a, b, torch.bfloat16), torch.zeros(m, n, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", LIBRARIES)
def test_tensors_on_a_cpu_are_refused(name: str) -> None:
    backend = ScaledMM(Emulation()) if name == "scaled_mm" else DeepGEMM(Library(), Emulation())
    q = quantise(torch.ones(4, 128), (1, 128), Rule())
    with pytest.raises(
        bestiary.BestiaryError, match=rf"backend = '{name}': .* this tensor is on cpu\. Set precision\.backend = 'emulation'"
    ):
        backend.product(q, q, torch.bfloat16)


def test_every_backend_that_takes_a_library_is_named_in_the_options() -> None:
    assert {*LIBRARIES} == {ScaledMM.name, DeepGEMM.name}
    assert {*LIBRARIES, "triton", "emulation", "auto"} == {*get_args(FP8Options.model_fields["backend"].annotation)}


# Layouts, against torch's own checks


def attempt(a_factors: Tensor, b_factors: Tensor, kind: Any, *, by_columns: bool = True) -> Tensor:
    """8 rows, 256 columns, K = 640, on meta."""
    a, b = (torch.empty(rows, 640, dtype=torch.float8_e4m3fn, device="meta") for rows in (8, 256))
    right = b.t() if by_columns else b.t().contiguous()
    return REAL(a, right, on_meta(a_factors), ScalingType.BlockWise1x128, on_meta(b_factors), kind, output_dtype=torch.float32)


LEFT, FINE, BLOCKS = column_major(torch.ones(8, 5)), column_major(torch.ones(256, 5)), torch.ones(2, 8).t()
WRONG: dict[str, Callable[[], Tensor]] = {
    "left by rows": lambda: attempt(torch.ones(8, 5), BLOCKS, ScalingType.BlockWise128x128),
    "left padded": lambda: attempt(column_major(torch.ones(8, 5), 16), BLOCKS, ScalingType.BlockWise128x128),
    "blocks not padded": lambda: attempt(LEFT, torch.ones(2, 5).t(), ScalingType.BlockWise128x128),
    "blocks by rows": lambda: attempt(LEFT, torch.ones(8, 2), ScalingType.BlockWise128x128),
    "fine by rows": lambda: attempt(LEFT, torch.ones(256, 5), ScalingType.BlockWise1x128),
    "right by rows": lambda: attempt(LEFT, BLOCKS, ScalingType.BlockWise128x128, by_columns=False),
}


def test_right_layouts_pass_torchs_checks() -> None:
    assert attempt(LEFT, BLOCKS, ScalingType.BlockWise128x128).shape == attempt(LEFT, FINE, ScalingType.BlockWise1x128).shape == (8, 256)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layouts_fail_torchs_checks(wrong: str) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        WRONG[wrong]()


def test_padding_adds_codes_of_zero_and_factors_of_one() -> None:
    q = quantise(torch.randn(2, 130, 200), (128, 128), Rule())
    more = padded(q, 128)
    assert more.codes.shape == (2, 256, 256) and more.scale.shape == (2, 2, 2)
    assert torch.equal(more.values()[:, :130, :200], q.values()) and not more.values()[:, 130:].any() and not more.values()[..., 200:].any()
    rows = padded(quantise(torch.randn(5, 300), (1, 128), Rule()), 4)
    assert rows.codes.shape == (8, 384) and rows.scale.shape == (8, 3) and (rows.scale[5:] == 1).all()
    assert padded(rows, 4).codes.data_ptr() == rows.codes.data_ptr(), "what fits is not copied"
    assert padded(Quantised(rows.codes.T, rows.scale.T, (128, 1)), 128, 4).codes.is_contiguous()


def test_places() -> None:
    places = Places([2, 0, 3], 4, torch.device("cpu"))
    assert (places.sizes, places.rows) == ([4, 0, 4], 8)
    assert places.at.tolist() == [0, 1, 4, 5, 6] and places.experts.tolist() == [0, 0, -1, -1, 2, 2, 2, -1]
    assert places.spread(torch.arange(1, 6), 9).tolist() == [1, 2, 9, 9, 3, 4, 5, 9]
