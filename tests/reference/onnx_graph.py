"""Reads an .onnx file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from .graph import Graph, Node


def read_onnx(path: str | Path) -> Graph:
    """The graph of an ONNX file."""
    model = onnx.load(str(path)).graph
    graph = Graph({item.name: numpy_helper.to_array(item) for item in model.initializer})
    graph.inputs = [item.name for item in model.input]
    graph.outputs = [item.name for item in model.output]
    for node in model.node:
        attributes: dict[str, Any] = {
            item.name: onnx.helper.get_attribute_value(item) for item in node.attribute
        }
        graph.nodes.append(
            Node(node.op_type, {"": list(node.input)}, {"": list(node.output)}, attributes)
        )
    return graph
