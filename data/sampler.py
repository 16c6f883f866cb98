"""Which image goes into which batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .dataset import SHUFFLE_STREAM
from .errors import DataError


class BatchIndices:
    """The batches of one epoch on one rank, as lists of indices.

    The order is a function of seed and epoch alone, the same on every rank, and rank r takes
    every ``world_size``-th image from the r-th on.

    Args:
        size: number of images in the data set.
        batch_size: images per batch; the last one may be shorter.
        shuffle: permute the images; otherwise they come in the order of the data set.
        pad: repeat images from the start of the order until it divides evenly, so that all ranks
            have equally many batches of equal size, as training needs. Otherwise every image
            comes exactly once over all ranks, as evaluation needs.
        start_batch: batches to leave out at the start, for a run that goes on within an epoch.

    Raises:
        DataError: a number is out of range.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        pad: bool,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}, allowed: 1 or more")
        if seed < 0 or epoch < 0:
            raise DataError(f"seed is {seed} and epoch {epoch}, allowed: 0 or more")
        if not 0 <= rank < world_size:
            raise DataError(f"rank is {rank}, allowed: 0 to {world_size - 1}")
        order = np.arange(size)
        if shuffle:
            np.random.default_rng((SHUFFLE_STREAM, seed, epoch)).shuffle(order)
        if pad:
            order = np.resize(order, -(-size // world_size) * world_size)
        self._mine = order[rank::world_size]
        self._batch_size = batch_size
        batches = -(-len(self._mine) // batch_size)
        if not 0 <= start_batch <= batches:
            raise DataError(
                f"start_batch is {start_batch}, allowed: 0 to {batches} (the batches of an epoch)"
            )
        self._starts = range(start_batch * batch_size, len(self._mine), batch_size)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield self._mine[start : start + self._batch_size].tolist()
