"""What the engines that a model may be deployed on do with integers: a row for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """How an engine's arithmetic differs from the plain simulation.

    Attributes:
        name: the value of `deploy_target`.
        unsigned: tensors that cannot be negative have an unsigned grid (255 steps of 8 bits).
        signed_concat: but not a concat, whose integers are signed.
        saturates_low: a signed grid reaches down to -128, since the engine saturates there.
        sums_integers: a residual sum is computed inside the convolution before it, from integers;
            so the sum reads the same quantized tensor as the convolutions beside it.
        needs_integer_results: a convolution runs on integers only if its result is quantized as
            well; so that gets a quantizer of its own where no layer quantizes it.
        fuses_activations: activations run inside the convolution before them, so that its result is
            what they return; only results that operators on integers read are quantized then.
        adds_unrounded: a convolution that adds a residual to its result cuts that result to the
            grid of its quantizer, and does not round it.
        int8_channels: weights are int8 with a scale per output channel, whatever they were before.
        uint8: an ONNX file for it stores activations as uint8 (signed ones around zero point 128).
        onnx_bias: how an ONNX file for it holds a bias: 'int32', on the grid of the products, as
            kernels add it (the simulation then rounds it so); 'float32'; or 'added' by an operator
            of its own, out of reach of engines that would round it.
        engines: which engines of Paddle Inference must compute what the network computes.
        onnx_engines: which must do so with an ONNX file ('onnx': the operators as stored).
        is_for_onnx: the target's own format is ONNX.
    """

    name: str
    unsigned: bool = False
    signed_concat: bool = False
    saturates_low: bool = False
    sums_integers: bool = False
    needs_integer_results: bool = False
    fuses_activations: bool = False
    adds_unrounded: bool = False
    int8_channels: bool = False
    uint8: bool = False
    onnx_bias: str = "added"
    engines: tuple[str, ...] = ("paddle", "onednn")
    onnx_engines: tuple[str, ...] = ("onnx", "onnxruntime")
    is_for_onnx: bool = False

    @property
    def engine(self) -> str:
        """The engine of Paddle Inference that runs such a file where nobody names another."""
        return self.engines[0]

    @property
    def onnx_engine(self) -> str:
        """The engine that runs an ONNX file for it where nobody names another."""
        return "onnxruntime" if "onnx" in self.onnx_engines else self.onnx_engines[0]

    @property
    def needs_graph(self) -> bool:
        """True where the grids depend on the traced network, not on each layer alone."""
        return self.unsigned or self.sums_integers or self.needs_integer_results


FLOAT = Target("float", onnx_bias="float32")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("generic"),
        Target(
            "onednn",
            unsigned=True,
            signed_concat=True,
            saturates_low=True,
            sums_integers=True,
            int8_channels=True,
            uint8=True,
            engines=("onednn",),
        ),
        Target(
            "onnxruntime",
            unsigned=True,
            saturates_low=True,
            needs_integer_results=True,
            int8_channels=True,
            uint8=True,
            onnx_bias="int32",
            engines=("paddle",),
            onnx_engines=("onnx", "onnxruntime", "openvino"),
            is_for_onnx=True,
        ),
        Target(
            "openvino",
            unsigned=True,
            saturates_low=True,
            needs_integer_results=True,
            fuses_activations=True,
            adds_unrounded=True,
            int8_channels=True,
            uint8=True,
            onnx_bias="float32",
            engines=("paddle",),
            onnx_engines=("openvino",),
            is_for_onnx=True,
        ),
        Target(
            "tensorrt",
            saturates_low=True,
            int8_channels=True,
            onnx_bias="float32",
            onnx_engines=("onnx",),
            is_for_onnx=True,
        ),
    )
}
