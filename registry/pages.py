"""Huge pages for fresh parameters, where Linux offers them on request.

Filling fresh memory is bound by page faults more than by copying: with pages of 4 kB the kernel is entered once for each of them.
Asking for pages of 2 MB divides that by 512. It is advice: where it is not taken, nothing changes.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable

from torch import Tensor

PAGE = 2 << 20
"""Bytes of a huge page on x86-64, and with 4 kB base pages on ARM."""


def advise(tensors: Iterable[Tensor]) -> None:
    """Asks for huge pages for the inner part of every CPU tensor that spans some."""
    flag = getattr(mmap, "MADV_HUGEPAGE", None)
    if flag is None:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for tensor in tensors:
        if tensor.device.type == "cpu":
            start = -(-tensor.data_ptr() // PAGE) * PAGE
            end = (tensor.data_ptr() + tensor.nbytes) // PAGE * PAGE
            if end > start:
                madvise(start, end - start, flag)
