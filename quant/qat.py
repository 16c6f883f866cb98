"""The public class: quantize, calibrate, freeze, report, save and verify a network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paddle import nn

from .calibration import calibrate
from .config import QuantConfig
from .convert import Converter, quantized_layers
from .errors import QuantError
from .export import Receipt, save_quantized_model, save_quantized_onnx
from .freeze import freeze
from .placement import PlaceOnFirstCall, place
from .report import report
from .to_onnx import DEFAULT_OPSET
from .verify import Verdict, verify


class QAT:
    """Quantization-aware training of any `paddle.nn.Layer`.

    Args:
        config: a dictionary with the keys of `QuantConfig`, or None for its defaults.
        weight_preprocess, act_preprocess: classes of paddle.nn.Layer, created without arguments,
            that replace the step before the weight's or the activation's quantizer.
        weight_quantize, act_quantize: the same for the quantizers. Such a class may have
            `bits` (default 8) and `scale` (attribute or method): the export needs the latter for
            an activation, and for a weight where its values alone do not give away the grid.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.

    Example:
        >>> quanter = QAT(config={"weight_quantize_type": "abs_max"})
        >>> net = quanter.quantize(net)      # then train as usual
    """

    def __init__(
        self,
        config: Mapping[str, Any] | QuantConfig | None = None,
        weight_preprocess: type | None = None,
        act_preprocess: type | None = None,
        weight_quantize: type | None = None,
        act_quantize: type | None = None,
    ) -> None:
        self.config = QuantConfig.from_dict(config)
        self._converter = Converter(
            self.config, weight_preprocess, act_preprocess, weight_quantize, act_quantize
        )

    def quantize(
        self,
        net: nn.Layer,
        inplace: bool = True,
        input_spec: Sequence[Any] | None = None,
    ) -> nn.Layer:
        """Swaps the Conv2D and Linear layers of `net` for fake-quant ones; returns the network.

        Parameters, their names and their settings stay, so a float checkpoint still loads.
        Quantizing a quantized network again changes nothing.

        Args:
            net: any network.
            inplace: False works on a deep copy and leaves `net` as it is.
            input_spec: one paddle.static.InputSpec per input. A `deploy_target` other than
                'generic' is found by tracing the network; without a spec that happens at the
                first call, with the shapes of its inputs.
        """
        if not isinstance(net, nn.Layer):
            raise QuantError(f"quantize takes a paddle.nn.Layer, not {type(net).__name__}")
        if not inplace:
            net = copy.deepcopy(net)
        self._converter.convert(net)
        if any(not layer.is_placed for _, layer in quantized_layers(net)):
            if input_spec is not None:
                place(net, input_spec)
            else:
                net.register_forward_pre_hook(PlaceOnFirstCall())
        return net

    def calibrate(self, net: nn.Layer, batches: Iterable[Any]) -> int:
        """Sets the activation scales from data, without training; returns the number of batches.

        Args:
            net: a quantized network.
            batches: inputs as arrays or tensors, or tuples that start with one.

        In a job of several processes every one of them must call it, with equally many batches.
        """
        return calibrate(self._quantized(net), batches)

    def freeze(self, net: nn.Layer) -> None:
        """Stops observers and BatchNorm statistics; training goes on with both as they are."""
        freeze(self._quantized(net))

    def report(self, net: nn.Layer, batches: Iterable[Any]) -> list[dict[str, Any]]:
        """Per layer: scales, and SQNR in dB of weight, input and output; see `quant.report`."""
        return report(self._quantized(net), batches)

    def save_quantized_model(
        self, net: nn.Layer, path: str, input_spec: Sequence[Any] | None = None
    ) -> Receipt:
        """Writes PATH.pdmodel and PATH.pdiparams with int8 weights and folded BatchNorm.

        The network stays as it is. Returns the receipt: each stored tensor with dtype and bytes.

        Raises:
            ExportError: the network cannot be traced, or a layer cannot be stored as int8.
        """
        place(self._quantized(net), input_spec)
        return save_quantized_model(net, path, input_spec)

    def export_onnx(
        self,
        net: nn.Layer,
        path: str,
        input_spec: Sequence[Any] | None = None,
        opset: int = DEFAULT_OPSET,
        metadata: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Writes a QDQ ONNX file with int8 weights and folded BatchNorm.

        Activations are uint8 for `deploy_target` 'onnxruntime' (and 'onednn'), int8 with zero point
        0 for 'generic' and 'tensorrt'. Returns the receipt; see `quant.export`.

        Raises:
            ExportError: as `save_quantized_model`; also where an operator has no ONNX form.
        """
        place(self._quantized(net), input_spec)
        return save_quantized_onnx(net, path, input_spec, opset, metadata)

    def verify(
        self,
        net: nn.Layer,
        path: str,
        batches: Iterable[Any],
        engines: Sequence[str] | None = None,
    ) -> Verdict:
        """Runs the exported file on several engines and compares with `net`; see `quant.verify`.

        A Paddle file (PATH.pdmodel) runs on plain CPU and on oneDNN int8, an ONNX file (PATH ends
        in .onnx) as it is stored and as ONNX Runtime optimizes it. `passed` of the result says
        whether the file is the network; `str()` gives the table.
        """
        return verify(self._quantized(net), path, batches, engines)

    def _quantized(self, net: nn.Layer) -> nn.Layer:
        if not isinstance(net, nn.Layer) or not any(True for _ in quantized_layers(net)):
            raise QuantError("the network holds no quantized layer: call quantize(net) first")
        return net
