"""SIGTERM, by which schedulers and preemptible machines announce the end: save, say so, leave.

Between two steps of training there is something to save, so there the signal is only noted, and the
loop asks for it (`requested`). Anywhere else what can be gone on from is on disk already, and the
signal ends the run at once, as Ctrl-C does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from . import distributed
from .parent import when_parent_ends

EXIT_TERMINATED = 128 + signal.SIGTERM  # as shells report it


class Terminated(BaseException):
    """The process was asked to end. Like KeyboardInterrupt no error, so nothing handles it as one.

    The message says what was saved.
    """


_requested = False
_deferred = False


def install() -> None:
    """Handle SIGTERM from now on, instead of Paddle, which prints a stack (main thread only).

    A process of a job gets one also when the launcher is gone: Paddle 3.3's ends at once when it is
    told to, without a word to its processes, which would train on.
    """
    global _requested
    if distributed.world_size() > 1:
        when_parent_ends(signal.SIGTERM)
    _requested = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _handle)
        if hasattr(signal, "siginterrupt"):
            # Paddle's store takes an interrupted system call for a lost connection.
            signal.siginterrupt(signal.SIGTERM, False)


def requested() -> bool:
    """Whether the signal has come. It may come several times: the launcher repeats it."""
    return _requested


@contextmanager
def deferred() -> Iterator[None]:
    """Let the block come to its end first.

    Raises:
        Terminated: after the block, if the signal came meanwhile.
    """
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    if _requested:
        raise Terminated


def _handle(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True
    if not _deferred:
        raise Terminated
