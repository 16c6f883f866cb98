"""The table of docs/performance.md is what the committed measurements say."""

from __future__ import annotations

from pathlib import Path

from scripts import step_table

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_table_is_that_of_the_measurements(monkeypatch, tmp_path):
    written = ROOT / "docs" / "performance.md"
    (tmp_path / "docs").mkdir()
    copy = tmp_path / "docs" / "performance.md"
    copy.write_text(written.read_text())
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.setattr(step_table, "ROOT", tmp_path)
    step_table.main()
    assert copy.read_text() == written.read_text()
    assert copy.read_text().count("| mobilenet_") >= 3
