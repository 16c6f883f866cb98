"""Numbers that are none: where NaN or infinity comes from, and how a step with it is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import paddle
from paddle import Tensor, nn

from quant.convert import named_layers
from quant.pact import Pact


def gradients_are_finite(net: nn.Layer) -> Tensor:
    """Whether every gradient is finite: bool [], on the device."""
    each = [paddle.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None]
    return paddle.stack(each).all() if each else paddle.to_tensor(True)


def nonfinite_tensors(net: nn.Layer) -> list[str]:
    """Names of the parameters and buffers that hold a number that is none."""
    return [name for name, value in net.state_dict().items() if not _is_finite(value)]


def first_nonfinite_layer(net: nn.Layer, images: Tensor) -> str | None:
    """Run the network once more and name the place where the first number that is none appears.

    Args:
        net: the network; what it has seen (running statistics, observers) changes. Several
            processes call this together, as observers do, whatever a process finds by itself.
        images: a batch.

    Returns:
        Words to go on with after "the loss is nan: "; None if all is finite.
    """
    found: list[str] = []
    if not _is_finite(images):
        found.append("the images are not finite")
    found += [f"{name} is not finite" for name in nonfinite_tensors(net)]
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
    """What a forward pass changes (running statistics, states of observers, a PACT that starts
    with the first batch) as it is now.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Layer) -> None:
        # BatchNorm's statistics are parameters without a gradient, those of observers are buffers.
        kept = [*net.buffers(), *(p for p in net.parameters() if p.stop_gradient)]
        self._pairs = [(tensor, tensor.clone()) for tensor in kept]
        layers = net.sublayers(include_self=True)
        self._unset = [x for x in layers if isinstance(x, Pact) and x.may_be_unset]

    def restore(self) -> None:
        """Put them back."""
        for buffer, copy in self._pairs:
            paddle.assign(copy, output=buffer)
        for pact in self._unset:
            pact.forget_start()


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
