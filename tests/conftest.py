from __future__ import annotations

import os

# Paddle 2.6 brings a zlib of its own; imported after it, Python's zlib binds to that and crashes.
import zlib  # noqa: F401

# Read when paddle is first imported. One thread makes sums come out in the same order each time,
# and the networks here are too small to gain from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
