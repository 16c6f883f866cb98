from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

CODE = """
import resource, sys
import numpy as np
from engine.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("not glibc")
    raise SystemExit
def block():
    values = np.empty(8 << 20, np.float32)
    values[::1024] = 1.0
for _ in range(3):
    block()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_block_that_was_freed_is_taken_again_without_page_faults():
    kept = page_faults("keep")
    if kept == "not glibc":
        pytest.skip("the C library is not glibc")
    assert int(kept) < 20 < int(page_faults("default"))  # of huge pages, 16 a block
