"""Numbers that are none: where NaN or infinity comes from, and how a step with it is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import paddle
from paddle import Tensor, nn

from quant.convert import named_layers


def gradients_are_finite(net: nn.Layer) -> Tensor:
    """Whether every gradient is finite: bool [].

    The sum of a tensor is finite only if each value is, and takes one operator per tensor.
    """
    sums = [p.grad.sum().astype("float32") for p in net.parameters() if p.grad is not None]
    return paddle.isfinite(paddle.stack(sums)).all() if sums else paddle.to_tensor(True)


def first_nonfinite_layer(net: nn.Layer, images: Tensor) -> str | None:
    """Run the network once more and name the place where the first number that is none appears.

    Args:
        net: the network; what it has seen (running statistics, observers) changes.
        images: a batch.

    Returns:
        Words to go on with after "the loss is nan: "; None if all is finite.
    """
    if not _is_finite(images):
        return "the images are not finite"
    for name, value in net.state_dict().items():
        if not _is_finite(value):
            return f"{name} is not finite"
    found: list[str] = []
    running: list[str] = []

    def before(name: str) -> Any:
        def hook(layer: nn.Layer, inputs: tuple[Any, ...]) -> None:
            if not found and not _is_finite(inputs):
                found.append(f"{_named(running[-1])} makes it of finite values, before {name}")
            running.append(name)

        return hook

    def after(name: str) -> Any:
        def hook(layer: nn.Layer, inputs: tuple[Any, ...], output: Any) -> None:
            running.pop()
            if not found and not _is_finite(output):
                found.append(f"{_named(name)} makes it of finite values")

        return hook

    hooks = []
    for name, layer in named_layers(net):
        hooks.append(layer.register_forward_pre_hook(before(name)))
        hooks.append(layer.register_forward_post_hook(after(name)))
    try:
        with paddle.no_grad():
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _named(layer: str) -> str:
    return layer or "the network's own forward"


def first_nonfinite_gradient(net: nn.Layer) -> str | None:
    """Name the parameter whose gradient the backward pass spoilt first; None if all are finite."""
    for name, parameter in reversed(list(net.named_parameters())):
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return f"the gradient of {name} is not finite"
    return None


class BufferCopies:
    """What a forward pass changes (running statistics, states of observers) as it is now.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Layer) -> None:
        # BatchNorm's statistics are parameters without a gradient, those of observers are buffers.
        kept = [*net.buffers(), *(p for p in net.parameters() if p.stop_gradient)]
        self._pairs = [(tensor, tensor.clone()) for tensor in kept]

    def restore(self) -> None:
        """Put them back."""
        for buffer, copy in self._pairs:
            paddle.assign(copy, output=buffer)


def _is_finite(value: Any) -> bool:
    """Whether every float in a tensor, or in what holds tensors, is finite."""
    return all(bool(paddle.isfinite(tensor).all()) for tensor in _float_tensors(value))


def _float_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _float_tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _float_tensors(item)
