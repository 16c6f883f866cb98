"""The end of the process that started this one."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def when_parent_ends(number: int) -> None:
    """Get a signal when the parent process ends, however that ends (Linux; elsewhere nothing).

    Args:
        number: the signal.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
