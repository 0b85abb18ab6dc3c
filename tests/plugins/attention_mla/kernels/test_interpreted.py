"""The kernels in Triton's interpreter against float64 in torch. Run with TRITON_INTERPRET=1, in a process of its own."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

from benchmarks.gpu import mla
from benchmarks.gpu.measure import wrong
from bestiary.core.contracts import Context
from bestiary.plugins.attention_mla.kernels import tiles
from bestiary.plugins.attention_mla.kernels.launch import Kernels
from tests.kernels.checks import close, mended_and_poisoned  # noqa: F401

OURS = Kernels()
BOUND = {torch.float32: 3e-6, torch.bfloat16: 1e-2}
"""Of the error in the Frobenius norm; bf16 rounds probabilities, inputs of the products and results."""


# Prefill


def tensors(batch: int, rows: int, columns: int, heads: int, widths: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    nope, rope, value = widths
    shapes = ((batch, rows, heads, nope + rope), (batch, columns, heads, nope + value), (batch, columns, rope))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def dense(q: Tensor, kv: Tensor, k_pe: Tensor, nope: int, scale: float, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, columns, heads = q.shape[1], kv.shape[1], q.shape[2]
    k = torch.cat((kv[..., :nope], k_pe[:, :, None].expand(-1, -1, heads, -1)), dim=-1)
    score = torch.einsum("bshd,bthd->bhst", q, k) * scale
    visible = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    score = score.masked_fill(~visible, -math.inf)
    return torch.einsum("bhst,bthv->bshv", score.softmax(-1), kv[..., nope:]), score.logsumexp(-1)


def agree(given: list[Tensor], nope: int, scale: float, segments: Tensor | None = None) -> None:
    """Outputs, log-sum-exps and gradients against float64."""
    bound = BOUND[given[0].dtype]
    exact = [t.detach().double().requires_grad_() for t in given]
    y, lse = OURS.attention(*given, nope=nope, scale=scale, segments=segments)
    expected, levels = dense(*exact, nope, scale, segments)
    close(y, expected, bound)
    close(lse, levels, bound)
    assert lse.dtype == torch.float32 and not lse.requires_grad
    grad = torch.randn(y.shape).to(y.dtype)
    y.backward(grad)
    expected.backward(grad.double())
    for ours, right in zip(given, exact, strict=True):
        close(ours.grad, right.grad, bound)


@settings(max_examples=15)
@given(
    st.integers(1, 2),
    st.integers(1, 40),
    st.integers(0, 20),
    st.integers(1, 3),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40)),
    st.integers(0, 9),
)
def test_any_sizes_in_fp32(batch: int, rows: int, past: int, heads: int, widths: tuple[int, int, int], seed: int) -> None:
    torch.manual_seed(seed)
    agree(tensors(batch, rows, rows + past, heads, widths, torch.float32), widths[0], 0.4)


@pytest.mark.parametrize("kind", ["sorted", "any"])
@pytest.mark.parametrize("length", [16, 45])
def test_documents_do_not_see_one_another(length: int, kind: str) -> None:
    torch.manual_seed(0)
    segments = torch.randint(4, (2, length))
    agree(tensors(2, length, length, 2, (9, 4, 5), torch.float32), 9, 0.7, segments.sort().values if kind == "sorted" else segments)


@pytest.mark.parametrize(("rows", "columns", "documents"), [(150, 150, 1), (150, 150, 3), (40, 200, 1), (1, 70, 1)])
def test_the_tiles_of_16_bits(rows: int, columns: int, documents: int) -> None:
    torch.manual_seed(0)
    segments = torch.randint(documents, (1, rows)).sort().values if documents > 1 else None
    agree(tensors(1, rows, columns, 2, (24, 8, 20), torch.bfloat16), 24, 0.2, segments)


def test_the_widths_of_deepseek_v3() -> None:
    torch.manual_seed(0)
    agree(tensors(1, 70, 70, 2, (128, 64, 128), torch.bfloat16), 128, 192**-0.5)


def test_large_scores_do_not_overflow() -> None:
    torch.manual_seed(0)
    q, kv, k_pe = tensors(1, 33, 33, 1, (8, 4, 8), torch.float32)
    y, lse = OURS.attention(q, kv, k_pe, nope=8, scale=1000.0)
    expected, levels = dense(*(t.double() for t in (q, kv, k_pe)), 8, 1000.0, None)
    close(y, expected, 1e-3)
    close(lse, levels, 1e-6)


def test_strided_inputs_and_no_rows() -> None:
    torch.manual_seed(0)
    q, kv, k_pe = (t.detach() for t in tensors(2, 20, 20, 2, (8, 4, 8), torch.float32))
    swapped = (q.transpose(1, 2).contiguous().transpose(1, 2), kv.repeat(1, 1, 1, 2)[..., :16], torch.cat((k_pe, k_pe), 1)[:, :20])
    for a, b in zip(OURS.attention(*swapped, nope=8, scale=1.0), OURS.attention(q, kv, k_pe, nope=8, scale=1.0), strict=True):
        assert torch.equal(a, b)
    empty, _ = OURS.attention(q[:0], kv[:0], k_pe[:0], nope=8, scale=1.0)
    assert empty.shape == (0, 20, 2, 8)


def test_what_is_no_number_reaches_the_queries_that_see_it_and_no_others() -> None:
    torch.manual_seed(0)
    q, kv, k_pe = (t.detach() for t in tensors(1, 40, 40, 2, (8, 4, 8), torch.float32))
    clean, _ = OURS.attention(q, kv, k_pe, nope=8, scale=1.0)
    kv[0, 21, 1, 3] = math.nan
    y, lse = OURS.attention(q, kv, k_pe, nope=8, scale=1.0)
    assert torch.equal(y[:, :, 0], clean[:, :, 0]) and torch.equal(y[:, :21], clean[:, :21])
    assert y[:, 21:, 1].isnan().all() and lse[:, 1, 21:].isnan().all()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda q, kv, k_pe: (q, kv[:, :5], k_pe[:, :5], None), "do not fit"),
        (lambda q, kv, k_pe: (q, kv, k_pe[..., :2], None), "do not fit"),
        (lambda q, kv, k_pe: (q[:, :4], kv, k_pe, torch.zeros(1, 4)), "segments"),
    ],
)
def test_shapes_that_do_not_fit(change: Any, what: str) -> None:
    *given, segments = change(*tensors(1, 6, 6, 2, (8, 4, 8), torch.float32))
    with pytest.raises(ValueError, match=what):
        OURS.attention(*given, nope=8, scale=1.0, segments=segments)


# Decoding

LENGTHS = torch.tensor([0, 1, 63, 64, 65, 130])


def latents(q: Tensor, rows: list[Tensor], latent: int, scale: float) -> tuple[Tensor, Tensor]:
    """One row of queries after another, on the positions that it sees."""
    outs, levels = [], []
    for one, seen in zip(q.double(), rows, strict=True):
        score = one @ seen.double().T * scale
        outs.append(score.softmax(-1) @ seen.double()[:, :latent])
        levels.append(score.logsumexp(-1))
    return torch.stack(outs), torch.stack(levels)


def same(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], bound: float) -> None:
    """An output and its log-sum-exp, which may be minus infinity where nothing is seen."""
    close(found[0], exact[0], bound)
    nothing = exact[1] == -math.inf
    assert torch.equal(found[1] == -math.inf, nothing)
    close(found[1][~nothing], exact[1][~nothing], bound)


def paged(dtype: torch.dtype, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Queries, a pool of scattered pages with NaN wherever nobody may look, its table, and what each row sees."""
    q, pages = torch.randn(len(LENGTHS), heads, width).to(dtype), -(-LENGTHS // tiles.PAGE)
    pool, free = torch.full((20, tiles.PAGE, width), math.nan, dtype=dtype), torch.randperm(20).tolist()
    table, rows = torch.full((len(LENGTHS), 4), 1 << 20, dtype=torch.int32), []
    for i, length in enumerate(LENGTHS.tolist()):
        own = [free.pop() for _ in range(int(pages[i]))]
        table[i, : len(own)] = torch.tensor(own)
        rows.append(torch.randn(length, width).to(dtype))
        for place, chunk in zip(own, rows[-1].split(tiles.PAGE), strict=False):
            pool[place, : len(chunk)] = chunk
    return q, pool, table, rows


@pytest.mark.parametrize("splits", [None, 1, 2, 5])
@pytest.mark.parametrize(("heads", "latent", "rope"), [(5, 24, 6), (20, 33, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_sequences_on_scattered_pages(dtype: torch.dtype, heads: int, latent: int, rope: int, splits: int | None) -> None:
    torch.manual_seed(0)
    q, pool, table, rows = paged(dtype, heads, latent + rope)
    found = OURS.decode(q, pool, LENGTHS, latent=latent, scale=0.3, table=table, splits=splits)
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    same(found, latents(q, rows, latent, 0.3), BOUND[dtype])
    assert not found[0][0].any() and (found[1][0] == -math.inf).all()


@pytest.mark.parametrize("splits", [1, 3])
def test_the_widths_of_deepseek_v3_when_decoding(splits: int) -> None:
    torch.manual_seed(0)
    q, pool, table, rows = paged(torch.bfloat16, 16, 576)
    found = OURS.decode(q, pool, LENGTHS, latent=512, scale=192**-0.5, table=table, splits=splits)
    same(found, latents(q, rows, 512, 192**-0.5), BOUND[torch.bfloat16])


@pytest.mark.parametrize("capacity", [1, 37, 64, 100])
@pytest.mark.parametrize("splits", [1, 2])
def test_one_buffer_and_several_queries_of_a_sequence(capacity: int, splits: int) -> None:
    torch.manual_seed(0)
    buffer, q = torch.randn(2, capacity, 14), torch.randn(6, 3, 14)
    lengths = torch.tensor([1, 0, capacity // 2, capacity, capacity - 1, capacity])
    rows = [buffer[i // 3, :length].clone() for i, length in enumerate(lengths.tolist())]
    buffer[0, int(lengths[:3].max()) :] = math.nan
    found = OURS.decode(q, buffer, lengths, latent=8, scale=0.5, queries=3, splits=splits)
    same(found, latents(q, rows, 8, 0.5), BOUND[torch.float32])


def test_what_is_no_number_is_not_hidden_when_decoding() -> None:
    torch.manual_seed(0)
    buffer, q, lengths = torch.randn(2, 70, 14), torch.randn(2, 3, 14), torch.tensor([70, 70])
    buffer[1, 50, 12] = math.nan
    for splits in (1, 3):
        y, lse = OURS.decode(q, buffer, lengths, latent=8, scale=0.5, splits=splits)
        assert y[0].isfinite().all() and y[1].isnan().all() and lse[0].isfinite().all() and lse[1].isnan().all()


def test_a_cache_that_does_not_fit() -> None:
    q, lengths = torch.randn(2, 3, 14), torch.ones(2, dtype=torch.int64)
    for cache, kinds in (
        (torch.randn(2, 70, 28)[..., ::2], {}),
        (torch.randn(3, 70, 14), {}),
        (torch.randn(2, 32, 14), {"table": torch.zeros(2, 1, dtype=torch.int32)}),
        (torch.randn(2, 70, 13), {}),
    ):
        with pytest.raises(ValueError, match="fit"):
            OURS.decode(q, cache, lengths, latent=8, scale=1.0, **kinds)


# In a layer

SMALL = {"use": "mla", "q_lora_rank": 10, "kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7}


@pytest.fixture
def both(tiny: Any, build: Any) -> list[Any]:
    """The same layer by torch and by the kernels."""
    options = [SMALL | {"kernels": kernels} for kernels in ("torch", "triton")]
    return [build(tiny(table, "dense", layers=1), dtype=torch.float32).model.layers[0].self_attn for table in options]


@pytest.mark.parametrize("documents", [False, True])
def test_a_layer_and_its_gradients(both: list[Any], documents: bool) -> None:
    x, segments = torch.randn(2, 21, 14), torch.randint(3, (2, 21)).sort().values if documents else None
    found = []
    for layer in both:
        own = x.clone().requires_grad_()
        y = layer(own, Context(torch.arange(21)[None], segments=segments))
        y.square().sum().backward()
        found.append([y, own.grad, *(parameter.grad for parameter in layer.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 3, 1, 1]])
def test_a_layer_with_its_cache(both: list[Any], chunks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.plugins.attention_mla.attention.attend", None)
    x = torch.randn(3, 9, 14)
    cache = both[1].new_cache(3, 11, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        parts = [
            both[1](chunk, Context(torch.arange(cache.length, cache.length + chunk.shape[1])[None], caches=[cache]))
            for chunk in x.split(chunks, dim=1)
        ]
        monkeypatch.undo()
        whole = both[0](x, Context(torch.arange(9)[None]))
    assert (torch.cat(parts, dim=1) - whole).norm() <= 1e-5 * whole.norm()


def test_long_chunks_on_a_cache_and_gradients_through_a_step(both: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, grads = torch.randn(1, 9, 14), []
    for queries in (4, 64):
        monkeypatch.setattr("bestiary.plugins.attention_mla.attention.ABSORBED_QUERIES", queries)
        for layer in both:
            cache = layer.new_cache(1, 9, device=x.device, dtype=x.dtype)
            with torch.no_grad():
                layer(x[:, :3], Context(torch.arange(3)[None], caches=[cache]))
            own = x[:, 3:].clone().requires_grad_()
            layer(own, Context(torch.arange(3, 9)[None], caches=[cache])).square().sum().backward()
            grads.append(own.grad)
    for grad in grads[1:]:
        assert (grad - grads[0]).norm() <= 1e-5 * grads[0].norm()


def test_the_benchmark_checks_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    assert wrong(mla.cases("cpu", small=True)) == []
    assert all(call() is not None for case in mla.cases("cpu", small=True) for call in case.peers.values())
    right = Kernels()
    off = Kernels()
    monkeypatch.setattr(off, "attention", lambda *given, **kinds: [t * 1.02 for t in right.attention(*given, **kinds)], raising=False)
    monkeypatch.setattr(mla, "OURS", off)
    assert wrong(mla.cases("cpu", small=True)) == ["prefill", "prefill-backward"]
    monkeypatch.setattr(off, "attention", right.attention)
    monkeypatch.setattr(off, "decode", lambda *given, **kinds: [t * 1.02 for t in right.decode(*given, **kinds)], raising=False)
    assert wrong(mla.cases("cpu", small=True)) == ["decode"]
