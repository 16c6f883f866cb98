"""One collective: the largest of a value over the ranks of a job."""

from __future__ import annotations

import paddle
from paddle import Tensor


def max_over_ranks(value: Tensor) -> Tensor:
    """The elementwise maximum over all ranks; `value` itself in a job of one process.

    Every rank must call it equally often, which training steps of one network do.
    """
    if paddle.distributed.is_initialized() and paddle.distributed.get_world_size() > 1:
        paddle.distributed.all_reduce(value, op=paddle.distributed.ReduceOp.MAX)
    return value
