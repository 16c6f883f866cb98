"""Where to clip a tensor before it is quantized: between the error of rounding and of clipping."""

from __future__ import annotations

import math

import numpy as np
import paddle
from paddle import Tensor

from .errors import QuantError
from .functional import abs_max
from .grid import symmetric

BINS = 2048


class Magnitudes:
    """A histogram of |x| over all tensors that it was given.

    It has `BINS` equal bins from 0 to a limit. A larger value doubles the limit, and each pair of
    bins becomes one, so no count is ever lost and one pass over the data is enough.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, x: Tensor) -> None:
        """Counts the values of one tensor.

        Raises:
            QuantError: it holds NaN or infinity.
        """
        largest = abs_max(x).item()
        if not math.isfinite(largest):
            raise QuantError("a tensor holds NaN or infinity: it says nothing about where to clip")
        if largest == 0:
            return  # nothing but zeros, which no clipping changes
        if self.limit == 0:
            self.limit = largest
        while self.limit < largest:
            halves = self.counts.reshape([-1, 2]).sum(axis=1)
            self.counts = np.concatenate([halves, np.zeros_like(halves)])
            self.limit *= 2
        self.largest = max(self.largest, largest)
        # Paddle 2.6 takes whole numbers for the ends of a histogram, so the values are scaled;
        # rounding must not carry the largest one past the last bin, where it would not be counted.
        scaled = x.detach().astype("float32").abs() * (BINS / self.limit)
        scaled = paddle.clip(scaled, max=float(BINS)).flatten()
        self.counts += paddle.histogram(scaled, bins=BINS, min=0, max=BINS).numpy().astype(np.int64)

    def best_clip(self, bits: int) -> float:
        """The clip c with the least expected squared error of `bits`-bit quantization; 0 if empty.

        With the step d = c / (2^(bits-1) - 1), a magnitude v costs

            v^2         below d / 2, which is rounded to zero
            d^2 / 12    up to c: rounding errors are spread evenly over one step
            (v - c)^2   above c

        It is the trade-off of ACIQ (Banner et al., arXiv:1810.05723), with the histogram in place
        of an assumed distribution. The candidates are the upper ends of the bins.
        """
        used = max(1, math.ceil(self.largest / self.limit * BINS)) if self.limit > 0 else 0
        if used == 0:
            return 0.0
        width = self.limit / BINS
        counts = self.counts[:used].astype(np.float64)
        values = (np.arange(used) + 0.5) * width
        clips = np.minimum((np.arange(used) + 1) * width, self.largest)
        # Sums of counts * v^k over the bins below an index.
        below = [np.concatenate([[0.0], np.cumsum(counts * values**k)]) for k in range(3)]
        total = [sums[-1] for sums in below]
        step = clips / symmetric(bits).high
        to_zero = np.searchsorted(values, step / 2)
        inside = np.arange(used) + 1
        rounded = below[2][to_zero] + (below[0][inside] - below[0][to_zero]) * step**2 / 12
        above = [total[k] - below[k][inside] for k in range(3)]
        clipped = above[2] - 2 * clips * above[1] + clips**2 * above[0]
        return float(clips[int(np.argmin(rounded + clipped))])
