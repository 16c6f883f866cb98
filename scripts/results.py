"""From the files of benchmarks/results/ to the tables of a document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.marks import replace_between

ROOT = Path(__file__).resolve().parent.parent


def results(pattern: str) -> list[dict[str, Any]]:
    """The JSON files of that name, the newest Paddle first."""
    files = sorted((ROOT / "benchmarks" / "results").glob(pattern), reverse=True)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of the one file of that name."""
    (found,) = results(f"{name}.json")
    return list(found["rows"])


def replace_tables(document: str, tables: Mapping[str, str]) -> None:
    """Put each table between the marks of its name in a file of docs/.

    Raises:
        EngineError: as `scripts.marks.replace_between`.
    """
    for name, text in tables.items():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        replace_between(ROOT / "docs" / document, *marks, text)
