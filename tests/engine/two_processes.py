"""Run by the launcher in two processes; leaves what each of them found in FOLDER."""

from __future__ import annotations

import os
import sys
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings a zlib of its own)
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from data import DataError
from engine import distributed, trainer
from engine.cli import run
from engine.config import TrainConfig
from engine.errors import EngineError
from engine.trainer import Job


def main() -> int:
    folder = Path(sys.argv[1])
    distributed.init("cpu")
    rank = distributed.rank()

    batch_norm = nn.BatchNorm2D(3)
    batch_norm._mean.set_value(np.full(3, 1.0 + 4 * rank, np.float32))
    batch_norm._variance.set_value(np.full(3, 2.0 + 6 * rank, np.float32))
    distributed.average_batch_norm(batch_norm)
    found = {
        "rank": rank,
        "sum": distributed.sum_over_ranks(np.array([1.0, 10.0 * rank])),
        "mean": batch_norm._mean.numpy(),
        "variance": batch_norm._variance.numpy(),
    }

    cfg = TrainConfig(
        model="lenet",
        data="fashion_mnist",
        pretrained_model="none",
        use_pact=True,
        lr=0.01,
        batch_size=16,
        eval_batch_size=30,
        max_steps=5,
        log_period=2,
        calibration_batches=2,
        verify_images=32,
        num_workers=0,
        use_gpu=False,
        model_save_dir=str(folder / "out"),
    )
    job = Job(cfg)
    val_data = job.session.val_data
    val_data.images, val_data.labels = val_data.images[:101], val_data.labels[:101]

    load = trainer.load

    def recording_load(net: nn.Layer, path: Path) -> None:
        if path == job.checkpoints.best_path:
            state = {f"net/{key}": value.numpy() for key, value in net.state_dict().items()}
            np.savez(folder / f"rank{rank}.npz", **found, **state)
        load(net, path)

    replace = os.replace

    def recording_replace(source: str, target: str) -> None:
        with open(folder / "writers.txt", "a") as file:
            file.write(f"{rank}\n")
        replace(source, target)

    trainer.load = recording_load
    os.replace = recording_replace  # every file of a run comes to its name this way
    paddle.seed(rank)  # the job's own seed has to make the ranks alike
    code = job.run()
    (folder / f"failure{rank}.txt").write_text(failure_of_the_second(rank))
    return code


def failure_of_the_second(rank: int) -> str:
    """What each process has to say when the second one fails while the first one waits."""
    try:
        with distributed.lost_peers_named():
            if rank == 1:
                raise DataError("x.jpg is cut")
            distributed.barrier()
    except (DataError, EngineError) as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    run(main)
