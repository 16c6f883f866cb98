"""How well each layer stands up to quantization: scales and signal-to-noise ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from .calibration import as_inputs, each, fake_quant_off
from .convert import quantized_layers
from .errors import QuantError
from .layers import base_kind
from .modes import evaluating


class _Powers:
    """Sums of signal and noise power; SQNR = 10 log10(signal / noise) in dB."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0

    def add(self, exact: Tensor, quantized: Tensor) -> None:
        self.signal += (exact.astype("float64") ** 2).sum().item()
        self.noise += ((exact - quantized).astype("float64") ** 2).sum().item()

    def decibels(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


def report(net: nn.Layer, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """One row per quantized layer, in the order of the network's definition.

    The float network runs on `batches`. Each layer's float input is then also quantized and
    sent through the quantized layer, so a row shows what that layer alone loses.

    Returns:
        Dictionaries with `name`, `type`, `weight_bits`, `activation_bits`, `weight_scale` (list of
        floats, one or one per output channel), `activation_scale` (float), `activation_codes`
        (first and last code), `activation_shared_with` (name of the layer whose input quantizer
        this one uses, or None), `result_scale` and `result_codes` (of what the layer's kernel
        returns; None where the target leaves that in float), and in dB `weight_sqnr`,
        `input_sqnr`, `output_sqnr` (inf: no error; nan: the layer did not run).

    Raises:
        QuantError: there is no batch.
    """
    layers = dict(quantized_layers(net))
    inputs = {name: _Powers() for name in layers}
    outputs = {name: _Powers() for name in layers}
    hooks = [
        layer.register_forward_post_hook(_compare(layer, inputs[name], outputs[name]))
        for name, layer in layers.items()
    ]
    count = 0
    try:
        with evaluating(net), fake_quant_off(net), paddle.no_grad():
            for batch in each(batches):
                net(*as_inputs(net, batch))
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise QuantError("report got no batch: at least one is needed")
    with paddle.no_grad():
        rows = [_row(name, layers[name], inputs[name], outputs[name]) for name in layers]
    owners: dict[int, str] = {}
    for row in rows:
        owner = owners.setdefault(id(layers[row["name"]]._act_quant), row["name"])
        row["activation_shared_with"] = None if owner == row["name"] else owner
    return rows


def _compare(layer: Any, inputs: _Powers, outputs: _Powers) -> Any:
    busy = False

    def hook(_: Any, args: Any, output: Tensor) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            if not args:
                raise QuantError(
                    f"layer {layer.quant_name} is called by keyword: report needs x first"
                )
            x = args[0]
            with fake_quant_off(layer, off=False):
                quantized = layer.quantized(x)
                inputs.add(x, quantized)
                # A value of the grid is quantized to itself, so doing it twice changes nothing.
                outputs.add(output, layer.forward(quantized))
        finally:
            busy = False

    return hook


def _row(name: str, layer: Any, inputs: _Powers, outputs: _Powers) -> dict[str, Any]:
    weight = _Powers()
    weight.add(layer.weight, layer._weight_quant(layer.weight))
    _, scales = layer._weight_quant.codes_and_scales(layer.weight)
    if layer._weight_quant.is_per_tensor():
        scales = scales[:1]
    result = None if layer.result_quantizer is None else layer.result_quantizer._act_quant
    ran = inputs.signal + inputs.noise + outputs.signal + outputs.noise > 0
    return {
        "name": name,
        "type": base_kind(layer),
        "weight_bits": layer._weight_quant.bits,
        "activation_bits": layer._act_quant.bits,
        "weight_scale": [float(s) for s in scales],
        "activation_codes": [layer._act_quant.grid.low, layer._act_quant.grid.high],
        "activation_scale": float(layer._act_quant.scale_numpy()[0]),
        "result_codes": None if result is None else [result.grid.low, result.grid.high],
        "result_scale": None if result is None else float(result.scale_numpy()[0]),
        "weight_sqnr": weight.decibels(),
        "input_sqnr": inputs.decibels() if ran else math.nan,
        "output_sqnr": outputs.decibels() if ran else math.nan,
    }


def format_report(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of plain text."""
    width = max([len(row["name"]) for row in rows] + [5])
    lines = [
        f"{'layer':<{width}} {'type':<7} {'bits':>5} {'a codes':>9} {'w scale':>10} "
        f"{'a scale':>10} {'weight dB':>9} {'input dB':>9} {'output dB':>9}"
    ]
    for row in rows:
        bits = f"{row['weight_bits']}/{row['activation_bits']}"
        codes = "{}..{}".format(*row["activation_codes"])
        lines.append(
            f"{row['name']:<{width}} {row['type']:<7} {bits:>5} {codes:>9} "
            f"{float(np.max(row['weight_scale'])):>10.4g} {row['activation_scale']:>10.4g} "
            f"{row['weight_sqnr']:>9.2f} {row['input_sqnr']:>9.2f} {row['output_sqnr']:>9.2f}"
        )
    return "\n".join(lines)
