"""Where an engine keeps integers, read off the traced network, and the quantizers set to that.

The plain simulation quantizes the input of each layer by itself. An engine has one integer tensor
where several operators read it, has unsigned integers where nothing can be negative, and may add a
residual inside the convolution before the sum. For such a target

* an input that cannot be negative gets an unsigned grid;
* layers that read one tensor share one quantizer;
* a tensor that a layer and a residual sum read is quantized where it is computed, by a hook on the
  layer that returns it, so that the sum reads what the engine has.

A residual sum counts where the engine fuses it: one side is the result of a quantized convolution
that nobody else reads, the other such a shared tensor, and the sum (after a relu, if there is one)
is itself quantized; both tensors are unsigned and a relu follows, or none of it. Where a sum is
anything else it stays in float, in the simulation and in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import paddle
from paddle import Tensor, nn

from . import markers
from .bounds import lower_bound
from .convert import quantized_layers
from .errors import QuantError
from .fold import find_tail
from .freeze import is_batch_norm
from .graph import CONVOLUTIONS, Graph, Op
from .grid import signed, unsigned
from .integer_bias import IntegerBias
from .layers import InputRole, ResultQuantizer, TensorQuantizer
from .onednn import is_concatenated
from .quantizers import ActivationQuantizer, ScaleGroup
from .targets import Target
from .trace import LayerCall, Traced, trace

_RELUS = ("relu", "relu6")
_ACTIVATIONS = (
    "elu",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)
_FUSED = tuple(name for name in _ACTIVATIONS if name != "hard_sigmoid")
# What gives only values of its input, or zero.
_KEEPS_GRID = (
    "flatten_contiguous_range",
    "pool2d",
    "relu",
    "reshape2",
    "slice",
    "split",
    "squeeze2",
    "transpose2",
    "unsqueeze2",
)
# What an engine computes from integers to integers, if its inputs are integers.
_ON_INTEGERS = ("elementwise_add", "elementwise_mul", "concat", "pool2d")
# A hook belongs on the layer that computes, not on one that only calls its members.
_CONTAINERS = (nn.Sequential, nn.LayerList)


def place(net: nn.Layer, input_spec: Sequence[Any] | None) -> None:
    """Sets grids and shared quantizers of `net` for the target that it was quantized for.

    Placing a placed network changes nothing.

    Raises:
        ExportError: the network cannot be traced.
    """
    layers = [layer for _, layer in quantized_layers(net)]
    if all(layer.is_placed for layer in layers):
        return
    traced = trace(net, input_spec)
    _Placement(traced, layers[0].target).apply()
    for layer in layers:
        layer.is_placed = True


class PlaceOnFirstCall:
    """A hook that places a network when it is first called, with the inputs of that call."""

    def __call__(self, net: nn.Layer, inputs: Any) -> None:
        """Traces with the shapes of `inputs`, any number of them along the first axis."""
        if markers.tracing() or all(layer.is_placed for _, layer in quantized_layers(net)):
            return
        if not inputs or not all(isinstance(item, Tensor) for item in inputs):
            raise QuantError(
                "the grids of this deploy_target are found by tracing, and the first call has no "
                "plain tensors to trace with: pass input_spec to quantize()"
            )
        place(net, [_spec(item) for item in inputs])


def _spec(x: Tensor) -> paddle.static.InputSpec:
    shape = [None, *x.shape[1:]] if x.shape else []
    return paddle.static.InputSpec(shape=shape, dtype=x.dtype)


class _QuantizeOutput:
    """A hook that quantizes what a layer returns."""

    def __init__(self, quantizer: TensorQuantizer) -> None:
        self.quantizer = quantizer

    def __call__(self, layer: nn.Layer, inputs: Any, output: Tensor) -> Tensor:
        return self.quantizer.quantized(output)


@dataclass
class _Sum:
    """A residual sum that a convolution can take in.

    Attributes:
        op: the elementwise_add.
        residual: the tensor that is added to the convolution's result.
        result: the sum, after a relu where one follows.
        has_relu: whether one does.
    """

    op: Op
    residual: str
    result: str
    has_relu: bool


class _Placement:
    """The decisions for one traced network."""

    def __init__(self, traced: Traced, target: Target) -> None:
        self.traced, self.target = traced, target
        self.graph: Graph = traced.graph
        self.order = {id(op): i for i, op in enumerate(self.graph.blocks[0])}
        self.marks: dict[str, list[Any]] = {}  # by tensor: the layers that quantize it
        self.tensors: dict[int, list[str]] = {}  # by layer: the tensors that it quantizes
        self.calls = Counter(id(call.layer) for call in traced.calls)
        self.layers = list(traced.weights.values())
        self.names = {id(call.layer): call.name for call in traced.calls}
        self.at_source: dict[str, ActivationQuantizer] = {}  # by tensor quantized where computed
        for mark, layer in traced.quantizers.items():
            assign = self.graph.producer(mark)
            if assign is not None:
                self.marks.setdefault(assign.input("X"), []).append(layer)
                self.tensors.setdefault(id(layer), []).append(assign.input("X"))

    def apply(self) -> None:
        """Sets grids, shared quantizers and hooks."""
        sources = {total.residual: self._source(total.residual) for total in self._sums()}
        if self.target.needs_integer_results:
            sources.update(self._joints())
            for tensor, layer, source in list(self._results(sources)):
                self._quantize_result(tensor, layer, source)
            for tensor, source in self._between_integers(sources):
                self._quantize_result(tensor, source, source)
        if self.target.adds_unrounded:
            for tensor in self._summands(sources):
                quantizer = self.at_source[tensor].quantizer
                quantizer.grid = replace(quantizer.grid, rounds=False)
        if self.target.onnx_bias == "int32":
            self._round_biases()
        for tensor, layers in self.marks.items():
            for layer in layers:
                quantizer = layer._act_quant
                self._choose_grid(quantizer, self.tensors[id(layer)])
            source = sources.get(tensor)
            if source is not None or self._may_share(tensor):
                _share(layers, source)
            if source is not None:
                self.at_source[tensor] = layers[0]._act_quant
        for tensor, layers in self.marks.items():
            if tensor not in sources and self._may_share(tensor):
                self._join_grids(tensor, layers)

    def _choose_grid(self, quantizer: ActivationQuantizer, tensors: Iterable[str]) -> None:
        if self.target.unsigned and quantizer.is_builtin():
            if all(map(self._is_unsigned, tensors)):
                quantizer.quantizer.grid = unsigned(quantizer.bits)

    def _is_unsigned(self, tensor: str) -> bool:
        if lower_bound(self.graph, tensor) < 0:
            return False
        return not (self.target.signed_concat and is_concatenated(self.graph, tensor))

    def _may_share(self, tensor: str) -> bool:
        """True where each layer that quantizes the tensor quantizes no other, and always runs."""
        layers = self.marks.get(tensor, [])
        always = all(id(op) in self.order for op in self.graph.consumers(tensor))
        return bool(layers) and always and all(len(self.tensors[id(x)]) == 1 for x in layers)

    # --- residual sums ---------------------------------------------------------------------

    def _sums(self) -> list[_Sum]:
        """The sums that the engine fuses: all candidates, less those that fail for the rest."""
        if not self.target.sums_integers:
            return []
        found = [s for op in self.graph.blocks[0] for s in self._candidates(op)]
        while True:
            kept = [total for total in found if self._holds(total, found)]
            if len(kept) == len(found):
                return kept
            found = kept

    def _candidates(self, op: Op) -> list[_Sum]:
        if op.type != "elementwise_add":
            return []
        graph, sides = self.graph, (op.input("X"), op.input("Y"))
        if any(side in graph.constants for side in sides):
            return []
        if graph.shape(sides[0]) != graph.shape(sides[1]):
            return []
        result, has_relu = op.output("Out"), False
        reader = graph.consumers(result)[0] if graph.is_private(result) else None
        if reader is not None and reader.type in _RELUS:
            result, has_relu = reader.output("Out"), True
        return [
            _Sum(op, residual, result, has_relu)
            for residual, other in (sides, sides[::-1])
            if residual in self.marks and self._is_product(other)
        ]

    def _is_product(self, name: str) -> bool:
        """True for the result of a quantized convolution, with its bias and BatchNorm."""
        graph = self.graph
        for _ in range(3):
            op = graph.producer(name)
            if op is None or not graph.is_private(name):
                return False
            if op.type in CONVOLUTIONS:
                return op.input("Filter") in self.traced.weights
            if op.type != "batch_norm" and not self._adds_constant(op):
                return False
            name = op.input("X")
        return False

    def _adds_constant(self, op: Op) -> bool:
        """True for the bias of a layer, which may be reshaped first."""
        if op.type != "elementwise_add":
            return False
        name = op.input("Y")
        maker = self.graph.producer(name)
        return name in self.graph.constants or (
            maker is not None and all(x in self.graph.constants for x in maker.all_inputs())
        )

    def _holds(self, total: _Sum, sums: list[_Sum]) -> bool:
        residual, result = total.residual, total.result
        if not self._may_share(residual) or not self._may_share(result):
            return False
        if not self._is_unsigned(residual) == self._is_unsigned(result) == total.has_relu:
            return False
        if self._source(residual) is None:
            return False
        return all(self._only_quantized(name, sums) for name in (residual, result))

    def _only_quantized(self, tensor: str, sums: list[_Sum]) -> bool:
        """True where the tensor is read by quantizers, and as the residual of fused sums."""
        if tensor in self.graph.outputs:
            return False
        fused = [total.op for total in sums if total.residual == tensor]
        readers = self.graph.consumers(tensor)
        return all(self._is_mark(op) or any(op is total for total in fused) for op in readers)

    # --- kernels that return integers --------------------------------------------------------

    def _joints(self) -> dict[str, Any]:
        """Tensors that a convolution and an operator on integers read, with what returns them.

        They are quantized where they are computed, so that all readers get the same integers.
        """
        found: dict[str, Any] = {}
        for tensor in self.marks:
            others = [op for op in self.graph.consumers(tensor) if not self._is_mark(op)]
            if not others or not all(op.type in _ON_INTEGERS for op in others):
                continue
            if tensor in self.graph.outputs or not self._may_share(tensor):
                continue
            if not any(isinstance(layer, nn.Conv2D) for layer in self.marks[tensor]):
                continue
            source = self._source(tensor)
            if source is not None:
                found[tensor] = source
        return found

    def _results(self, sources: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Results of quantized convolutions that no quantizer reads.

        What only leads to the network's outputs are logits, which stay in float.

        Yields the tensor, the layer of the convolution, and the layer that returns the tensor.
        """
        for op in self.graph.blocks[0]:
            if op.type not in CONVOLUTIONS or op.input("Filter") not in self.traced.weights:
                continue
            layer = self.traced.weights[op.input("Filter")]
            steps = self._kernel_results(op)
            last = steps[-1]
            if self.target.fuses_activations and not self._is_for_integers(last):
                continue
            if (
                self._is_quantized(last, sources)
                or self.calls[id(layer)] != 1
                or not self._leads_to_quantizer(last)
            ):
                continue
            for tensor in reversed(steps):
                source = self._source(tensor)
                if source is not None:
                    yield tensor, layer, source
                    break

    def _between_integers(self, sources: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Activations and sums of integer tensors that a pooling, concat or sum reads.

        Yields the tensor and the layer that returns it.
        """
        for op in self.graph.blocks[0]:
            integers = {*sources, *self.at_source}
            if op.type in _ACTIVATIONS and op.input("X") in integers:
                tensor = op.output("Out")
            elif op.type == "elementwise_add" and {op.input("X"), op.input("Y")} <= integers:
                tensor = self._after_relu(op)
            else:
                continue
            readers = self.graph.consumers(tensor)
            joins = any(x.type in _ON_INTEGERS for x in readers)
            if not (joins and self._is_for_integers(tensor)) or tensor in {*integers, *self.marks}:
                continue
            source = self._source(tensor)
            if source is not None and self._leads_to_quantizer(tensor):
                yield tensor, source

    def _is_for_integers(self, tensor: str) -> bool:
        """True where no operator reads the tensor that computes in float anyway."""
        readers = self.graph.consumers(tensor)
        return all(self._is_mark(op) or op.type in _ON_INTEGERS for op in readers)

    def _summands(self, sources: Mapping[str, Any]) -> Iterator[str]:
        """Results of convolutions that the kernel adds a residual to, as its next step.

        That is so where nothing else reads the result, the residual is another integer tensor and
        not what the convolution itself reads, and the sum is quantized (after a relu, if there is
        one). Of two such results in one sum the first is in the kernel.
        """
        for op in self.graph.blocks[0]:
            if op.type != "elementwise_add" or not self._is_quantized(
                self._after_relu(op), sources
            ):
                continue
            sides = op.input("X"), op.input("Y")
            for tensor, residual in (sides, sides[::-1]):
                quantizer = self.at_source.get(tensor)
                is_result = quantizer is not None and quantizer.is_builtin()
                if is_result and self._is_quantized(residual, sources):
                    read = self._read_by_kernel(tensor)
                    if read not in (None, residual):
                        yield tensor
                        break

    def _after_relu(self, total: Op) -> str:
        """The sum, or what a relu makes of it that alone reads it."""
        result = total.output("Out")
        reader = self.graph.consumers(result)[0] if self.graph.is_private(result) else None
        return reader.output("Out") if reader is not None and reader.type in _RELUS else result

    def _is_quantized(self, tensor: str, sources: Mapping[str, Any]) -> bool:
        return tensor in {*sources, *self.at_source} or (
            self._may_share(tensor) and all(map(self._is_mark, self.graph.consumers(tensor)))
        )

    def _read_by_kernel(self, tensor: str) -> str | None:
        """What the convolution reads that computes `tensor`, for one reader; None without one."""
        while self.graph.is_private(tensor):
            op = self.graph.producer(tensor)
            if op is None:
                return None
            if op.type in CONVOLUTIONS:
                mark = self.graph.producer(op.input("Input"))
                return mark.input("X") if mark is not None and self._is_mark(mark) else None
            if op.type not in (*_RELUS, "batch_norm") and not self._adds_constant(op):
                return None
            tensor = op.input("X")
        return None

    def _leads_to_quantizer(self, tensor: str) -> bool:
        """True where a quantized layer comes after the tensor."""
        seen, open_names = {tensor}, [tensor]
        while open_names:
            for op in self.graph.consumers(open_names.pop()):
                if self._is_mark(op):
                    return True
                new = [name for name in op.all_outputs() if name not in seen]
                seen.update(new)
                open_names += new
        return False

    def _kernel_results(self, op: Op) -> list[str]:
        """What a convolution returns, and what it would with bias, BatchNorm and relu inside."""
        fused = _FUSED if self.target.fuses_activations else _RELUS
        steps = [op.output("Output")]
        while self.graph.is_private(steps[-1]):
            reader = self.graph.consumers(steps[-1])[0]
            if reader.type == "batch_norm":
                steps.append(reader.output("Y"))
            elif reader.type in fused or self._adds_constant(reader):
                steps.append(reader.output("Out"))
            else:
                break
        return steps

    def _quantize_result(self, tensor: str, layer: Any, source: Any) -> None:
        quantizer = self.layers[0]._act_quant.fresh()
        self._choose_grid(quantizer, [tensor])
        layer._result_quant = ResultQuantizer(self.names[id(layer)], quantizer)
        layer._result_quant.train() if layer.training else layer._result_quant.eval()
        source.register_forward_post_hook(_QuantizeOutput(layer._result_quant))
        self.at_source[tensor] = quantizer

    def _join_grids(self, tensor: str, layers: list[Any]) -> None:
        """Puts all parts of a concat on one grid, so that it passes their integers through."""
        parts = self._parts(tensor)
        if parts is None or len(parts) < 2 or not all(part.is_builtin() for part in parts):
            return
        observers = [part.quantizer for part in parts]
        for other in [
            other for observer in observers if observer.group for other in observer.group.members
        ]:
            observers += [] if any(other is observer for observer in observers) else [other]
        group = ScaleGroup(observers)
        same = unsigned if all(observer.grid.is_unsigned for observer in observers) else signed
        for observer in observers:
            observer.group, observer.grid = group, same(observer.bits)
        for layer in layers:
            layer._act_quant = parts[0]
            layer.input_role = InputRole.FOLLOWS

    def _parts(self, tensor: str) -> list[ActivationQuantizer] | None:
        """The quantizers of what a tensor is put together from; None where a part has none."""
        if tensor in self.at_source:
            return [self.at_source[tensor]]
        op = self.graph.producer(tensor)
        if op is None:
            return None
        if op.type == "concat":
            found = [self._parts(name) for name in op.inputs("X")]
            if any(part is None for part in found):
                return None
            flat = [item for part in found if part is not None for item in part]
            return [part for i, part in enumerate(flat) if not any(part is x for x in flat[:i])]
        if op.type not in _KEEPS_GRID or (op.type == "pool2d" and op.attr("pooling_type") != "max"):
            return None
        return self._parts(op.input("Input" if op.inputs("Input") else "X"))

    def _round_biases(self) -> None:
        """Lets layers round their bias as the kernel does.

        A layer that is called more than once has one bias for all its calls only if the same
        BatchNorm, or none, follows each of them.
        """
        norms: dict[int, list[Any]] = {}
        layers: dict[int, Any] = {}
        for op in self.graph.blocks[0]:
            is_conv = op.type in CONVOLUTIONS
            weight = op.inputs("Filter" if is_conv else "Y")
            layer = self.traced.weights.get(weight[0]) if weight else None
            if layer is None or not layer._act_quant.is_builtin():
                continue
            product = op.output("Output" if is_conv else "Out")
            channels = layer.weight.shape[layer.weight_channel_axis]
            layers[id(layer)] = layer
            found = norms.setdefault(id(layer), [])
            norm = find_tail(self.graph, op, product, channels).batch_norm
            if norm is None:
                found.append(None)
                continue
            result = norm.output("Y")
            owners = [call.layer for call in self.traced.calls if call.output == result]
            found.append(owners[0] if owners and is_batch_norm(owners[0]) else norm)
        for key, found in norms.items():
            known = found[0] is None or is_batch_norm(found[0])
            same = all(norm is found[0] for norm in found)
            if known and same and len(found) == self.calls[key]:
                layers[key].integer_bias = IntegerBias(found[0])

    def _is_mark(self, op: Op) -> bool:
        return op.type == "assign" and op.output("Out") in self.traced.quantizers

    def _source(self, tensor: str) -> Any | None:
        """The layer that returns `tensor` before anything reads it, called once per forward."""
        first_read = min(self.order.get(id(op), -1) for op in self.graph.consumers(tensor))
        for call in self.traced.calls:
            once = self.calls[id(call.layer)] == 1
            if call.output == tensor and once and _can_hold_hook(call, first_read):
                return call.layer
        return None


def _can_hold_hook(call: LayerCall, first_read: int) -> bool:
    return call.ops_before_end <= first_read and not isinstance(call.layer, _CONTAINERS)


def _share(layers: list[Any], source: Any | None) -> None:
    """Gives all `layers` the input quantizer of the first; `source` computes their input."""
    owner = layers[0]
    for layer in layers[1:]:
        layer._act_quant = owner._act_quant
        layer.input_role = InputRole.FOLLOWS
    if source is not None:
        source.register_forward_post_hook(_QuantizeOutput(owner))
        for layer in layers:
            layer.input_role = InputRole.GIVEN
