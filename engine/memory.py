"""Memory of the C library, which Paddle's CPU tensors come from."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets malloc keep what is freed, so that the next step finds its pages mapped.

    By default glibc takes a large block from the system and gives it back when it is freed. A
    training step allocates the same blocks every time, and each of their pages has to be cleared
    and mapped anew: of an activation of 25 MB that takes longer than most operators on it do.

    Returns:
        Whether the C library knows the settings (glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    most = 2**31 - 1
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, most))
