"""FP8 by DeepGEMM (github.com/deepseek-ai/DeepGEMM), on Hopper and on data-centre Blackwell.

    dense                     fp8_gemm_nt                          left 1x128, right 128x128, or 1x128 with fp32 sums kept
    experts                   m_grouped_fp8_gemm_nt_contiguous     each expert's rows padded to 128, an expert's number for each row
    weight gradients of all   k_grouped_fp8_gemm_nt_contiguous     each expert's tokens padded to 128; on Blackwell the `tn` form

Both operands lie along K. Left factors lie along M with columns that begin at multiples of 16 bytes, fp32; on Blackwell the library
packs them, which wants powers of two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..options import TILE
from ..quantize import Quantised
from . import AlongTokens, Backend
from .beside import Beside
from .layouts import check_on_gpu, column_major, one_expert_at_a_time, padded

ALIGNED = 16 // 4
"""fp32 factors in 16 bytes."""
SYMBOLS = ("fp8_gemm_nt", "m_grouped_fp8_gemm_nt_contiguous")
K_GROUPED = {9: "k_grouped_fp8_gemm_nt_contiguous", 10: "k_grouped_fp8_gemm_tn_contiguous"}
"""Weight gradients of all experts, by major compute capability."""


class DeepGEMM(Beside):
    """Multiplies by the library; another backend quantises and decodes."""

    name = "deepgemm"
    device_type = "cuda"

    def __init__(self, library: Any, beside: Backend, *, major: int = 9, reason: str = "") -> None:
        """
        Args:
            library: the module `deep_gemm`.
            beside: quantises and decodes.
            major: compute capability, 9 or 10.
            reason: why it was chosen.
        """
        self.library, self.beside, self.major, self.reason = library, beside, major, reason

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        check_on_gpu(self.name, a.codes, self.device_type)
        (rows, k), n = a.codes.shape, b.codes.shape[0]
        left, right = padded(a, 1), padded(b, TILE)
        out = torch.zeros(rows, right.codes.shape[0], dtype=dtype, device=a.codes.device)
        if rows and n and k:
            fine = b.tile[0] == 1
            sums = out if fine else None  # Hopper's kernel of two fine operands adds to what is there
            pair = (right.codes, column_major(right.scale, ALIGNED) if fine else right.scale.contiguous())
            of_left = (left.codes, column_major(left.scale, ALIGNED))
            self.library.fp8_gemm_nt(of_left, pair, out, c=sums, recipe=(1, b.tile[0], TILE))
        return out[:, :n]

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, and `[E, N, K]`, to `[M, N]`."""
        check_on_gpu(self.name, a.codes, self.device_type)
        if dtype != torch.bfloat16 or not a.codes.numel():
            return one_expert_at_a_time(self, a, b, sizes, dtype)
        left, right, places = padded(a, 1), padded(b, TILE), Places(sizes, self._alignment(), a.codes.device)
        codes = places.spread(left.codes.view(torch.uint8), 0).view(a.codes.dtype)
        factors = column_major(places.spread(left.scale, 1.0), ALIGNED)
        out = torch.empty(places.rows, right.codes.shape[1], dtype=dtype, device=a.codes.device)
        pair = (right.codes, right.scale.contiguous())
        self.library.m_grouped_fp8_gemm_nt_contiguous((codes, factors), pair, out, places.experts)
        return out[places.at][:, : b.codes.shape[1]]

    def weight_gradient(self, dy: AlongTokens, x: AlongTokens, sizes: list[int]) -> Tensor:
        """`dy[e].T @ x[e]` of each expert, fp32."""
        if len(sizes) == 1 or not sum(sizes):
            return super().weight_gradient(dy, x, sizes)
        outputs, inputs = dy.numbers(self), x.numbers(self)
        check_on_gpu(self.name, outputs, self.device_type)
        places, n, k = Places(sizes, TILE, outputs.device), outputs.shape[1], inputs.shape[1]
        left, right = (self._along_k(places, side, t) for side, t in ((dy, outputs), (x, inputs)))
        out = torch.zeros(len(sizes), n + -n % TILE, k + -k % TILE, dtype=torch.float32, device=outputs.device)
        lengths = torch.tensor(places.sizes, dtype=torch.int32, device=outputs.device)
        getattr(self.library, K_GROUPED[self.major])(left, right, out, places.sizes, lengths, c=out)
        return out[:, :n, :k]

    def _along_k(self, places: Places, side: AlongTokens, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and factors of one side: on Hopper each expert's `[C, tokens]` flat, one after the other, and factors along C; on
        Blackwell `[tokens, C]` and factors `[tokens / 128, C]`."""
        q = self.quantise(functional.pad(places.spread(numbers, 0), (0, -numbers.shape[1] % TILE)), side.tile, side.rule)
        if self.major != 9:
            return q.codes, q.scale
        flat = [part.view(torch.uint8).t().reshape(-1) for part in q.codes.split(places.sizes)]
        return torch.cat(flat).view(q.codes.dtype), q.scale.t()

    def _alignment(self) -> int:
        """Rows that each expert's part is a multiple of."""
        asked = getattr(self.library, "get_mk_alignment_for_contiguous_layout", None)
        return int(asked()) if asked else TILE


class Places:
    """Where rows go when each expert's part is padded to a multiple."""

    def __init__(self, sizes: list[int], multiple: int, device: torch.device) -> None:
        self.sizes = [size + -size % multiple for size in sizes]
        self.rows = sum(self.sizes)
        counts, room = torch.tensor(sizes), torch.tensor(self.sizes)
        shift = (room.cumsum(0) - room) - (counts.cumsum(0) - counts)
        at = torch.arange(sum(sizes)) + shift.repeat_interleave(counts)
        experts = torch.full((self.rows,), -1, dtype=torch.int32)
        experts[at] = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(counts)
        self.at, self.experts = at.to(device), experts.to(device)
        """The new place of each row, and the expert of each new row, -1 where there is none."""

    def spread(self, rows: Tensor, value: float) -> Tensor:
        """`[M, ...]` at their new places, `value` elsewhere."""
        out = rows.new_full((self.rows, *rows.shape[1:]), value)
        out[self.at] = rows
        return out
