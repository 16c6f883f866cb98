"""Writes the table of docs/performance.md from benchmarks/results/train_step_*.json.

python -m scripts.step_table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.marks import replace_between

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("ours", "pact", "operators", "paddle", "torch_fx", "evaluate")
BASES = {"paddle": "default", "torch_fx": "torch", "evaluate": "evaluate_float"}


def main() -> None:
    """Replaces the table between its marks."""
    lines = [
        "| model | Paddle | float, ms | " + " | ".join(f"`{name}`" for name in NAMES) + " |",
        "|---" * (3 + len(NAMES)) + "|",
    ]
    for file in sorted((ROOT / "benchmarks" / "results").glob("train_step_*.json"), reverse=True):
        content = json.loads(file.read_text())
        lines += [row_of(row, content["paddle"]) for row in content["rows"]]
    lines.append("")
    lines.append("Time over the float step; in brackets peak memory over that of the float step.")
    marks = "<!-- train step -->", "<!-- /train step -->"
    replace_between(ROOT / "docs" / "performance.md", *marks, "\n".join(lines))


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
