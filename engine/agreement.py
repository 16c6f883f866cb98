"""What the processes of a job decide together after each training step."""

from __future__ import annotations

import paddle
import paddle.distributed as dist
from paddle import Tensor

from . import distributed


def any_of_all(*questions: Tensor | bool) -> list[bool]:
    """For each question, whether some process says yes (a collective call of few bytes).

    The gradients of the step have just been averaged, so nobody has to be waited for.
    """
    answers = paddle.stack([_as_int(question) for question in questions])
    if distributed.world_size() > 1:
        dist.all_reduce(answers)
    return [value > 0 for value in answers.tolist()]


def _as_int(question: Tensor | bool) -> Tensor:
    if isinstance(question, Tensor):
        return question.astype("int32").reshape([])
    return paddle.full([], int(question), "int32")
