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
from engine.accumulation import Part
from engine.cli import run
from engine.config import TrainConfig
from engine.ema import LastWeights
from engine.errors import EngineError
from engine.loss import label_criterion
from engine.optimizer import build_optimizer
from engine.precision import build_precision
from engine.schedule import build_schedule
from engine.step import TrainStep
from engine.trainer import Job
from quant import QAT


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
    (folder / f"fault{rank}.txt").write_text(fault_of_the_second(rank))
    (folder / f"failure{rank}.txt").write_text(failure_of_the_second(rank))
    return code


def fault_of_the_second(rank: int) -> str:
    """What a step says in which only the second process has images that are not finite."""
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(1, 2, 3), nn.BatchNorm2D(2), nn.ReLU(), nn.Flatten())
    net.add_sublayer("head", nn.Linear(2 * 36, 4))
    QAT({"activation_quantize_type": "moving_average_abs_max"}).quantize(net)
    schedule = build_schedule("cosine_decay", 0.1, epoch_steps=4, num_epochs=1, step_epochs=[])
    step = TrainStep(
        distributed.data_parallel(net),
        label_criterion(0.0),
        build_precision(None),
        build_optimizer(net, schedule, 0.9, 0.0),
        schedule,
        LastWeights(net),
    )
    labels = paddle.zeros([3, 1], "int64")
    for images in (paddle.ones([3, 1, 8, 8]), paddle.full([3, 1, 8, 8], np.nan if rank else 1.0)):
        before = {name: value.numpy() for name, value in net.state_dict().items()}
        step.add(images, labels, Part(1.0, True))
        done = step.finish(0)
    moved = [k for k, v in net.state_dict().items() if not np.array_equal(v.numpy(), before[k])]
    return f"{done.fault} {moved}"


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
