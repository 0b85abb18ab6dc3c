"""Native precision: torch's own dtypes, one for computing and one for keeping."""

from __future__ import annotations

import torch

from ...core.layers.grouped import GroupedLinear
from ...core.layers.linear import Linear
from ...core.weights import After, Role


class Native:
    """Linear layers that compute in the dtype of their input; parameters kept in `storage`."""

    def __init__(self, *, compute: torch.dtype, storage: torch.dtype) -> None:
        self.compute_dtype, self.storage = compute, storage

    def linear(self, d_in: int, d_out: int, *, role: Role, bias: bool = False, after: After = "") -> Linear:
        return Linear(d_in, d_out, bias=bias)

    def grouped(self, experts: int, d_in: int, d_out: int, *, role: Role) -> GroupedLinear:
        return GroupedLinear(experts, d_in, d_out)

    def storage_dtype(self, role: Role) -> torch.dtype:
        """Selection biases keep fp32: near 5, where DeepSeek-V3's lie, bf16's spacing is 31 update steps."""
        return torch.promote_types(self.storage, torch.float32) if role == "state" else self.storage

    def cast(self, dtype: torch.dtype) -> Native:
        return Native(compute=dtype, storage=dtype)
