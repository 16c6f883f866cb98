"""What the parts of a training run share: flags, data, folder, log, progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from paddle import Tensor

from data import BatchLoader, ImageDataset, build_loader

from . import distributed
from .checkpoint import CheckpointFolder, Progress
from .config import TrainConfig
from .logging import RunLog
from .task import Task


@dataclass
class Session:
    """One training run.

    Attributes:
        cfg: the flags.
        task: what is trained, on what.
        train_data: augmented images.
        val_data: images of evaluation.
        checkpoints: the folder of the run.
        log: its log.
        progress: how far it has come; updated as it goes on.
        amp_dtype: 16-bit type of mixed precision, None for float32.
    """

    cfg: TrainConfig
    task: Task
    train_data: ImageDataset
    val_data: ImageDataset
    checkpoints: CheckpointFolder
    log: RunLog
    progress: Progress
    amp_dtype: str | None = None

    @property
    def num_workers(self) -> int:
        """Threads that read images."""
        return 0 if self.cfg.ce_test else self.cfg.num_workers

    @property
    def eval_batch_size(self) -> int:
        """Images per batch where nothing is trained."""
        return self.cfg.eval_batch_size or self.cfg.batch_size

    @property
    def images_per_process(self) -> int:
        """Images that each process trains on in an epoch; a few come twice if need be."""
        return -(-len(self.train_data) // distributed.world_size())

    def training_batches(self, epoch: int, start_batch: int = 0) -> BatchLoader:
        """The batches of one epoch that this process trains on, from ``start_batch`` on."""
        return self._shuffled(epoch, start_batch, distributed.rank(), distributed.world_size())

    def calibration_batches(self) -> Iterable[list[Tensor]]:
        """The first ``--calibration_batches`` of the first QAT epoch.

        They are the same on every process, so that all find the same scales.
        """
        batches = self._shuffled(self.cfg.fp32_epochs, 0, 0, 1)
        return islice(batches, self.cfg.calibration_batches)

    def reestimation_batches(self) -> Iterable[list[Tensor]]:
        """The first ``--reestimate_bn_batches`` of the epoch after the last, this process's share.

        An order that training has not seen, and augmented like its images.
        """
        epoch = self.cfg.fp32_epochs + self.cfg.num_epochs
        batches = self.training_batches(epoch)
        return islice(batches, self.cfg.reestimate_bn_batches)

    def evaluation_batches(self) -> Iterator[list[Tensor]]:
        """The images that this process evaluates; over all processes, each image comes once."""
        loader = build_loader(
            self.val_data,
            self.eval_batch_size,
            train=False,
            num_workers=self.num_workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        return self.log.progress(loader, len(loader), "evaluation")

    def _shuffled(self, epoch: int, start_batch: int, rank: int, world_size: int) -> BatchLoader:
        return build_loader(
            self.train_data,
            self.cfg.batch_size,
            train=True,
            epoch=epoch,
            seed=self.cfg.seed,
            shuffle=False if self.cfg.ce_test else None,
            num_workers=self.num_workers,
            rank=rank,
            world_size=world_size,
            start_batch=start_batch,
        )
