"""From a lowered graph to an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ExportError
from ..graph import Graph
from ..lower import Lowered
from ..targets import Target
from ..trace import Traced
from . import activations, convolutions, elementwise, pooling, quantizers, shapes  # noqa: F401
from .writer import CONVERTERS, Writer

# The format version that goes with an opset: what readers of that time know.
_IR_VERSIONS = ((21, 10), (19, 9), (15, 8), (13, 7))
_BATCH = "batch"


def check_operators(traced: Traced) -> None:
    """Names every operator that has no ONNX form, with the layer that called it.

    Raises:
        ExportError: there is one.
    """
    found: dict[str, str] = {}
    for at, op in enumerate(traced.graph.blocks[0]):
        if op.type not in CONVERTERS:
            found.setdefault(op.type, traced.layer_at(at))
    if found:
        listed = ", ".join(f"{kind} (in {layer})" for kind, layer in found.items())
        raise ExportError(f"no ONNX form for: {listed}")


def build_model(
    graph: Graph,
    lowered: Lowered,
    target: Target,
    opset: int,
    metadata: Mapping[str, str],
) -> Any:
    """The ModelProto of a graph.

    Args:
        graph: the network, lowered or float.
        lowered: what `lower` has put into it; empty for a float network.
        target: what the file is for; FLOAT for a float network.
        opset: version of the operator set.
        metadata: texts to store with the model.

    Raises:
        ExportError: an operator has no ONNX form.
    """
    from onnx import helper, numpy_helper

    w = Writer(graph, opset, target, lowered)
    for op in graph.blocks[0]:
        if id(op) not in w.done:
            CONVERTERS[op.type](w, op)
    outputs = _outputs(w)
    inputs = [_value(w, name, name) for name in graph.inputs]
    stored = [numpy_helper.from_array(value, name) for name, value in _used(w).items()]
    proto = helper.make_graph(w.nodes, "network", inputs, outputs, stored)
    version = next(ir for lowest, ir in _IR_VERSIONS if opset >= lowest)
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=version,
        producer_name="PaddleQAT",
    )
    helper.set_model_props(model, dict(metadata))
    return model


def _outputs(w: Writer) -> list[Any]:
    values = []
    several = len(w.graph.outputs) > 1
    for i, name in enumerate(w.graph.outputs):
        final = w.fresh(f"output_{i}" if several else "output")
        w.node("Identity", [w.read(name)], final)
        values.append(_value(w, name, final))
    _skip_identities(w)
    return values


def _skip_identities(w: Writer) -> None:
    """Gives an output's name to the operator that computes it, where nothing else reads that."""
    count: dict[str, int] = {}
    for node in w.nodes:
        for name in node.input:
            count[name] = count.get(name, 0) + 1
    makers = {name: node for node in w.nodes for name in node.output}
    for node in [
        n for n in w.nodes if n.op_type == "Identity" and n.output[0].startswith("output")
    ]:
        source = node.input[0]
        maker = makers.get(source)
        if maker is None or count[source] != 1:
            continue
        maker.output[list(maker.output).index(source)] = node.output[0]
        w.nodes.remove(node)


def _value(w: Writer, name: str, final: str) -> Any:
    from onnx import helper

    dims = [
        size if size >= 0 else (_BATCH if axis == 0 else f"{final}_{axis}")
        for axis, size in enumerate(w.shape(name))
    ]
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(w.dtype(name)))
    return helper.make_tensor_value_info(final, dtype, dims)


def _used(w: Writer) -> dict[str, np.ndarray]:
    read = {name for node in w.nodes for name in node.input}
    return {name: value for name, value in w.initializers.items() if name in read}
