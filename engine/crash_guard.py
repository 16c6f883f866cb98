"""A native library that crashes on a file takes a child process down, not the error message.

Paddle Inference, ONNX Runtime, OpenVINO and the image decoders are C++; a damaged or hostile file
may make them end with SIGSEGV or SIGABRT instead of an exception. So ``eval.py`` and ``export.py``
do their work in a child, forked before anything is loaded, and the parent says what happened.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from .parent import when_parent_ends

EXIT_BAD_INPUT = 2
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
_NOTE_BYTES = 4096
_TERMINAL_SECONDS = 1.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)

_note: mmap.mmap | None = None


def guard() -> None:
    """Go on in a child process; the parent stays here, and leaves with the child's exit code.

    After a crash the parent prints one line ``error: ...`` that names what `working_on` was told
    last, and leaves with code 2. Where there is no fork (Windows) nothing happens. Call this before
    threads are started.
    """
    global _note
    if not hasattr(os, "fork"):
        return
    _note = mmap.mmap(-1, _NOTE_BYTES)  # shared with the child
    # Signals wait until the parent knows what to do with them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child != 0:
        _wait_for(child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    when_parent_ends(signal.SIGKILL)  # who kills the command means the work, too


def is_guarded() -> bool:
    """Whether this process has a parent that speaks for it when it crashes."""
    return _note is not None


def working_on(what: str) -> None:
    """Leave a note of which file is about to be given to a native library."""
    if _note is not None:
        text = what.encode(errors="replace")[: _NOTE_BYTES - 1]
        _note[: len(text) + 1] = text + b"\0"


def _wait_for(child: int) -> NoReturn:
    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    def pass_on_later(number: int, frame: FrameType | None) -> None:
        time.sleep(_TERMINAL_SECONDS)  # a terminal sends Ctrl-C to both, `kill -INT` to this one
        pass_on(number, frame)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        raise SystemExit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    assert _note is not None
    what = bytes(_note[:]).partition(b"\0")[0].decode(errors="replace")
    name = signal.Signals(number).name
    if name in _CRASHES:
        file = what or "a file"
        _say(f"error: {file}: a native library crashed on it ({name}); it is damaged, or hostile")
        raise SystemExit(EXIT_BAD_INPUT)
    if number == signal.SIGKILL:
        _say("error: the process was killed (SIGKILL), which is what happens when memory runs out")
    raise SystemExit(128 + number)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
