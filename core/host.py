"""Settings of the process that large tensors on a CPU profit from."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> bool:
    """Lets glibc reuse large freed blocks instead of giving each back to the system.

    By default every tensor above 32 MB is mapped afresh, and each of its pages is faulted in again: 8 ms instead of 0.3 for
    a 33 MB tensor. Freed memory then stays with the process. Training and generation call this when they start;
    a program of your own may.

    Returns:
        Whether the C library took the settings; False where it is not glibc.
    """
    trim_threshold, mmap_threshold, never = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, never) and mallopt(trim_threshold, never))
