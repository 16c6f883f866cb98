"""The exception of this package."""

from __future__ import annotations


class EngineError(ValueError):
    """A flag, a configuration file, a checkpoint or a run folder is not usable as it is.

    The message is one line that names the flag or file, what was found there and what is allowed.
    """
