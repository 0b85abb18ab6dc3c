"""How fast the device multiplies, for MFU: the share of that rate which a model's counted FLOPs use."""

from __future__ import annotations

import time

import torch

SIZE = {"cpu": 1024, "cuda": 8192}
SECONDS = 0.25


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of the fastest of several square products within a quarter of a second."""
    size = SIZE.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    while fastest == float("inf") or time.perf_counter() < end:
        fastest = min(fastest, _once(a, b))
    return 2 * size**3 / fastest


def _once(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    start = time.perf_counter()
    torch.mm(a, b)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start
