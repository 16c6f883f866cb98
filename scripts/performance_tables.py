"""Writes the tables of docs/performance.md from what is in benchmarks/results/.

python -m scripts.performance_tables
"""

from __future__ import annotations

import statistics
from typing import Any

from scripts.results import replace_tables, results, rows_of

NAMES = ("ours", "pact", "operators", "paddle", "torch_fx", "evaluate")
BASES = {"paddle": "default", "torch_fx": "torch", "evaluate": "evaluate_float"}
READERS = {
    "OpenCV's resize, one thread": ("ours", "paddle_cv2", "torch_plain"),
    "antialiased, one thread": ("ours_antialias", "paddle_pil", "torch"),
    "OpenCV's resize, loader": ("ours_loader", "paddle_loader", "torch_loader"),
}
# What the table of scaling assumes: images/s of one GPU, images per step of each, GPUs of a node,
# nodes, and the share of a step in which gradients can be sent.
SPEEDS = (500, 1000, 2000)
BATCH, GPUS, NODES, BACKWARD = 128, 8, 4, 2 / 3
KINDS = {"opencv": "OpenCV's", "antialias": "antialiased"}


def main() -> None:
    """Replaces each table between its marks."""
    readers = rows_of("reader")
    replace_tables(
        "performance.md",
        {
            "train step": step_table(),
            "reader": reader_table(readers),
            "resize kind": kind_table(rows_of("resize_kind")),
            "export": export_table(),
            "scaling": scaling_table(readers, rows_of("export_cost_3.3.1")),
        },
    )


def step_table() -> str:
    """A training step, over that of the float network."""
    lines = [
        "| model | Paddle | float, ms | " + " | ".join(f"`{name}`" for name in NAMES) + " |",
        "|---" * (3 + len(NAMES)) + "|",
    ]
    for content in results("train_step_*.json"):
        lines += [row_of(row, content["paddle"]) for row in content["rows"]]
    lines.append("")
    lines.append("Time over the float step; in brackets peak memory over that of the float step.")
    return "\n".join(lines)


def reader_table(rows: list[dict[str, Any]]) -> str:
    """Images per second, and ours over the others."""
    lines = ["| transform | | ours | paddle.vision | torchvision |", "|---|---|---|---|---|"]
    for row in rows:
        for title, (ours, *others) in READERS.items():
            cells = [f"{row[ours]:.0f}"]
            for name in others:
                cells.append(f"{row[name]:.0f} (ours {row[f'{ours}_over_{name}']:.2f} times)")
            lines.append(f"| {row['transform']} | {title} | " + " | ".join(cells) + " |")
        lines.append(
            f"| {row['transform']} | OpenCV decodes, nothing else | {row['decode']:.0f} | | |"
        )
    return "\n".join(lines)


def kind_table(rows: list[dict[str, Any]]) -> str:
    """Top1 by the kind of resize in training and evaluation: mean, and each seed's change."""
    lines = [
        "| 28 to | trained | Top1 evaluated alike | the other way | change, by seed |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in rows:
        kind = row["trained"]
        (other,) = set(KINDS) - {kind}
        pair = row[f"evaluated_{kind}"], row[f"evaluated_{other}"]
        groups.setdefault((row["image_size"], kind), []).append(pair)
    for (size, kind), pairs in groups.items():
        alike, otherwise = (statistics.mean(values) for values in zip(*pairs))
        changes = ", ".join(f"{after - before:+.2f}" for before, after in pairs)
        lines.append(f"| {size} | {KINDS[kind]} | {alike:.2f} | {otherwise:.2f} | {changes} |")
    return "\n".join(lines)


def export_table() -> str:
    """Seconds and memory of an export."""
    lines = [
        "| model | Paddle | file | seconds | float weights, MB | peak memory over them |",
        "|---|---|---|---|---|---|",
    ]
    for content in results("export_cost_*.json"):
        for row in content["rows"]:
            lines.append(
                f"| {row['model']} | {content['paddle']} | {row['format']} | {row['seconds']:.1f} "
                f"| {row['weight_bytes'] / 1e6:.1f} | {row['peak_over_weights']:.1f} |"
            )
    return "\n".join(lines)


def scaling_table(readers: list[dict[str, Any]], exports: list[dict[str, Any]]) -> str:
    """What GPUs of an assumed speed ask of the processor and of the network between nodes."""
    (rate,) = (row["ours"] for row in readers if row["transform"] == "train")
    gradients = {row["model"]: row["weight_bytes"] for row in exports}
    lines = [
        "| model | gradients, MB | images/s of a GPU (assumed) | step, ms "
        "| reader cores for 8 GPUs | Gbit/s of each of 4 nodes |",
        "|---|---|---|---|---|---|",
    ]
    for model, size in gradients.items():
        for speed in SPEEDS:
            step = BATCH / speed
            traffic = 2 * (GPUS * NODES - 1) / (GPUS * NODES) * size * 8 / (BACKWARD * step)
            lines.append(
                f"| {model} | {size / 1e6:.1f} | {speed} | {1e3 * step:.0f} "
                f"| {GPUS * speed / rate:.1f} | {traffic / 1e9:.1f} |"
            )
    return "\n".join(lines)


def row_of(row: dict[str, Any], version: str) -> str:
    """One line of the table."""
    cells = [row["model"], version, f"{row['float_ms']:.0f}"]
    for name in NAMES:
        base = BASES.get(name, "float")
        time, memory = row.get(f"{name}_over_{base}"), row.get(f"{name}_memory_over_{base}")
        cells.append("" if time is None else f"{time:.2f} ({memory:.2f})")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
