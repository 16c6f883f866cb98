"""The exception of this package."""

from __future__ import annotations


class ModelError(ValueError):
    """A model name, its settings or its published weights are not usable as asked.

    The message is one line that names what was asked for and what there is instead.
    """
