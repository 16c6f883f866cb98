"""Top1 and Top5 of anything that maps images to logits: a network or an exported file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn

from quant.modes import evaluating

from . import distributed
from .loss import classification_loss
from .metrics import Metrics, MetricSums, first_choice, rank_of_label

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set gives.

    Attributes:
        metrics: figures over the images of all processes.
        choices: int64 [n], the first choice for each image that this process has seen, in order;
            `metrics.NO_CHOICE` where a score is NaN.
        labels: int64 [n], the classes that these images have.
        ranks: int64 [n], how many classes the network puts before the right one.
        num_scores: K, the length of the output; 0 if there was no image.
        images_per_second: images over all processes by the time in the network or engine alone;
            reading is left out, which would otherwise hide the difference between engines.
    """

    metrics: Metrics
    choices: np.ndarray
    labels: np.ndarray
    ranks: np.ndarray
    num_scores: int
    images_per_second: float


def evaluate(forward: Forward, batches: Iterable[list[Tensor]], with_loss: bool) -> Evaluation:
    """Run every batch once and count (a collective call).

    Args:
        forward: maps images [N, C, H, W] to logits [N, K].
        batches: pairs of images and labels; under several processes, this process's share.
        with_loss: also compute the cross entropy.
    """
    sums = MetricSums()
    # choices, labels, ranks: a column of the rows for each batch
    columns = [np.zeros((3, 0), dtype=np.int64)]
    num_scores = 0
    seconds = 0.0
    with paddle.no_grad():
        for images, labels in batches:
            start = time.perf_counter()
            logits = forward(images)
            chosen = first_choice(logits).numpy()  # waits for the device
            seconds += time.perf_counter() - start
            num_scores = int(logits.shape[1])
            ranks = rank_of_label(logits, labels)
            columns.append(np.stack([chosen, labels.numpy().reshape(-1), ranks.numpy()]))
            loss = classification_loss(logits, labels) if with_loss else None
            sums.add_ranks(ranks, num_scores, loss)
    metrics = sums.result(with_loss)
    # The processes run side by side, so the time of the job is their mean.
    mean_seconds = float(distributed.sum_over_ranks(np.array([seconds]))[0])
    mean_seconds /= distributed.world_size()
    speed = metrics.num_images / mean_seconds if mean_seconds > 0 else 0.0
    choices, classes, places = np.concatenate(columns, axis=1)
    return Evaluation(metrics, choices, classes, places, num_scores, speed)


def evaluate_network(net: nn.Layer, batches: Iterable[list[Tensor]]) -> Evaluation:
    """Evaluate a network in evaluation mode; each layer keeps the mode that it had before."""
    with evaluating(net):
        return evaluate(net, batches, with_loss=True)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Fraction of images, over all processes, for which two evaluations chose the same class."""
    same, total = distributed.sum_over_ranks(np.array([np.sum(a == b), a.size], dtype=np.float64))
    return float(same / max(total, 1.0))
