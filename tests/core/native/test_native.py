"""Where decoding kernels stand in for torch in a whole model, and where they stand aside."""

from __future__ import annotations

import pytest
import torch

from bestiary.core import native
from bestiary.core.native import linear as kernels


def bf16(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16)


@pytest.mark.parametrize("attention", ["mla", "gqa"])
@pytest.mark.parametrize("chunks", [[5, 1, 1, 1, 1, 1], [5, 3, 2], [1] * 10], ids=str)
def test_a_bf16_model_decodes_in_any_chunks_near_float64(tiny, build, attention, chunks):
    exact, low = (build(tiny(attention, "dense"), dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    exact.load_state_dict(low.state_dict())
    ids = torch.randint(31, (2, 10), generator=torch.Generator().manual_seed(0))
    cache, parts = low.new_cache(2, 10), []
    with torch.no_grad():
        for chunk in ids.split(chunks, dim=1):
            parts.append(low(chunk, cache=cache))
        full = exact(ids)
    assert (torch.cat(parts, dim=1).double() - full).norm() <= 0.03 * full.norm()
    assert cache.length == 10


@pytest.mark.parametrize("x", [bf16(8, 2).T, bf16(0, 8)], ids=["strided", "no rows"])
@torch.no_grad()
def test_strided_and_empty_inputs_are_left_to_torch(x):
    assert not native.few_rows(x)
    assert kernels.linear(x, bf16(3, 8)) is None


@torch.no_grad()
def test_a_batch_of_nothing_passes_through_a_model(tiny, build):
    model = build(tiny(), dtype=torch.bfloat16)
    assert model(torch.zeros(0, 1, dtype=torch.int64)).shape == (0, 1, 31)


@torch.no_grad()
def test_a_wrong_width_is_left_to_torch_to_refuse():
    assert kernels.linear(bf16(1, 8), bf16(3, 9)) is None


def test_a_source_that_does_not_compile_leaves_torch_to_it(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("this is no C++")
    assert native.library(source) is None
