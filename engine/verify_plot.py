"""How far each layer of an exported file is from the network's, as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed; has to come before pyplot

from matplotlib import pyplot as plt  # noqa: E402

from quant import Verdict  # noqa: E402
from quant.layerwise import ALONE, LayerRow  # noqa: E402

from .files import write_atomically  # noqa: E402

_NOTHING = 1e-9  # where a difference of 0 is drawn on a logarithmic axis
_LEAST_RIGHT = 1e-3  # the axes reach this far at least
_MAX_NAME = 34


def plot_layers(verdict: Verdict, path: Path) -> None:
    """Draw one row per layer: on the left its output alone, on the right its input in the file.

    Args:
        verdict: has at least one layer.
        path: the PNG to write.

    Raises:
        EngineError: it cannot be written.
    """
    rows = verdict.layers
    height = 1.9 + 0.19 * len(rows)
    figure, axes = plt.subplots(
        1, 2, figsize=(11.5, max(3.2, height)), sharey=True, layout="constrained"
    )
    alone = [None if row.alone is None else row.alone.max for row in rows]
    _draw(axes[0], rows, alone, [row.alone_floor for row in rows], "tab:blue")
    bound = ALONE[verdict.layers_engine or "paddle"]
    axes[0].axvline(bound, color="0.35", linestyle="--", linewidth=1, label=f"bound {bound:g}")
    axes[0].set_title("alone, on the network's own input", fontsize="medium")
    axes[0].set_xlabel("output: max |difference| / range (left edge: 0)")

    entering = [None if row.input is None else row.input.mean for row in rows]
    _draw(axes[1], rows, entering, [row.input_floor for row in rows], "tab:blue")
    axes[1].set_title("within the file, with all that came before", fontsize="medium")
    axes[1].set_xlabel("input: mean |difference| / range (left edge: 0)")

    axes[0].set_yticks(range(len(rows)), [_short(row.title) for row in rows], fontsize=8)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    for label, row in zip(axes[0].get_yticklabels(), rows):
        if row.departs:
            label.set_color("tab:red")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    first = verdict.first_departing
    said = "no layer departs" if first is None else f"first layer that departs: {first.title}"
    figure.suptitle(f"{Path(verdict.prefix).name}, {len(rows)} layers: {said}", fontsize="large")
    write_atomically(path, lambda name: figure.savefig(name, format="png", dpi=110))
    plt.close(figure)


def _draw(
    axis: Any,
    rows: tuple[LayerRow, ...],
    values: list[float | None],
    floors: list[float | None],
    color: str,
) -> None:
    places = np.arange(len(rows))
    departs = np.array([bool(row.departs) for row in rows])
    known = np.array([value is not None for value in values])
    shown = _drawable(values)
    axis.set_xscale("log")
    axis.set_xlim(_NOTHING / 1.6, 3 * max(_LEAST_RIGHT, *shown, *_drawable(floors)))
    axis.hlines(places[known], _NOTHING, shown[known], color="0.85", linewidth=1, zorder=1)
    axis.scatter(
        _drawable(floors)[known], places[known], marker="|", s=45, color="tab:orange",
        label="float floor", zorder=2,
    )  # fmt: skip
    for mask, paint, label in (
        (known & ~departs, color, "file"),
        (known & departs, "tab:red", "file, departs"),
    ):
        if mask.any():
            axis.scatter(shown[mask], places[mask], s=16, color=paint, label=label, zorder=3)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)


def _drawable(values: list[float | None]) -> np.ndarray:
    """Zero (and what is not known) at the left edge, what is not finite at 10."""
    numbers = np.array([_NOTHING if value is None else value for value in values], dtype=np.float64)
    return np.clip(np.where(np.isfinite(numbers), numbers, 10.0), _NOTHING, 10.0)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"
