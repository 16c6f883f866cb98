"""Run by the launcher in two processes; leaves the weights of each after two steps in FOLDER."""

from __future__ import annotations

import sys
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings a zlib of its own)

import numpy as np
import paddle
from paddle import nn

from engine import distributed
from engine.accumulation import parts_of_epoch
from engine.ema import follow
from engine.loss import label_criterion
from engine.optimizer import build_optimizer
from engine.precision import Precision
from engine.schedule import build_schedule
from engine.step import TrainStep

IMAGES = 24


def weights_after_two_steps(
    rank: int, world_size: int, batch_size: int, batches_per_step: int
) -> dict[str, np.ndarray]:
    """Train on every ``world_size``-th of 24 images."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(IMAGES, 1, 8, 8)).astype(np.float32)
    labels = generator.integers(0, 3, size=(IMAGES, 1))
    images, labels = images[rank::world_size], labels[rank::world_size]
    paddle.seed(1)
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    schedule = build_schedule("piecewise_decay", 0.1, 10, 1, [])
    optimizer = build_optimizer(net, schedule, 0.9, 1e-4)
    network = distributed.data_parallel(net)
    step = TrainStep(
        network, label_criterion(0.1), Precision(), optimizer, schedule, follow(net, 0.0)
    )
    steps = 0
    for batch, part in enumerate(parts_of_epoch(len(images), batch_size, batches_per_step)):
        chosen = slice(batch * batch_size, (batch + 1) * batch_size)
        step.add(paddle.to_tensor(images[chosen]), paddle.to_tensor(labels[chosen]), part)
        if part.ends_step:
            step.finish(steps)
            steps += 1
    assert steps == 2
    return {name: value.numpy() for name, value in net.state_dict().items()}


def main() -> None:
    """A step of 20 images and one of 4: for each process batches of 5, 5 and 2."""
    distributed.init("cpu")
    rank = distributed.rank()
    found = weights_after_two_steps(rank, distributed.world_size(), 5, 2)
    np.savez(f"{sys.argv[1]}/rank{rank}.npz", **found)


if __name__ == "__main__":
    main()
