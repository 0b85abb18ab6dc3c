"""What tests of FP8 kernels in the interpreter share: it is mended, and memory that nobody wrote to holds NaN."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

from bestiary.plugins.fp8.quantize import Quantised
from tests.kernels.interpreter import mend


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter rounds as a GPU does, and what is allocated is poisoned."""
    mend(monkeypatch)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def same(a: Quantised, b: Quantised) -> None:
    """Equal to the last bit, but for which NaN is meant."""
    assert a.codes.shape == b.codes.shape and a.scale.shape == b.scale.shape and a.tile == b.tile
    assert torch.equal(a.scale.nan_to_num(-1), b.scale.nan_to_num(-1))
    nan = a.codes.float().isnan()
    assert torch.equal(nan, b.codes.float().isnan())
    assert torch.equal(a.codes.view(torch.uint8)[~nan], b.codes.view(torch.uint8)[~nan])
