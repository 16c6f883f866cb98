"""The tables of docs/reliability.md are what the committed measurements say."""

from __future__ import annotations

from pathlib import Path

from scripts import reliability_tables

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_tables_are_those_of_the_measurements(monkeypatch, tmp_path):
    written = ROOT / "docs" / "reliability.md"
    (tmp_path / "docs").mkdir()
    copy = tmp_path / "docs" / "reliability.md"
    copy.write_text(written.read_text())
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.setattr(reliability_tables, "ROOT", tmp_path)
    reliability_tables.main()
    assert copy.read_text() == written.read_text()
    assert "| pdparams |" in copy.read_text() and "| 3.3.1 | 50 |" in copy.read_text()
