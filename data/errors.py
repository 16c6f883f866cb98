"""The one exception of the data package."""

from __future__ import annotations


class DataError(ValueError):
    """Data or a data setting that cannot be used.

    The message is a single line that names the file (and line) or the setting, the value
    found and what is allowed, so that a script can print it as it is.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
