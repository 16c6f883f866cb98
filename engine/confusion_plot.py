"""The confusion matrix as an image that can be read, for ten classes and for thousands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed; has to come before pyplot

from matplotlib import font_manager  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from .confusion import ConfusedPair, Confusion  # noqa: E402
from .files import write_atomically  # noqa: E402

# As many classes as can have their names on an axis, and as many as can have numbers in the cells.
MAX_CLASSES, MAX_NUMBERED = 40, 20
SHOWN_PAIRS = 25
MAX_NAME = 22
TICK_STYLE = {"fontsize": "small", "parse_math": False}  # a $ in a name is a $
# Matplotlib's own font has no Chinese; where one of these is installed, it helps out.
OTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Heiti SC",
)


def plot_confusion(confusion: Confusion, path: Path) -> None:
    """Draw a heat map: row = right class, column = first choice, colour = share of the row.

    With more than `MAX_CLASSES` classes it shows those of the most frequent confusions, and beside
    it these confusions as bars.

    Args:
        confusion: what was counted.
        path: the PNG to write.

    Raises:
        EngineError: it cannot be written.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]
    with plt.rc_context({"font.family": fonts}):
        figure = _draw(confusion, drawable_names(confusion, fonts))
        write_atomically(path, lambda name: figure.savefig(name, format="png", dpi=110))
        plt.close(figure)


def drawable_names(confusion: Confusion, fonts: list[str]) -> list[str]:
    """The names of the classes, cut to a length; numbers for those that no font can draw."""
    paths = [font_manager.findfont(font) for font in fonts]
    characters = {code for path in paths for code in font_manager.get_font(path).get_charmap()}
    return [
        _short(name) if all(ord(letter) in characters for letter in name) else str(number)
        for number, name in enumerate(confusion.names)
    ]


def _draw(confusion: Confusion, names: list[str]) -> Any:
    count = confusion.num_classes
    if count <= MAX_CLASSES:
        side = max(5.0, 2.5 + 0.45 * count if count <= MAX_NUMBERED else 3.5 + 0.27 * count)
        figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
        _heat_map(figure, axis, confusion, list(range(count)), names)
        axis.set_title(_title(confusion))
        return figure
    pairs = confusion.pairs()
    classes = _classes_of(pairs, MAX_CLASSES) or list(range(MAX_CLASSES))
    figure, axes = plt.subplots(1, 2, figsize=(24, 13.5), layout="constrained", width_ratios=(3, 2))
    _heat_map(figure, axes[0], confusion, classes, names)
    axes[0].set_title(
        f"{_title(confusion)}\n{len(classes)} of {count} classes, those confused most often"
    )
    _bars(axes[1], pairs[:SHOWN_PAIRS], names)
    return figure


def _title(confusion: Confusion) -> str:
    images = len(confusion.labels)
    right = int(np.sum(confusion.labels == confusion.choices))
    return f"{images} images, Top1 {right / max(images, 1):.4f}"


def _classes_of(pairs: list[ConfusedPair], limit: int) -> list[int]:
    """The classes of the first pairs, at most ``limit``; those of a pair stand side by side."""
    classes: dict[int, None] = {}
    for pair in pairs:
        new = {pair.label, pair.choice} - set(classes)
        if len(classes) + len(new) > limit:
            break
        classes.update({pair.label: None, pair.choice: None})
    return list(classes)


def _heat_map(
    figure: Any, axis: Any, confusion: Confusion, classes: list[int], names: list[str]
) -> None:
    position = np.full(confusion.num_classes, -1)
    position[classes] = np.arange(len(classes))
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    images = np.bincount(confusion.labels, minlength=confusion.num_classes)[classes]
    answered = confusion.choices >= 0
    rows, columns = (position[side[answered]] for side in (confusion.labels, confusion.choices))
    inside = (rows >= 0) & (columns >= 0)
    np.add.at(counts, (rows[inside], columns[inside]), 1)
    shares = counts / np.maximum(images, 1)[:, None]

    # The square root keeps a confusion of one percent apart from none at all.
    norm = matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=1)
    image = axis.imshow(shares, cmap="Blues", norm=norm)
    figure.colorbar(image, ax=axis, label="share of the images of the class", shrink=0.8)
    shown = [names[number] for number in classes]
    axis.set_xticks(range(len(shown)), shown, rotation=90, **TICK_STYLE)
    axis.set_yticks(range(len(shown)), shown, **TICK_STYLE)
    axis.set_xlabel("first choice")
    axis.set_ylabel("right class")
    if len(classes) <= MAX_NUMBERED:
        for row, column in zip(*np.nonzero(counts)):
            dark = shares[row, column] > 0.4
            axis.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize="small",
                color="white" if dark else "black",
            )


def _bars(axis: Any, pairs: list[ConfusedPair], names: list[str]) -> None:
    titles = [f"{names[pair.label]} → {names[pair.choice]}" for pair in pairs]
    bars = axis.barh(range(len(pairs)), [pair.images for pair in pairs], color="tab:blue")
    axis.bar_label(bars, [f" {pair.images} ({100 * pair.share:.0f} %)" for pair in pairs])
    axis.set_yticks(range(len(pairs)), titles, **TICK_STYLE)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_xlabel("images")
    axis.set_title("right class → first choice, images (share of the right class)")


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
