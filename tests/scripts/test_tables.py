"""The tables of the documents are what the committed measurements say."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import performance_tables, reliability_tables, results

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "script,document,told",
    [
        (performance_tables, "performance.md", ["| mobilenet_v1 | 3.3.1 |", "| train | OpenCV"]),
        (reliability_tables, "reliability.md", ["| pdparams |", "| 3.3.1 | 50 |"]),
    ],
    ids=["performance", "reliability"],
)
def test_they_are_those_of_the_measurements(script, document, told, monkeypatch, tmp_path):
    written = (ROOT / "docs" / document).read_text()
    (tmp_path / "docs").mkdir()
    copy = tmp_path / "docs" / document
    copy.write_text(written)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    script.main()
    assert copy.read_text() == written
    assert all(words in written for words in told)
