"""From a network in memory to a graph: Paddle traces it, quantized layers leave their marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.base.proto import framework_pb2 as pb

from . import compat, markers
from .convert import named_layers
from .errors import ExportError
from .full_precision import without_autocast
from .graph import Graph
from .modes import evaluating


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: what it returned, where that is one tensor, and what ran meanwhile.

    The operators of the call are those of the main block from `ops_before` up to `ops_before_end`.
    """

    layer: Any
    name: str
    output: str | None
    ops_before: int
    ops_before_end: int


@dataclass
class Traced:
    """A graph, and what its marks stand for.

    Attributes:
        graph: the network.
        quantizers: by mark of a quantized tensor, what quantizes it (`layers.TensorQuantizer`): a
            layer for its input, or its result quantizer.
        weights: by mark of a weight, its layer.
        calls: every call of a layer, in the order in which they ended.
    """

    graph: Graph
    quantizers: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    calls: list[LayerCall] = field(default_factory=list)

    def layer_at(self, index: int) -> str:
        """Name of the innermost layer that called an operator of the main block, as traced."""
        around = [call for call in self.calls if call.ops_before <= index < call.ops_before_end]
        if not around:
            return "the network's own forward"
        inner = min(around, key=lambda call: call.ops_before_end - call.ops_before)
        return inner.name or f"{type(inner.layer).__name__}.forward"


class _Marks:
    """Marks tensors and weights with `assign`, and remembers what quantizes each."""

    def __init__(self) -> None:
        self.quantizers: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}

    def mark_tensor(self, quantizer: Any, x: Tensor) -> Tensor:
        marked = paddle.assign(x)
        self.quantizers[marked.name] = quantizer
        return marked

    def mark_weight(self, layer: Any) -> Tensor:
        marked = paddle.assign(layer.weight)
        self.weights[marked.name] = layer
        return marked


class _Shell(nn.Layer):
    """Calls the network with a list of inputs, so that tracing leaves its own forward alone."""

    def __init__(self, net: nn.Layer) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: list[Tensor]) -> Any:
        return self.net(*inputs)


def trace(net: nn.Layer, input_spec: Sequence[Any] | None) -> Traced:
    """Traces `net` in evaluation mode; the network is the same afterwards.

    Args:
        net: any network, quantized or not.
        input_spec: one paddle.static.InputSpec (or example tensor) per input.

    Raises:
        ExportError: the network cannot be traced; the message holds Paddle's reason.
    """
    specs = _check_spec(net, input_spec)
    marks = _Marks()
    calls: list[LayerCall] = []
    with (
        evaluating(net),
        _forward_kept(net),
        compat.old_ir(),
        markers.emitting(marks),
        _calls_recorded(net, calls),
        without_autocast(),
    ):
        shell = _Shell(net)
        shell.eval()
        try:
            static = paddle.jit.to_static(shell, input_spec=[specs], full_graph=True)
            concrete = static.forward.concrete_program
        except Exception as error:
            raise ExportError(
                f"{type(net).__name__} cannot be traced by Paddle: {_reason(error)}"
            ) from error
        program = pb.ProgramDesc()
        program.ParseFromString(concrete.main_program.desc.serialize_to_string())
        _for_evaluation(program)
        inputs = _names(concrete.inputs[1:] if _is_layer(concrete.inputs[0]) else concrete.inputs)
        outputs = _names(concrete.outputs)
    with evaluating(net), paddle.no_grad():
        _refresh_weights(net)
    graph = Graph(program, _constants(net, program), inputs, outputs)
    if not outputs:
        raise ExportError(f"{type(net).__name__} returns no tensor")
    return Traced(graph, marks.quantizers, marks.weights, calls)


def _for_evaluation(program: Any) -> None:
    """Says of every operator that it runs in evaluation, as all inference engines take it.

    `paddle.nn.BatchNorm` leaves that to whoever saves the program.
    """
    for block in program.blocks:
        for op in block.ops:
            for item in op.attrs:
                if item.name == "is_test":
                    item.b = True


