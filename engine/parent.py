"""The end of the process that started this one."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

# Of this process when it began: the scripts import this module first.
FIRST_PARENT = os.getppid()


def when_parent_ends(number: int, parent: int) -> None:
    """Get a signal when the parent process ends, however that ends (Linux; elsewhere nothing).

    Args:
        number: the signal.
        parent: the number of the parent process; where it has ended already the signal comes now.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
