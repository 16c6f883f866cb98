"""Which tensors of an ONNX file of ours belong to which layer of the network.

As file_layers.py for a Paddle file; the names are the same. In ONNX a layer is

    source -> Clip? -> QuantizeLinear -> DequantizeLinear -> Conv, Gemm or MatMul -> Add? -> output
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .file_layers import GUARD, WEIGHT, FileLayer

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class OnnxGraph:
    """The main graph of an ONNX model, with producers and consumers looked up once."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {
            item.name: numpy_helper.to_array(item) for item in model.graph.initializer
        }
        self.inputs = [item for item in model.graph.input if item.name not in self.constants]
        self.outputs = [item.name for item in model.graph.output]
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def find_layers(self) -> tuple[list[FileLayer], list[str]]:
        """As `file_layers.find_layers`."""
        found: list[FileLayer] = []
        lost: list[str] = []
        for node in self.nodes:
            weight = self._weight(node)
            match = WEIGHT.match(weight.input[0]) if weight is not None else None
            if match is None or weight is None:
                continue
            layer = self._follow(node, weight, match["layer"])
            if layer is None:
                lost.append(match["layer"])
            else:
                found.append(layer)
        return found, lost

    def input_sizes(self) -> list[int]:
        """The first size of each input, -1 where it is open."""
        shapes = [item.type.tensor_type.shape.dim for item in self.inputs]
        return [int(dims[0].dim_value) or -1 if dims else 0 for dims in shapes]

    def _weight(self, node: Any) -> Any | None:
        """The DequantizeLinear of the stored weight that a product reads."""
        if node.op_type not in _PRODUCTS:
            return None
        weight = self.producer.get(node.input[1])
        is_stored = (
            weight is not None
            and weight.op_type == "DequantizeLinear"
            and weight.input[0] in self.constants
        )
        return weight if is_stored else None

    def _follow(self, node: Any, weight: Any, name: str) -> FileLayer | None:
        chain = [node]
        x = node.input[0]
        maker = self.producer.get(x)
        while maker is not None and maker.op_type in _MOVES:
            chain.insert(0, maker)
            x = maker.input[0]
            maker = self.producer.get(x)
        quantized, quantized_is_last = x, _transposes(chain) % 2 == 1
        quantize = None if maker is None else self.producer.get(maker.input[0])
        if maker is None or quantize is None or maker.op_type != "DequantizeLinear":
            return None
        if quantize.op_type != "QuantizeLinear":
            return None
        chain[:0] = [quantize, maker]
        source = quantize.input[0]
        guard = self.producer.get(source)
        while guard is not None and guard.op_type == "Clip" and GUARD.search(source):
            chain.insert(0, guard)
            source = guard.input[0]
            guard = self.producer.get(source)
        output = node.output[0]
        has_bias = len(node.input) > 2 and bool(node.input[2])
        readers = self.consumers.get(output, [])
        if not has_bias and len(readers) == 1 and self._adds_vector(readers[0]):
            chain.append(readers[0])
            output, has_bias = readers[0].output[0], True
        return FileLayer(
            name=name,
            source=source,
            quantized=quantized,
            output=output,
            has_bias=has_bias,
            batch_norm_follows=self._reaches_batch_norm(output),
            is_rescaled=False,
            read_rescaled=None,
            source_is_last=_transposes(chain) % 2 == 1,
            quantized_is_last=quantized_is_last,
            output_is_first=node.op_type in ("Conv", "ConvTranspose"),
            weight_step=float(np.max(self.constants[weight.input[1]])),
            weight=weight,
            chain=chain,
        )

    def _reaches_batch_norm(self, output: str) -> bool:
        """Whether a BatchNorm reads the result, moved or quantized on the way."""
        open_names = [output]
        while open_names:
            for node in self.consumers.get(open_names.pop(), []):
                if node.op_type == "BatchNormalization":
                    return True
                if node.op_type in (*_MOVES, "QuantizeLinear", "DequantizeLinear"):
                    open_names.append(node.output[0])
        return False

    def _adds_vector(self, node: Any) -> bool:
        if node.op_type != "Add":
            return False
        values = [self.constants[name] for name in node.input if name in self.constants]
        return len(values) == 1 and values[0].size == max(values[0].shape, default=1)

    def with_outputs(self, names: Iterable[str]) -> Any:
        """A copy of the model that also returns these tensors, after its own outputs."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for name in dict.fromkeys(names):
            if name not in self.outputs:
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        return model

    def standing_alone(self, layers: Sequence[FileLayer]) -> Any:
        """A model in which each layer reads an input of its own and is an output of its own.

        Inputs are the sources of the layers. Outputs are their results, in the same order, then
        their quantized inputs.
        """
        import onnx

        nodes: list[Any] = []
        fed: list[Any] = []
        results: list[str] = []
        quantized: list[str] = []
        shared: set[str] = set()
        for i, layer in enumerate(layers):
            names = {layer.source: f"alone{i}/{layer.source}"}
            fed.append(
                onnx.helper.make_tensor_value_info(
                    names[layer.source], onnx.TensorProto.FLOAT, None
                )
            )
            for node in self._needed(layer):
                stands_alone = any(node is own for own in layer.chain)
                if not stands_alone and node.output[0] in shared:
                    continue
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                if stands_alone:
                    copy.name = f"alone{i}/{node.name}"
                    names.update({name: f"alone{i}/{name}" for name in node.output})
                    copy.input[:] = [names.get(name, name) for name in node.input]
                    copy.output[:] = [names[name] for name in node.output]
                else:
                    shared.add(node.output[0])
                nodes.append(copy)
            results.append(names[layer.output])
            quantized.append(names[layer.quantized])
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in results + quantized]
        read = {name for node in nodes for name in node.input}
        stored = [item for item in self.model.graph.initializer if item.name in read]
        graph = onnx.helper.make_graph(nodes, "layers", fed, outputs, stored)
        return onnx.helper.make_model(
            graph,
            opset_imports=list(self.model.opset_import),
            ir_version=self.model.ir_version,
        )

    def _needed(self, layer: FileLayer) -> list[Any]:
        """The layer's own nodes in order, each after what computes its constants."""
        needed: list[Any] = []
        inside = {name for node in layer.chain for name in node.output}
        for node in layer.chain:
            for name in node.input:
                maker = self.producer.get(name)
                if maker is not None and name not in inside and name != layer.source:
                    needed.append(maker)
            needed.append(node)
        return needed


def _transposes(chain: Iterable[Any]) -> int:
    return sum(node.op_type == "Transpose" for node in chain)
