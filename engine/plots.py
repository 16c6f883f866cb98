"""Curves of loss, accuracy and learning rate, from ``metrics.jsonl``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed; has to come before pyplot

from matplotlib import pyplot as plt  # noqa: E402

from .files import write_atomically  # noqa: E402
from .logging import read_metrics  # noqa: E402

STAGE_TITLES = {"fp32": "float", "qat": "QAT"}
PANELS = (("loss", "loss"), ("top1", "Top1"), ("lr", "learning rate"))


def plot_curves(metrics_path: Path, image_path: Path) -> None:
    """Draw the figures of a run over its steps; the float stage comes first.

    Args:
        metrics_path: ``metrics.jsonl``.
        image_path: the PNG to write.

    Raises:
        EngineError: it cannot be written.
    """
    rows = read_metrics(metrics_path)
    stages = [stage for stage in STAGE_TITLES if any(row["stage"] == stage for row in rows)]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.5 * len(PANELS), 3.6), squeeze=False)
    offset = 0
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        for axis, (key, _) in zip(axes[0], PANELS):
            _draw(axis, own, key, offset, STAGE_TITLES[stage])
            if offset:
                axis.axvline(offset, color="0.7", linewidth=1)
        offset += max(row["step"] for row in own)
    for axis, (_, title) in zip(axes[0], PANELS):
        axis.set_title(title)
        axis.set_xlabel("step")
        if axis.has_data():
            axis.legend(fontsize="small")
    figure.tight_layout()
    write_atomically(image_path, lambda name: figure.savefig(name, format="png", dpi=110))
    plt.close(figure)


def _draw(axis: Any, rows: list[dict[str, Any]], key: str, offset: int, stage: str) -> None:
    for split, style in (("train", {"linewidth": 1}), ("val", {"marker": "o", "linestyle": "--"})):
        points = [
            (offset + row["step"], row[key])
            for row in rows
            if row["split"] == split and row[key] is not None
        ]
        if points:
            axis.plot(*zip(*points), label=f"{stage}, {split}", **style)
