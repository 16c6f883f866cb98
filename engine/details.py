"""What ``eval.py --details`` leaves behind: figures per class, confusions, the single answers."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .confusion import ClassFigures, ConfusedPair, Confusion
from .confusion_plot import plot_confusion
from .files import write_atomically

PER_CLASS_FILE = "per_class.csv"
PAIRS_FILE = "confused_pairs.csv"
MATRIX_FILE = "confusion_matrix.csv"
IMAGE_FILE = "confusion_matrix.png"
PREDICTIONS_FILE = "predictions.csv"

# A full matrix of more classes is for nobody to read; the pairs say the same in less.
MAX_MATRIX_CLASSES = 2000
MAX_JSON_MATRIX_CLASSES = 100
# Pairs in the JSON file, and classes and pairs on the console.
JSON_PAIRS = 50
SHOWN = 5


def write_details(folder: Path, confusion: Confusion) -> list[Path]:
    """Write the files of ``--details``.

    Args:
        folder: an existing folder.
        confusion: what was counted.

    Returns:
        The files.

    Raises:
        EngineError: one cannot be written.
    """
    names = confusion.names
    fields = [field.name for field in dataclasses.fields(ClassFigures)]
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[Any]]]] = {
        PER_CLASS_FILE: (
            ["class", *fields[1:]],
            ([_text(getattr(row, name)) for name in fields] for row in confusion.per_class()),
        ),
        PAIRS_FILE: (
            ["label", "label_name", "choice", "choice_name", "images", "share_of_label"],
            (
                [p.label, names[p.label], p.choice, names[p.choice], p.images, _text(p.share)]
                for p in confusion.pairs()
            ),
        ),
        PREDICTIONS_FILE: (
            ["image", "label", "choice", "rank_of_label"],
            (
                [number, *answer]
                for number, answer in enumerate(
                    zip(confusion.labels, confusion.choices, confusion.ranks)
                )
            ),
        ),
    }
    if confusion.num_classes <= MAX_MATRIX_CLASSES:
        rows = ([name, *counts] for name, counts in zip(names, confusion.matrix()))
        tables[MATRIX_FILE] = (["label", *names], rows)
    for name, (header, lines) in tables.items():
        _write_csv(folder / name, header, lines)
    plot_confusion(confusion, folder / IMAGE_FILE)
    return [folder / name for name in (*tables, IMAGE_FILE)]


def details_json(confusion: Confusion) -> dict[str, Any]:
    """What ``--details`` adds to the JSON of ``--output``."""
    is_small = confusion.num_classes <= MAX_JSON_MATRIX_CLASSES
    return {
        "mean_class_top1": confusion.mean_class_top1(),
        "per_class": [
            {"class": row.pop("index"), **row}
            for row in map(dataclasses.asdict, confusion.per_class())
        ],
        "confused_pairs": [dataclasses.asdict(pair) for pair in confusion.pairs()[:JSON_PAIRS]],
        # rows: right class, columns: first choice
        "confusion_matrix": confusion.matrix().tolist() if is_small else None,
    }


def details_lines(confusion: Confusion) -> list[str]:
    """The worst of it, for the console."""
    seen = [row for row in confusion.per_class() if row.top1 is not None]
    weakest = sorted(seen, key=lambda row: (row.top1, row.index))[:SHOWN]
    lines = [
        f"mean Top1 over the {len(seen)} classes that have images: "
        f"{confusion.mean_class_top1():.4f}",
        "lowest Top1: "
        + "; ".join(f"{row.name} {row.top1:.4f} of {row.images} images" for row in weakest),
    ]
    pairs = confusion.pairs()[:SHOWN]
    if pairs:
        told = "; ".join(_told(confusion, pair) for pair in pairs)
        lines.append(f"most often confused: {told}")
    return lines


def _told(confusion: Confusion, pair: ConfusedPair) -> str:
    names = confusion.names
    return (
        f"{names[pair.label]} taken for {names[pair.choice]} "
        f"{pair.images} times ({100 * pair.share:.1f} %)"
    )


def _text(value: Any) -> Any:
    """Fractions in six digits; nothing where there is no figure."""
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else value


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    write_atomically(path, write)
