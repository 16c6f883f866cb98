"""The one log of a run: lines on the console and objects in ``metrics.jsonl``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from . import distributed
from .errors import EngineError

METRICS_FILE = "metrics.jsonl"

Item = TypeVar("Item")


class RunLog:
    """Speaks and writes on rank 0; silent on the others.

    Args:
        folder: where ``metrics.jsonl`` is.
        keep_bytes: how much of an existing ``metrics.jsonl`` belongs to the run that goes on; what
            comes after was written by steps that will be done again. 0 starts afresh.

    Raises:
        EngineError: the file cannot be written.
    """

    def __init__(self, folder: Path, keep_bytes: int = 0) -> None:
        self.path = folder / METRICS_FILE
        self._speaks = distributed.is_main()
        if self._speaks:
            self._cut(keep_bytes)

    def _cut(self, keep_bytes: int) -> None:
        try:
            with open(self.path, "ab") as file:
                file.truncate(min(keep_bytes, file.tell()))
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> EngineError:
        return EngineError(f"{self.path}: cannot be written ({error.strerror or error})")

    def bytes_written(self) -> int:
        """Length of ``metrics.jsonl`` now; 0 on ranks that do not write."""
        return self.path.stat().st_size if self._speaks else 0

    def line(self, text: str) -> None:
        """Print one line; a progress bar that is being drawn stays below it."""
        if self._speaks:
            tqdm.write(text)
            sys.stdout.flush()

    def warn(self, text: str) -> None:
        """Print one line of warning to stderr."""
        if self._speaks:
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def record(self, values: dict[str, Any]) -> None:
        """Append one JSON object to ``metrics.jsonl``."""
        if not self._speaks:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def progress(self, items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
        """Iterate with a progress bar on a terminal, and without one where output is piped.

        Args:
            items: what to iterate over.
            total: how many there are.
            what: the label of the bar.
        """
        hidden = not (self._speaks and sys.stderr.isatty())
        yield from tqdm(items, total=total, desc=what, leave=False, disable=hidden, unit="batch")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All objects of a ``metrics.jsonl``."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
