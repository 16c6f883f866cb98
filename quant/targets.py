"""What the engines that a model may be deployed on do with integers: a row for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """How an engine's arithmetic differs from the plain simulation.

    Attributes:
        name: the value of `deploy_target`.
        unsigned: tensors that cannot be negative have an unsigned grid (255 steps of 8 bits).
        saturates_low: a signed grid reaches down to -128, since the engine saturates there.
        sums_integers: a residual sum is computed inside the convolution before it, from integers;
            so the sum reads the same quantized tensor as the convolutions beside it.
        int8_channels: weights are int8 with a scale per output channel, whatever they were before.
        engines: which engines of Paddle Inference must compute what the network computes.
    """

    name: str
    unsigned: bool
    saturates_low: bool
    sums_integers: bool
    int8_channels: bool
    engines: tuple[str, ...]

    @property
    def engine(self) -> str:
        """The engine of Paddle Inference that runs such a file where nobody names another."""
        return self.engines[0]

    @property
    def needs_graph(self) -> bool:
        """True where the grids depend on the traced network, not on each layer alone."""
        return self.unsigned or self.sums_integers


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("generic", False, False, False, False, ("paddle", "onednn")),
        Target("onednn", True, True, True, True, ("onednn",)),
    )
}
