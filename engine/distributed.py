"""Several processes: who am I, sums over all, one voice.

Works unchanged with one process, where every function is the identity. The processes are started by
``python -m paddle.distributed.launch``, which describes the job in environment variables.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.base.core import create_or_get_global_tcp_store

from .errors import EngineError

# Seconds between two looks at who has arrived at a barrier.
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.1

# Source folders of Paddle whose names stand in the message of a failed collective or store.
COLLECTIVE_LAYERS = ("gloo", "tcp_store", "tcp_utils", "ProcessGroupNCCL")

# Paddle turns each kind of its errors into another one of Python's.
STORE_ERRORS = (RuntimeError, ValueError, OSError)

# Where a process that fails leaves its error, in the key-value store that all share.
FAILED_KEY, REASON_KEY = "engine/failed", "engine/reason"

_barriers_passed = _texts_exchanged = 0


def init(device: str) -> None:
    """Join the job that the launcher describes; nothing to do for a single process.

    Args:
        device: ``"gpu"`` (NCCL) or ``"cpu"`` (gloo).
    """
    if world_size() == 1:
        return
    if device == "cpu":
        # Asked for GPUs on a machine without any, the launcher does not name a backend.
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    dist.init_parallel_env()


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("PADDLE_TRAINER_ID", 0))


def world_size() -> int:
    """Number of processes of the job."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """Sum of a float64 array over all processes; every process gets the same result."""
    if world_size() == 1:
        return values
    barrier()
    total = paddle.to_tensor(values, dtype="float64")
    dist.all_reduce(total)
    return total.numpy()


@contextmanager
def lost_peers_named() -> Iterator[None]:
    """Let every process know why one of them ends.

    The launcher ends the whole job as soon as one process fails, and shows the log of the first
    one only. So an error is left where the others find it; and where a collective fails because
    its partner has ended, that reason takes the place of what the network layer has to say.

    Raises:
        EngineError: another process has ended.
    """
    try:
        yield
    except Exception as error:
        if world_size() == 1 or not dist.is_initialized():
            raise
        if isinstance(error, RuntimeError) and any(
            name in str(error) for name in COLLECTIVE_LAYERS
        ):
            raise EngineError(_reason_of_the_others()) from error
        _tell_the_others(f"failed: {_words(error)}")
        raise
    except BaseException as error:  # Ctrl-C, SIGTERM
        if world_size() > 1 and dist.is_initialized():
            _tell_the_others(f"was stopped: {_words(error)}")
        raise


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _tell_the_others(what: str) -> None:
    with contextlib.suppress(*STORE_ERRORS):  # the process that keeps the store has ended already
        store = create_or_get_global_tcp_store()
        store.set(REASON_KEY, f"process {rank()} {what}")
        store.add(FAILED_KEY, 1)


def _reason_of_the_others() -> str:
    with contextlib.suppress(*STORE_ERRORS):
        store = create_or_get_global_tcp_store()
        if store.add(FAILED_KEY, 0) > 0:
            return str(store.get(REASON_KEY).decode())
    return (
        f"process {rank()} lost another process of the job, which has ended; the reason "
        "stands in the log of that one (log/workerlog.N)"
    )


def require_one_process(script: str) -> None:
    """Refuse to run under the launcher.

    Raises:
        EngineError: there are several processes.
    """
    if world_size() > 1:
        raise EngineError(
            f"{script} works in one process, and the launcher has started {world_size()}; "
            f"run python {script} without paddle.distributed.launch"
        )


def barrier() -> None:
    """Wait until every process has come here, however long that takes.

    A collective of gloo gives up after 30 s, and nothing can change that; checking an exported file
    on one process takes longer. The key-value store that the processes share has no such limit.
    Should one of them end instead of coming, its error ends the others, or the launcher does.

    Raises:
        EngineError: another process has failed.
    """
    global _barriers_passed
    if world_size() == 1:
        return
    _barriers_passed += 1
    key = f"engine/barrier/{_barriers_passed}"
    store = create_or_get_global_tcp_store()
    arrived = store.add(key, 1)
    pause = FIRST_PAUSE
    while arrived < world_size():
        if store.add(FAILED_KEY, 0) > 0:
            raise EngineError(_reason_of_the_others())
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        arrived = store.add(key, 0)


def texts_of_all(text: str) -> list[str]:
    """What each process has to say, by rank (a collective call)."""
    global _texts_exchanged
    if world_size() == 1:
        return [text]
    _texts_exchanged += 1
    store = create_or_get_global_tcp_store()
    key = f"engine/text/{_texts_exchanged}"
    store.set(f"{key}/{rank()}", text or " ")
    barrier()
    return [store.get(f"{key}/{other}").decode().strip() for other in range(world_size())]


def average_batch_norm(net: nn.Layer) -> None:
    """Replace the running statistics of every BatchNorm by their mean over the processes.

    Each process has seen other images, so the statistics differ between them while the weights do
    not. After this call all processes hold the same network. The moving average is linear, so
    averaging in between changes no later average.
    """
    if world_size() == 1:
        return
    barrier()
    for layer in net.sublayers(include_self=True):
        for name in ("_mean", "_variance"):
            statistic = getattr(layer, name, None)
            if isinstance(statistic, Tensor):
                dist.all_reduce(statistic)
                statistic.set_value(statistic / world_size())


def data_parallel(net: nn.Layer) -> nn.Layer:
    """The network as training calls it: gradients are averaged over the processes."""
    return net if world_size() == 1 else paddle.DataParallel(net)
