"""The tables of docs/performance.md are what the committed measurements say."""

from __future__ import annotations

from pathlib import Path

from scripts import performance_tables

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_tables_are_those_of_the_measurements(monkeypatch, tmp_path):
    written = ROOT / "docs" / "performance.md"
    (tmp_path / "docs").mkdir()
    copy = tmp_path / "docs" / "performance.md"
    copy.write_text(written.read_text())
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.setattr(performance_tables, "ROOT", tmp_path)
    performance_tables.main()
    assert copy.read_text() == written.read_text()
    assert copy.read_text().count("| mobilenet_") >= 3
