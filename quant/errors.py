"""The errors of this package: one line each, naming what was found and what is allowed."""

from __future__ import annotations


class QuantError(ValueError):
    """Base of all errors that this package raises for something the user can put right."""


class ConfigError(QuantError):
    """A key, type or value of the quantization config is not allowed."""


class ExportError(QuantError):
    """The network cannot be traced, or cannot be stored as an int8 model."""


class VerifyError(QuantError):
    """The exported file cannot be compared with the network."""
