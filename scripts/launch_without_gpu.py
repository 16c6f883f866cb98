"""Lets `python -m paddle.distributed.launch --gpus=0,1 ...` start on a machine without a GPU.

Paddle's launcher looks the numbers up among the GPUs that it sees and, where there is none, dies
with "ValueError: substring not found" before any script runs. With CUDA_VISIBLE_DEVICES set it
takes the numbers from there and starts one process each; train.py then runs them on the CPU.

scripts/setup_env.sh puts this file into the virtual environment as a module that Python imports
when it starts (a .pth file). It only looks at the command line, and does nothing for any other.
"""

from __future__ import annotations

import os
import sys


def gpus_of_launch(argv: list[str]) -> str | None:
    """The value of --gpus (or --devices) of a launch command, if this is one.

    While Python starts, `-m paddle.distributed.launch` is still `-m` in sys.argv[0].
    """
    if not argv or argv[0] != "-m":
        return None
    for at, word in enumerate(argv[1:], start=1):
        name, _, value = word.partition("=")
        if name in ("--gpus", "--devices"):
            return value or (argv[at + 1] if at + 1 < len(argv) else None)
        if word.endswith(".py"):
            return None
    return None


def has_gpu() -> bool:
    """True where an NVIDIA driver shows a device (Linux and WSL)."""
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def main() -> None:
    """Sets CUDA_VISIBLE_DEVICES where the launcher would not find its GPUs."""
    gpus = gpus_of_launch(getattr(sys, "argv", []))
    if gpus and "CUDA_VISIBLE_DEVICES" not in os.environ and not has_gpu():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus


main()
