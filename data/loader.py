"""Batches of a data set, read by threads while the network computes."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import paddle

from .dataset import ImageDataset
from .errors import DataError
from .sampler import BatchIndices

# Batches that are read ahead beyond those that the workers are at.
_READ_AHEAD = 2


class BatchLoader:
    """Iterates over the batches of one epoch: ``[images, labels]``.

    images are float32 [N, C, H, W] and labels int64 [N, 1] tensors. Use ``build_loader``.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batches: BatchIndices,
        epoch: int,
        num_workers: int,
        places: Any,
    ) -> None:
        # A copy (of the object, not of its data), so that loaders of several epochs can be in
        # use at the same time.
        self._dataset = copy.copy(dataset)
        self._dataset.set_epoch(epoch)
        self._batches = batches
        self._num_workers = num_workers
        self._places = places

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        if len(self._batches) == 0:
            return
        # Each reader has an image of its own to work on; OpenCV's threads would only be in the
        # way of theirs.
        cv2.setNumThreads(0)
        # A GPU gets bytes, a quarter of what the floats take, and normalises them itself.
        as_bytes = _is_gpu(self._places)
        stream = _BatchStream(self._dataset, self._batches, self._num_workers, as_bytes)
        # Paddle's loader copies batches to the device ahead of time. Its own worker processes
        # are forked, and a fork that happens while another thread holds a lock of Paddle or
        # OpenCV leaves a worker that waits for ever; so no process is forked here.
        try:
            for images, labels in paddle.io.DataLoader(
                stream, batch_size=None, collate_fn=_as_it_is, num_workers=0, places=self._places
            ):
                yield [self._dataset.normalizer.tensor(images) if as_bytes else images, labels]
        finally:
            stream.close()
        if stream.error is not None:
            raise stream.error


def build_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    train: bool,
    epoch: int = 0,
    seed: int = 0,
    shuffle: bool | None = None,
    num_workers: int = 4,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    places: Any = None,
) -> BatchLoader:
    """Load the batches of one epoch; the same ones whatever ``num_workers`` is.

    Args:
        dataset: from ``build_dataset``.
        batch_size: images per batch on this rank; the last batch may be shorter.
        train: ranks get equally many images (a few come twice); otherwise each image comes
            exactly once over all ranks, and a rank may have fewer batches than another.
        epoch: selects the order and the augmentation, from 0.
        seed: of the order; the augmentation has the seed of the data set.
        shuffle: by default what ``train`` is; False keeps the order of the list.
        num_workers: threads that read at the same time, a batch each. Decoding and resizing run
            outside of Python's lock, so they use as many cores. 0 reads one batch at a time.
        rank: which share of the images this process gets, from 0.
        world_size: number of processes that share the images.
        start_batch: batches to skip without reading them.
        places: where the tensors go; by default Paddle's current device.

    Raises:
        DataError: a number is out of range. Iterating raises one for an image that cannot be
            used, after the batches before it.
    """
    if num_workers < 0:
        raise DataError(f"num_workers is {num_workers}, allowed: 0 or more")
    batches = BatchIndices(
        len(dataset),
        batch_size,
        shuffle=train if shuffle is None else shuffle,
        pad=train,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        start_batch=start_batch,
    )
    return BatchLoader(dataset, batches, epoch, num_workers, places)


class _BatchStream(paddle.io.IterableDataset):
    """The batches as NumPy arrays, in order, read ahead by a pool of threads.

    Images are float32 [N, C, H, W], or, ``as_bytes``, uint8 [N, H, W, C] before normalisation.

    An error ends the stream and is kept in ``error``: Paddle's loader, which runs this in a thread
    of its own, would print it and raise something unrelated.
    """

    def __init__(
        self, dataset: ImageDataset, batches: BatchIndices, num_workers: int, as_bytes: bool
    ) -> None:
        super().__init__()
        self._as_bytes = as_bytes
        self._dataset = dataset
        self._batches = batches
        # Without workers one thread reads, and no further than the batch that is asked for.
        self._pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="image-reader")
        self._in_flight = num_workers + _READ_AHEAD if num_workers > 0 else 1
        self.error: Exception | None = None

    def close(self) -> None:
        """Stop reading: batches that no thread has begun are not read any more.

        Paddle keeps a loader that was left early until the next one starts, so its end is no
        signal.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        pending: deque[Future[list[np.ndarray]]] = deque()
        try:
            for indices in self._batches:
                pending.append(self._pool.submit(self._load, indices))
                if len(pending) == self._in_flight:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except Exception as error:
            self.error = error

    def _load(self, indices: Sequence[int]) -> list[np.ndarray]:
        pixels, labels = zip(*[self._dataset.pixels(index) for index in indices])
        images = np.stack(pixels)
        if not self._as_bytes:
            images = self._dataset.normalizer.array(images)
        return [images, np.asarray(labels, np.int64).reshape(-1, 1)]


def _is_gpu(places: Any) -> bool:
    """Whether batches go to a GPU: to the places given, or to Paddle's current device."""
    if places is None:
        return paddle.device.get_device().startswith("gpu")
    first = places[0] if isinstance(places, (list, tuple)) else places
    return "gpu" in str(first).lower()


def _as_it_is(batch: list[np.ndarray]) -> list[np.ndarray]:
    return batch
