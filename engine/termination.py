"""SIGTERM, by which schedulers and preemptible machines announce the end: save, say so, leave.

Between two steps of training there is something to save, so there the signal is only noted, and the
loop asks for it (`requested`). Anywhere else what can be gone on from is on disk already, and the
signal ends the process on the spot: an exception raised by a signal handler gets lost where it
happens to meet a callback of the garbage collector.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from . import distributed
from .parent import FIRST_PARENT, when_parent_ends

EXIT_TERMINATED = 128 + signal.SIGTERM  # as shells report it


class Terminated(BaseException):
    """The process was asked to end. Like KeyboardInterrupt no error, so nothing handles it as one.

    The message says after which step.
    """


_requested = False
_deferred = False


@contextmanager
def handled(way_on: Callable[[], str]) -> Iterator[None]:
    """Handle SIGTERM in the block, instead of Paddle, which prints a stack (main thread only).

    A process of a job gets one also when the launcher is gone: Paddle 3.3's ends at once when it is
    told to, without a word to its processes, which would train on.

    Args:
        way_on: what to say about how to go on, when the process ends.

    Raises:
        Terminated: the block was left by one; its message is complete then.
    """
    global _requested, _deferred
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        global _requested
        _requested = True
        if not _deferred:
            print(f"stopped by SIGTERM {way_on()}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(EXIT_TERMINATED)

    _requested = _deferred = False
    before = signal.signal(signal.SIGTERM, handle)
    if hasattr(signal, "siginterrupt"):
        # Paddle's store takes an interrupted system call for a lost connection.
        signal.siginterrupt(signal.SIGTERM, False)
    if distributed.world_size() > 1:
        when_parent_ends(signal.SIGTERM, FIRST_PARENT)
    try:
        yield
    except Terminated as stop:
        _deferred = True  # launchers repeat the signal, and the way out has begun
        raise Terminated(f"{stop} {way_on()}".strip()) from None
    finally:
        if not _requested:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def requested() -> bool:
    """Whether the signal has come."""
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
        if _requested:
            raise Terminated
    finally:
        _deferred = _requested  # nothing cuts the way out short
