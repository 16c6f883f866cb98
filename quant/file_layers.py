"""Which tensors of an exported file belong to which layer of the network.

The export names what it stores: `<layer>.weight.int8`, `<layer>.input.scale`, `<layer>.bias`. From
a weight one finds the convolution that reads it, what quantizes its input and what its result is:

    source -> guards -> quantize_linear -> dequantize_linear -> conv2d -> elementwise_add -> output

From that two copies of the file are made: one that also returns these tensors, and one in which
each layer stands alone, with an input and an output of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from paddle.base.proto import framework_pb2 as pb

from .graph import CONVOLUTIONS, Graph, Op, new_op

WEIGHT = re.compile(r"^(?P<layer>.+)\.weight\.int8(_\d+)?$")
_QUANTIZER_SCALE = re.compile(r"\.(input|output)\.scale(_\d+)?$")
_RESCALED = re.compile(r"\.scale(_\d+)?$")
# What the export puts before a quantizer, and after it; it belongs to the quantizer.
GUARD = re.compile(r"\.(below|clipped|saturated|unsigned)(_\d+|\.nchw)*$")
_GUARDS = ("clip", "relu", "scale")
_SHIFTED = re.compile(r"\.above(_\d+)?$")
_SHIFTS = re.compile(r"\.(above|below)")
_MOVES = ("flatten_contiguous_range", "reshape2", "squeeze2", "transpose2", "unsqueeze2")
# Where a quantizer's scale was moved to, with the tensor before it (see onednn.py).
RESCALED_TO = 6.0


@dataclass
class FileLayer:
    """One convolution or matrix product of a file whose weight is stored as int8.

    Attributes:
        name: the layer of the network, as the name of its weight says.
        source: the float tensor that its input quantizer reads.
        quantized: that tensor, quantized and dequantized.
        output: the result with its bias, and with the BatchNorm that was folded into it.
        has_bias: whether something is added to the product.
        batch_norm_follows: whether a BatchNorm was left that reads the result.
        is_rescaled: its input is stored in units in which the scale is `RESCALED_TO`.
        read_rescaled: the `quantized` of the layers that read its output so; None where none do.
        source_is_last, quantized_is_last: a 4-D tensor whose channels are its last axis.
        output_is_first: the result of a convolution whose channels are axis 1.
        weight_step: the largest step of a channel of the weight.
        weight: the operator that dequantizes the weight.
        chain: the operators from `source` to `output`, `weight` left out.
    """

    name: str
    source: str
    quantized: str
    output: str
    has_bias: bool
    batch_norm_follows: bool
    is_rescaled: bool
    read_rescaled: str | None
    source_is_last: bool
    quantized_is_last: bool
    output_is_first: bool
    weight_step: float
    weight: Any
    chain: list[Any] = field(default_factory=list)


def find_layers(graph: Graph) -> tuple[list[FileLayer], list[str]]:
    """The layers of a file in the order in which they run.

    Returns:
        The layers, and the names of those that cannot be followed: they run in a branch, or
        nothing quantizes their input.
    """
    readers = _Readers(graph)
    found: list[FileLayer] = []
    lost: list[str] = []
    for number, block in enumerate(graph.blocks):
        for op in block:
            weight = _int8_weight(graph, readers, op)
            if weight is None:
                continue
            match = WEIGHT.match(weight.input("X"))
            if match is None:
                continue
            layer = _follow(graph, readers, op, weight, match["layer"]) if number == 0 else None
            if layer is None:
                lost.append(match["layer"])
            else:
                found.append(layer)
    return found, lost


class _Readers:
    """Producers and consumers of the tensors of the main block, looked up once."""

    def __init__(self, graph: Graph) -> None:
        self.producer: dict[str, Op] = {}
        self.consumers: dict[str, list[Op]] = {}
        for op in graph.ops():
            for name in op.all_outputs():
                self.producer[name] = op
            for name in op.all_inputs():
                self.consumers.setdefault(name, []).append(op)

    def of(self, name: str) -> list[Op]:
        return self.consumers.get(name, [])


def _int8_weight(graph: Graph, readers: _Readers, op: Op) -> Op | None:
    """The dequantize_linear of the stored weight that `op` multiplies with."""
    slot = "Filter" if op.type in CONVOLUTIONS else "Y" if op.type == "matmul_v2" else None
    if slot is None:
        return None
    weight = readers.producer.get(op.input(slot))
    is_stored = (
        weight is not None
        and weight.type == "dequantize_linear"
        and weight.input("X") in graph.constants
    )
    return weight if is_stored else None


def _follow(graph: Graph, readers: _Readers, op: Op, weight: Op, name: str) -> FileLayer | None:
    chain = [op]
    x = op.input("Input" if op.type in CONVOLUTIONS else "X")
    maker = readers.producer.get(x)
    while maker is not None and maker.type in _MOVES:
        chain.insert(0, maker)
        x = maker.input("X")
        maker = readers.producer.get(x)
    quantized, quantized_is_last = x, _transposes(chain) % 2 == 1
    if maker is not None and maker.type == "scale" and _SHIFTED.search(maker.input("X")):
        chain.insert(0, maker)
        maker = readers.producer.get(maker.input("X"))
    quantize = None
    if maker is not None and maker.type == "dequantize_linear":
        quantize = readers.producer.get(maker.input("X"))
    if maker is None or quantize is None or quantize.type != "quantize_linear":
        return None
    chain[:0] = [quantize, maker]
    source = quantize.input("X")
    guard = readers.producer.get(source)
    while guard is not None and guard.type in _GUARDS and GUARD.search(source):
        chain.insert(0, guard)
        source = guard.input("X")
        guard = readers.producer.get(source)
    output = op.output("Output" if op.type in CONVOLUTIONS else "Out")
    add = readers.of(output)[0] if len(readers.of(output)) == 1 else None
    has_bias = add is not None and _adds_vector(graph, add)
    if add is not None and has_bias:
        chain.append(add)
        output = add.output("Out")
    return FileLayer(
        name=name,
        source=source,
        quantized=quantized,
        output=output,
        has_bias=has_bias,
        batch_norm_follows=_reach_batch_norm(readers, output),
        is_rescaled=_is_rescaled(quantize),
        read_rescaled=_read_rescaled(readers, output),
        source_is_last=_transposes(chain) % 2 == 1,
        quantized_is_last=quantized_is_last,
        output_is_first=op.type in CONVOLUTIONS and op.attr("data_format") != "NHWC",
        weight_step=float(np.max(graph.constants[weight.input("Scale")])) / 127,
        weight=weight,
        chain=chain,
    )


def _adds_vector(graph: Graph, op: Op) -> bool:
    if op.type != "elementwise_add" or op.input("Y") not in graph.constants:
        return False
    return graph.constants[op.input("Y")].ndim == 1


def _transposes(chain: Iterable[Op]) -> int:
    return sum(op.type == "transpose2" for op in chain)


def _is_rescaled(quantize: Op) -> bool:
    name = quantize.input("Scale")
    return _RESCALED.search(name) is not None and _QUANTIZER_SCALE.search(name) is None


def _read_rescaled(readers: _Readers, output: str) -> str | None:
    for relu in readers.of(output):
        if relu.type == "relu6":
            for quantize in readers.of(relu.output("Out")):
                if quantize.type == "quantize_linear" and _is_rescaled(quantize):
                    return readers.of(quantize.output("Y"))[0].output("Y")
    return None


def _reach_batch_norm(readers: _Readers, output: str) -> bool:
    """Whether a BatchNorm reads the result, moved or quantized on the way."""
    open_names = [output]
    while open_names:
        for op in readers.of(open_names.pop()):
            if op.type == "batch_norm":
                return True
            shifts = op.type == "scale" and _SHIFTS.search(op.output("Out") + op.input("X"))
            if op.type in _MOVES or shifts:
                open_names.append(op.output("Out"))
            elif op.type in ("quantize_linear", "dequantize_linear"):
                open_names.append(op.output("Y"))
    return False


def with_outputs(graph: Graph, names: Iterable[str]) -> Graph:
    """A copy of the graph that also returns these tensors, after its own outputs."""
    program = pb.ProgramDesc()
    program.CopyFrom(graph.to_program())
    outputs = list(dict.fromkeys([*graph.outputs, *names]))
    return Graph(program, dict(graph.constants), list(graph.inputs), outputs)


def standing_alone(graph: Graph, layers: list[FileLayer], unsigned: set[int], codes: bool) -> Graph:
    """A graph in which each layer reads an input of its own and is an output of its own.

    Args:
        graph: the file's graph.
        layers: some of its layers.
        unsigned: places in `layers` of those whose input the engine has to know as unsigned.
        codes: also return what the input quantizers make of the inputs.

    Returns:
        Inputs are the sources of the layers. Outputs are their results, in the same order, then
        the quantized inputs if asked for.
    """
    program = pb.ProgramDesc()
    program.CopyFrom(graph.to_program())
    del program.blocks[1:]
    block = program.blocks[0]
    shapes = {var.name: var for b in graph.program.blocks for var in b.vars}
    del block.ops[:]
    del block.vars[:]
    block.vars.extend(shapes[name] for name in graph.constants)
    alone = Graph(program, dict(graph.constants), [], [])
    ops = alone.blocks[0]

    def declare(name: str, like: str) -> str:
        var = block.vars.add()
        var.CopyFrom(shapes[like])
        var.name, var.persistable = name, False
        return name

    dequantized: set[str] = set()
    quantized: list[str] = []
    for i, layer in enumerate(layers):
        value = layer.weight.output("Y")
        if value not in dequantized:
            dequantized.add(declare(value, value))
            ops.append(_copy(layer.weight))
        names = {layer.source: declare(f"alone{i}/{layer.source}", layer.source)}
        alone.inputs.append(names[layer.source])
        if i in unsigned and not any(op.type == "relu" for op in layer.chain):
            fed = names[layer.source]
            names[layer.source] = declare(f"{fed}/unsigned", layer.source)
            ops.append(new_op("relu", {"X": [fed]}, {"Out": [names[layer.source]]}))
        for op in layer.chain:
            copy = _copy(op)
            for old in op.all_inputs():
                copy.rename_input(old, names.get(old, old))
            for item in copy.desc.outputs:
                for at, old in enumerate(item.arguments):
                    names[old] = declare(f"alone{i}/{old}", old)
                    item.arguments[at] = names[old]
            ops.append(copy)
        alone.outputs.append(names[layer.output])
        quantized.append(names[layer.quantized])
    if codes:
        alone.outputs += quantized
    alone.constants = {
        name: value
        for name, value in graph.constants.items()
        if any(name in op.all_inputs() for op in ops)
    }
    used = set(alone.constants) | {var.name for var in block.vars if not var.persistable}
    kept: list[Any] = []
    for var in block.vars:
        if var.name in used:
            copy_of = pb.VarDesc()
            copy_of.CopyFrom(var)
            kept.append(copy_of)
    del block.vars[:]
    block.vars.extend(kept)
    return alone


def _copy(op: Op) -> Op:
    desc = pb.OpDesc()
    desc.CopyFrom(op.desc)
    return Op(desc)
