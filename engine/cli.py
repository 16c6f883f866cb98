"""How a script ends: our errors become one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import paddle

from data.errors import DataError
from models.errors import ModelError
from quant.errors import QuantError

from .crash_guard import is_guarded
from .errors import EngineError
from .termination import EXIT_TERMINATED, Terminated

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call the main function of a script and leave the process with its exit code.

    Args:
        main: returns the exit code; None counts as 0.

    Raises:
        SystemExit: always. Code 2 with one line ``error: ...`` for input that cannot be used and
            for files that cannot be read or written, 130 for Ctrl-C, 143 for SIGTERM. Any other
            exception is a fault of this program and passes through with its traceback.
    """
    if is_guarded():
        paddle.disable_signal_handler()  # which prints a stack; the parent has one line to say
    try:
        code = main() or 0
    except (DataError, EngineError, ModelError, QuantError) as error:
        code = _report(str(error))
    except OSError as error:
        code = _report(_describe(error))
    except Terminated as error:
        print(f"stopped by SIGTERM{f' {error}' if str(error) else ''}", file=sys.stderr)
        code = EXIT_TERMINATED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    raise SystemExit(code)


def _report(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    return f"{' -> '.join(paths)}: {reason}" if paths else reason
