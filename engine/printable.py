"""Names from files of unknown origin, as they can be shown in one line of an error."""

from __future__ import annotations

import reprlib
from typing import Any

MAX_LENGTH = 100


def shown(name: Any) -> str:
    """Return a name without control characters, cut if it is long."""
    text = str(name)
    return text if text.isprintable() and len(text) <= MAX_LENGTH else reprlib.repr(text)


def first(items: list[str], count: int) -> str:
    """Join up to ``count`` items by commas and say how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
