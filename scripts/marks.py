"""The parts of Markdown files that scripts write: what stands between two marks."""

from __future__ import annotations

from pathlib import Path

from engine.errors import EngineError
from engine.files import write_atomically


def split_at_marks(path: Path, start: str, end: str) -> tuple[str, str]:
    """What stands before the first mark and behind the second.

    Raises:
        EngineError: there is no such text file, or it does not hold each mark once, in this order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(f"{path}: cannot be read ({reason})") from error
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise EngineError(f"{path}: wanted are the marks {start} and {end}, once and in this order")
    return text.split(start)[0], text.split(end)[1]


def replace_between(path: Path, start: str, end: str, content: str) -> None:
    """Put lines between the marks, in place of what is there; all or nothing.

    Raises:
        EngineError: as `split_at_marks`, or the file cannot be written.
    """
    before, after = split_at_marks(path, start, end)
    whole = f"{before}{start}\n{content}\n{end}{after}"
    write_atomically(path, lambda name: Path(name).write_text(whole, encoding="utf-8"))
