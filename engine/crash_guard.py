"""A native library that crashes on a file takes a child process down, not the error message.

Paddle Inference, ONNX Runtime, OpenVINO and the image decoders are C++; a damaged or hostile file
may make them end with SIGSEGV or SIGABRT instead of an exception. So ``eval.py`` and ``export.py``
do their work in a child, forked before anything is loaded, and the parent says what happened.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from typing import NoReturn

from .parent import when_parent_ends

EXIT_BAD_INPUT = 2
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
_NOTE_BYTES = 4096
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)

_note: mmap.mmap | None = None


def guard() -> None:
    """Go on in a child process; the parent stays here, and leaves with the child's exit code.

    After a crash the parent prints one line ``error: ...`` that names what `working_on` was told
    last, and leaves with code 2. Where there is no fork (Windows) or no way to wait for signals
    (macOS) nothing happens. Call this before threads are started.
    """
    global _note
    if not hasattr(os, "fork") or not hasattr(signal, "sigwaitinfo"):
        return
    _note = mmap.mmap(-1, _NOTE_BYTES)  # shared with the child
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored it never comes
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # they wait until `_wait_for` asks
    parent = os.getpid()
    child = os.fork()
    if child != 0:
        _wait_for(child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    when_parent_ends(signal.SIGKILL, parent)  # who kills the command means the work, too


def is_guarded() -> bool:
    """Whether this process has a parent that speaks for it when it crashes."""
    return _note is not None


def working_on(what: str) -> None:
    """Leave a note of what is given to a native library from now on."""
    if _note is not None:
        text = what.encode(errors="replace")[: _NOTE_BYTES - 1]
        _note[: len(text) + 1] = text + b"\0"


def _wait_for(child: int) -> NoReturn:
    status: int | None = None
    while status is None:
        info = signal.sigwaitinfo(_SIGNALS)
        if info.si_signo == signal.SIGCHLD:
            ended, found = os.waitpid(child, os.WNOHANG)
            status = found if ended == child else None
        elif info.si_signo == signal.SIGTERM or info.si_pid != 0:
            # Ctrl-C on a terminal comes from the kernel, 0, and to the child as well.
            os.kill(child, info.si_signo)
    if os.WIFEXITED(status):
        raise SystemExit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    name = signal.Signals(number).name
    assert _note is not None
    what = bytes(_note[:]).partition(b"\0")[0].decode(errors="replace")
    while_what = f" while it worked on {what}, which is damaged or hostile, or" if what else ";"
    if name in _CRASHES:
        _say(f"error: a native library crashed ({name}){while_what} it does not suit this machine")
        raise SystemExit(EXIT_BAD_INPUT)
    if number == signal.SIGKILL:
        _say("error: the process was killed (SIGKILL), which is what happens when memory runs out")
    raise SystemExit(128 + number)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
