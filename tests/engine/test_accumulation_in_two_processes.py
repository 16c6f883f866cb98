from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("accumulate_in_two_processes.py")


def test_two_processes_that_accumulate_step_like_one_with_large_batches(tmp_path):
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node=2"]
    command += ["--backend", "gloo", "--log_dir", str(tmp_path / "log"), str(SCRIPT), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one = runpy.run_path(str(SCRIPT))["weights_after_two_steps"](0, 1, 20, 1)
    for rank in (0, 1):
        two = np.load(tmp_path / f"rank{rank}.npz")
        assert set(two) == set(one)
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-7, err_msg=name)
