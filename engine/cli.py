"""How a script ends: our errors become one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from data.errors import DataError
from models.errors import ModelError
from quant.errors import QuantError

from .errors import EngineError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call the main function of a script and leave the process with its exit code.

    Args:
        main: returns the exit code; None counts as 0.

    Raises:
        SystemExit: always. Code 2 with one line ``error: ...`` for input that cannot be used and
            for files that cannot be read or written, 130 for Ctrl-C. Any other exception is a
            fault of this program and passes through with its traceback.
    """
    try:
        code = main() or 0
    except (DataError, EngineError, ModelError, QuantError) as error:
        code = _report(str(error))
    except OSError as error:
        code = _report(_describe(error))
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
