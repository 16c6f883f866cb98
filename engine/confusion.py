"""Which class is taken for which: counts over single images, from the answers of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .evaluation import Evaluation
from .metrics import NO_CHOICE


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class; fractions of 1, None where the denominator is zero.

    Attributes:
        index: number of the class.
        name: its name.
        images: images of the class.
        chosen: images, of any class, for which it was the first choice.
        top1: share of its images that were recognized (the recall).
        top5: share of its images that have it among the first five choices.
        precision: share of ``chosen`` that are of the class.
        f1: harmonic mean of top1 and precision, 2 · right / (images + chosen).
    """

    index: int
    name: str
    images: int
    chosen: int
    top1: float | None
    top5: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class for which another one was the first choice.

    Attributes:
        label: number of the right class.
        choice: number of the class that was chosen.
        images: how many there are.
        share: of all images of ``label``.
    """

    label: int
    choice: int
    images: int
    share: float


class Confusion:
    """The answers of an evaluation, sorted by class.

    Only pairs that occur are kept, so any number of classes will do.

    Args:
        found: an evaluation whose images this process has seen all.
        num_classes: K, the number of classes; more than every label and choice.
        names: one name per class; None takes their numbers.
    """

    def __init__(
        self, found: Evaluation, num_classes: int, names: tuple[str, ...] | None = None
    ) -> None:
        self.num_classes = num_classes
        self.names = names or tuple(str(number) for number in range(num_classes))
        if len(self.names) != num_classes:
            raise ValueError(f"{len(self.names)} names for {num_classes} classes")
        self.labels, self.choices, self.ranks = found.labels, found.choices, found.ranks
        self.without_choice = int(np.sum(self.choices == NO_CHOICE))
        self._in_top5 = self.ranks < min(5, found.num_scores)

    def matrix(self) -> np.ndarray:
        """Counts, int64 [K, K]: row = right class, column = first choice.

        An image without a first choice (its scores hold a NaN) is in no column.
        """
        counts = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        chosen = self.choices != NO_CHOICE
        np.add.at(counts, (self.labels[chosen], self.choices[chosen]), 1)
        return counts

    def per_class(self) -> list[ClassFigures]:
        """The figures of every class, by number."""
        images = self._count(self.labels)
        chosen = self._count(self.choices[self.choices != NO_CHOICE])
        right = self._count(self.labels[self.labels == self.choices])
        top5 = self._count(self.labels[self._in_top5])
        return [
            ClassFigures(
                index=number,
                name=self.names[number],
                images=int(images[number]),
                chosen=int(chosen[number]),
                top1=_share(right[number], images[number]),
                top5=_share(top5[number], images[number]),
                precision=_share(right[number], chosen[number]),
                f1=_share(2 * right[number], images[number] + chosen[number]),
            )
            for number in range(self.num_classes)
        ]

    def mean_class_top1(self) -> float:
        """Mean of the Top1 of the classes that have images: each class counts the same."""
        shares = [row.top1 for row in self.per_class() if row.top1 is not None]
        return sum(shares) / len(shares) if shares else 0.0

    def pairs(self) -> list[ConfusedPair]:
        """The pairs that occur, the most frequent first; of equals the lower class numbers."""
        wrong = (self.labels != self.choices) & (self.choices != NO_CHOICE)
        stacked = np.stack([self.labels[wrong], self.choices[wrong]])
        found, counts = np.unique(stacked, axis=1, return_counts=True)
        images = self._count(self.labels)
        order = np.argsort(-counts, kind="stable")
        return [
            ConfusedPair(
                label=int(label),
                choice=int(choice),
                images=int(count),
                share=float(count / images[label]),
            )
            for label, choice, count in zip(found[0][order], found[1][order], counts[order])
        ]

    def _count(self, classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=self.num_classes)


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
