"""Writes the tables of docs/performance.md from what is in benchmarks/results/.

python -m scripts.performance_tables
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from scripts.marks import replace_between

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("ours", "pact", "operators", "paddle", "torch_fx", "evaluate")
BASES = {"paddle": "default", "torch_fx": "torch", "evaluate": "evaluate_float"}
READERS = {
    "OpenCV's resize, one thread": ("ours", "paddle_cv2", "torch_plain"),
    "antialiased, one thread": ("ours_antialias", "paddle_pil", "torch"),
    "OpenCV's resize, loader": ("ours_loader", "paddle_loader", "torch_loader"),
}
KINDS = {"opencv": "OpenCV's", "antialias": "antialiased"}


def main() -> None:
    """Replaces each table between its marks."""
    for name, text in (
        ("train step", step_table()),
        ("reader", reader_table(rows_of("reader"))),
        ("resize kind", kind_table(rows_of("resize_kind"))),
    ):
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        replace_between(ROOT / "docs" / "performance.md", *marks, text)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file of results."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    return list(json.loads(file.read_text(encoding="utf-8"))["rows"])


def step_table() -> str:
    """A training step, over that of the float network."""
    lines = [
        "| model | Paddle | float, ms | " + " | ".join(f"`{name}`" for name in NAMES) + " |",
        "|---" * (3 + len(NAMES)) + "|",
    ]
    for file in sorted((ROOT / "benchmarks" / "results").glob("train_step_*.json"), reverse=True):
        content = json.loads(file.read_text())
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
