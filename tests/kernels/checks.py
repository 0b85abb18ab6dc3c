"""What tests of the kernels share: fresh memory that is no number, and how far a result may be from the exact one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import interpreter

FILL = {torch.int64: 1 << 40, torch.int32: 1 << 28, torch.uint8: 0x7F, torch.bool: True}


@pytest.fixture(autouse=True, scope="module")
def mended_and_poisoned() -> Iterator[None]:
    """New memory is full of NaN, or of indices far outside, so that what a kernel does not write shows."""
    with pytest.MonkeyPatch.context() as patch:
        interpreter.mend(patch)
        for where, name in ((torch.Tensor, "new_empty"), (torch, "empty_like")):
            patch.setattr(where, name, poisoned(getattr(where, name)))
        yield


def poisoned(make: Any) -> Any:
    def inner(*args: Any, **kinds: Any) -> Tensor:
        made = make(*args, **kinds)
        return made if made.is_meta else made.fill_(FILL.get(made.dtype, math.nan))

    return inner


def close(found: Tensor, exact: Tensor, bound: float, floor: float = 1e-9) -> None:
    """Finite, and near in the Frobenius norm: by `bound` of the exact one, or by `floor` where that is next to nothing."""
    assert found.shape == exact.shape and torch.isfinite(found).all()
    assert (found.double() - exact.double()).norm() <= bound * exact.double().norm() + floor
