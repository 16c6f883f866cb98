"""A short version of benchmarks/crash.py, and of benchmarks/fuzz.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=400
    )


@pytest.mark.slow
def test_runs_that_are_killed_end_like_one_that_is_not(tmp_path):
    done = run("benchmarks/crash.py", "--kills=3", "--seed=7", f"--output={tmp_path / 'crash'}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "crash.json").read_text())
    assert found["kills"] == 3 and found["faults"] == []
    assert (tmp_path / "crash.png").exists()


def test_a_run_that_is_not_the_same_is_a_fault(tmp_path, monkeypatch):
    """The comparison sees one bit."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import crash
    import numpy as np
    import paddle

    for name, value in (("a", 1.0), ("b", 1.0 + 2**-20)):
        folder = tmp_path / name
        (folder / "inference_model").mkdir(parents=True)
        (folder / "inference_model" / "qat_model.pdiparams").write_bytes(b"same")
        (folder / "summary.json").write_text("{}")
        (folder / "metrics.jsonl").write_text(f'{{"loss": 1, "batch_cost": {value}}}\n')
        paddle.save(
            {"w": paddle.to_tensor(np.full(3, value, "float32"))}, str(folder / "e.pdparams")
        )
    assert crash.differences(tmp_path / "a", tmp_path / "b") == ["e.pdparams: w differs"]


def test_damaged_files_are_refused(tmp_path):
    words = ["--count=60", "--engine_count=4", f"--output={tmp_path / 'fuzz'}"]
    words += [f"--keep={tmp_path / 'kept'}", "--targets", "list", "idx", "jpeg", "pdmodel"]
    done = run("benchmarks/fuzz.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "fuzz.json").read_text())["rows"]
    assert [row["files"] for row in rows] == [60] * 4
    assert all(row["refused"] + row["read"] == 60 and row["refused"] > 0 for row in rows)
