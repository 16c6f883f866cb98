"""Everything that differs between Paddle 2.6 and 3.x, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle


@contextmanager
def old_ir() -> Iterator[None]:
    """Tracing gives a ProgramDesc while this is open (2.6 knows nothing else, 3.x needs a guard).

    The new IR of 3.x refuses int8 input to dequantize_linear, and only the old format is read by
    Paddle Inference of both versions.
    """
    guard = getattr(getattr(paddle, "pir_utils", None), "DygraphOldIrGuard", None)
    if guard is None:
        yield
        return
    from .old_ir_ops import callable_in_old_ir

    with guard(), callable_in_old_ir():
        yield


def tensor_type(var_type: Any) -> Any:
    """The tensor message of a VarType: 3.x calls the field dense_tensor, 2.6 lod_tensor."""
    return var_type.dense_tensor if hasattr(var_type, "dense_tensor") else var_type.lod_tensor


def run_custom_op(name: str, *arguments: Any) -> list[Any]:
    """The outputs of an operator of a C++ extension."""
    if hasattr(paddle._C_ops, "_run_custom_op"):
        return list(paddle._C_ops._run_custom_op(name, *arguments))
    return list(paddle.base.core.eager._run_custom_op(name, *arguments))


def has_conv2d_gradients() -> bool:
    """True where Paddle itself gives Python the gradients of a convolution.

    2.6 does not; `native` reaches them there (`conv_gradients.cc`).
    """
    return hasattr(paddle._C_ops, "conv2d_grad")


def conv2d_gradients(x: Any, weight: Any, grad: Any, *settings: Any) -> tuple[Any, Any]:
    """Gradients of paddle.nn.functional.conv2d for its input and its weight.

    They are what Paddle's own backward pass computes, by the same kernels. Without
    `has_conv2d_gradients` the library of `native` has to be loaded.

    Args:
        x: input of the convolution.
        weight: its weight.
        grad: gradient of its result.
        settings: stride, padding, dilation, groups and data_format, as conv2d takes them.
    """
    from paddle.nn.functional.conv import _update_padding_nd

    stride, padding, dilation, groups, data_format = settings
    last = data_format == "NHWC"
    channels = x.shape[-1 if last else 1]
    padding, algorithm = _update_padding_nd(padding, last, 2)
    stride, dilation = (
        [value, value] if isinstance(value, int) else list(value) for value in (stride, dilation)
    )
    is_depthwise = groups == channels != 1 and weight.shape[0] % channels == 0
    if not has_conv2d_gradients():
        found = run_custom_op(
            "paddleqat_conv2d_gradients",
            *(x, weight, grad, stride, padding, algorithm, dilation, groups, data_format),
            is_depthwise,
        )
    elif is_depthwise:
        found = paddle._C_ops.depthwise_conv2d_grad(
            x, weight, grad, stride, padding, algorithm, groups, dilation, data_format
        )
    else:
        found = paddle._C_ops.conv2d_grad(
            x, weight, grad, stride, padding, algorithm, dilation, groups, data_format
        )
    return found[0], found[1]


def autocast_is_on() -> bool:
    """True within an enabled paddle.amp.auto_cast."""
    return bool(paddle.base.framework._dygraph_tracer()._amp_level != paddle.base.core.AmpLevel.O0)


def enable_onednn_int8(config: Any) -> None:
    """Switches a paddle.inference.Config to oneDNN with int8 kernels."""
    for name in ("mkldnn", "onednn"):
        if hasattr(config, f"enable_{name}_int8"):
            getattr(config, f"enable_{name}")()
            getattr(config, f"enable_{name}_int8")()
            return


def disable_onednn(config: Any) -> None:
    """Plain CPU kernels: Paddle 3 switches oneDNN on by default."""
    for name in ("mkldnn", "onednn"):
        if hasattr(config, f"disable_{name}"):
            getattr(config, f"disable_{name}")()
            return


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """``optimizer.state_dict()``, complete also between restoring it and the first step.

    Paddle 2.6 gives what was restored to the optimizer at its next step, and lacks it until then. A
    run that was stopped before an evaluation writes checkpoints after that, without a step.
    """
    return {**optimizer._accumulators_holder, **optimizer.state_dict()}