def _refresh_weights(net: nn.Layer) -> None:
    """Lets hooks such as weight_norm's compute the weights that they own from what they are now.

    Such a weight is a plain tensor, renewed before each forward, so it is one step behind after
    training; and tracing has put a symbol in its place.
    """
    for _, layer in named_layers(net):
        if hasattr(layer, "_act_quant") and "weight" not in layer._parameters:
            for hook in layer._forward_pre_hooks.values():
                hook(layer, ())


def _check_spec(net: nn.Layer, input_spec: Sequence[Any] | None) -> list[Any]:
    if not isinstance(input_spec, (list, tuple)) or not input_spec:
        raise ExportError(
            f"input_spec={input_spec!r}: allowed is a list with one paddle.static.InputSpec per "
            f"input of {type(net).__name__}"
        )
    specs = []
    for i, spec in enumerate(input_spec):
        if isinstance(spec, Tensor):
            spec = paddle.static.InputSpec(shape=list(spec.shape), dtype=spec.dtype)
        if not isinstance(spec, paddle.static.InputSpec):
            raise ExportError(
                f"input_spec[{i}]={spec!r}: allowed is a paddle.static.InputSpec or a tensor"
            )
        specs.append(
            paddle.static.InputSpec(shape=spec.shape, dtype=spec.dtype, name=spec.name or f"x{i}")
        )
    return specs


def _is_layer(item: Any) -> bool:
    return isinstance(item, nn.Layer)


def _names(items: Any) -> list[str]:
    """Names of the tensors in nested lists, tuples and dictionaries, in order."""
    if isinstance(items, dict):
        items = list(items.values())
    if isinstance(items, (list, tuple)):
        return [name for item in items for name in _names(item)]
    return [items.name] if hasattr(items, "name") and hasattr(items, "shape") else []


def _constants(net: nn.Layer, program: Any) -> dict[str, np.ndarray]:
    values = {t.name: t for _, layer in named_layers(net) for t in _tensors_of(layer)}
    wanted = [v.name for v in program.blocks[0].vars if v.persistable]
    return {name: np.asarray(values[name].numpy()) for name in wanted if name in values}


def _tensors_of(layer: Any) -> Iterator[Tensor]:
    for group in (layer._parameters, layer._buffers):
        for tensor in group.values():
            if tensor is not None:
                yield tensor


@contextmanager
def _calls_recorded(net: nn.Layer, calls: list[LayerCall]) -> Iterator[None]:
    begun: list[int] = []
    names = {id(layer): name for name, layer in named_layers(net)}

    def count() -> int:
        return len(paddle.static.default_main_program().current_block().ops)

    def before(layer: Any, _: Any) -> None:
        begun.append(count())

    def after(layer: Any, _: Any, output: Any) -> None:
        result = getattr(output, "name", None)
        calls.append(LayerCall(layer, names[id(layer)], result, begun.pop(), count()))

    hooks = []
    for _, layer in named_layers(net):
        hooks.append(layer.register_forward_pre_hook(before))
        hooks.append(layer.register_forward_post_hook(after))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _forward_kept(net: nn.Layer) -> Iterator[None]:
    """Tracing gives each layer a translated forward on some versions: takes that back."""
    before = [
        (layer, layer.__dict__.get("forward"), dict(getattr(layer, "_original_funcs", {})))
        for _, layer in named_layers(net)
    ]
    try:
        yield
    finally:
        for layer, forward, originals in before:
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = forward
            if hasattr(layer, "_original_funcs"):
                layer._original_funcs.clear()
                layer._original_funcs.update(originals)


def _reason(error: BaseException) -> str:
    """The line of a Paddle message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if "Error" in line and "File" not in line:
            return line
    return lines[-1] if lines else type(error).__name__
