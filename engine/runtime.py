"""What has to be decided before Paddle is loaded, and the choice of the device after it.

Nothing here imports Paddle at module level: the OpenMP runtime reads ``OMP_NUM_THREADS`` once,
when the library is loaded.
"""

from __future__ import annotations

import os
import random
import sys
import warnings

import numpy as np

from .memory import keep_freed_memory
from .parent import FIRST_PARENT  # noqa: F401  (it is looked up as early as that)

# Of Paddle: about compiling operators, and about every BatchNorm that is trained.
IRRELEVANT_WARNINGS = ("No ccache found", "When training, we now always track global mean")


def prepare_process() -> None:
    """Give each process its share of the cores, and silence warnings that say nothing to a user.

    Paddle's CPU build computes in one thread unless ``OMP_NUM_THREADS`` says otherwise. A value
    that the user has set is left alone. Call this before anything imports Paddle.
    """
    # The processes of one machine share its cores; the launcher names their number in one of two
    # variables, depending on its mode.
    processes = os.environ.get("PADDLE_LOCAL_SIZE") or os.environ.get("PADDLE_TRAINERS_NUM", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // int(processes))))
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def available_cores() -> int:
    """Number of cores that this process may use (containers often grant fewer than there are)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def select_device(use_gpu: bool) -> str:
    """Set and return Paddle's device, ``"gpu"`` or ``"cpu"``; on the CPU, keep freed memory.

    Args:
        use_gpu: the wish. Where no GPU can be used, one warning line says so and the CPU is taken.
    """
    import paddle  # after prepare_process(), see the module docstring

    if use_gpu:
        reason = _why_no_gpu()
        if reason is None:
            paddle.device.set_device("gpu")
            return "gpu"
        # Every process of a job comes by here; one of them speaks.
        if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
            print(f"warning: {reason}; running on the CPU", file=sys.stderr, flush=True)
    paddle.device.set_device("cpu")
    keep_freed_memory()
    return "cpu"


def _why_no_gpu() -> str | None:
    import paddle  # after prepare_process(), see the module docstring

    if not paddle.is_compiled_with_cuda():
        return "this build of Paddle has no GPU support"
    if paddle.device.cuda.device_count() < 1:
        return "no GPU was found"
    return None


def seed_everything(*parts: int) -> None:
    """Seed Paddle, NumPy and Python from a tuple of integers.

    Called with (seed, epoch, batch, rank) before every batch of training, so that what it draws
    (dropout, for one) depends on where it stands and not on what was drawn before. A resumed
    run therefore continues with the very same draws; a saved generator state would not do, as
    Paddle 2.6 drops the state of the CPU generator when it is pickled.
    """
    import paddle  # after prepare_process(), see the module docstring

    state = np.random.SeedSequence([part & 0xFFFFFFFF for part in parts]).generate_state(1)[0]
    seed = int(state) & 0x7FFFFFFF
    paddle.seed(seed)
    np.random.seed(seed)
    random.seed(seed)
