"""The integers that a quantizer may use: its grid."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Codes from `low` to `high`; a tensor's scale s is the value of code `high`.

    So value = code * s / high. Of b bits there are three:

    ===========  ==========  ============  ====================================================
    symmetric    -(2^(b-1) - 1)  2^(b-1) - 1  weights, and activations of the plain simulation
    signed       -2^(b-1)        2^(b-1) - 1  what an int8 kernel saturates at
    unsigned     0               2^b - 1      what a uint8 kernel has; for values that are >= 0
    ===========  ==========  ============  ====================================================

    Where `rounds` is False a value is only cut to the ends of the grid, as by a kernel that goes on
    with it in float.
    """

    bits: int
    low: int
    high: int
    rounds: bool = True

    @property
    def is_unsigned(self) -> bool:
        """True where the codes are those of an unsigned integer."""
        return self.low == 0

    def __str__(self) -> str:
        return f"codes {self.low}..{self.high}{'' if self.rounds else ', not rounded'}"


def symmetric(bits: int) -> Grid:
    """-(2^(b-1) - 1) to 2^(b-1) - 1."""
    return Grid(bits, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)


def signed(bits: int) -> Grid:
    """-2^(b-1) to 2^(b-1) - 1."""
    return Grid(bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def unsigned(bits: int) -> Grid:
    """0 to 2^b - 1."""
    return Grid(bits, 0, 2**bits - 1)
