"""What both readers give and the interpreter runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Node:
    """An operator: names of inputs and outputs by slot (of ONNX: all in the slot '')."""

    kind: str
    inputs: dict[str, list[str]]
    outputs: dict[str, list[str]]
    attributes: dict[str, Any] = field(default_factory=dict)

    def input(self, slot: str | int) -> str:
        """The first name of a slot, or the n-th input."""
        return self.inputs[""][slot] if isinstance(slot, int) else self.inputs[slot][0]

    def has(self, slot: str | int) -> bool:
        """Whether there is such an input."""
        if isinstance(slot, int):
            return slot < len(self.inputs[""]) and self.inputs[""][slot] != ""
        return bool(self.inputs.get(slot))

    def output(self) -> str:
        """The name of the result."""
        for slot in ("", "Output", "Out", "Y"):
            if self.outputs.get(slot):
                return self.outputs[slot][0]
        raise KeyError(self.outputs)


@dataclass
class Graph:
    """Nodes in order, constants, names of what goes in and out."""

    constants: dict[str, np.ndarray]
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
