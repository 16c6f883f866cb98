"""The weights that are evaluated and exported: those of the last step, or their moving average."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import paddle
from paddle import Tensor, nn

from quant.freeze import is_batch_norm

from . import distributed
from .checkpoint import Latest
from .matching import load_into


class LastWeights:
    """The weights as the last step left them.

    Attributes:
        net: the network to evaluate and to save; here the trained one itself.
        trained: the network that is trained.
    """

    def __init__(self, net: nn.Layer) -> None:
        self.net = self.trained = net

    def update(self, steps: int) -> None:
        """Take over what a step has changed.

        Args:
            steps: steps of the stage before that one.
        """

    def agree(self) -> None:
        """Make `net` the same on all processes (a collective call)."""
        distributed.average_batch_norm(self.net)

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint has to hold beside the trained network."""
        return {}

    def restore(self, latest: Latest) -> None:
        """Go on from a checkpoint."""


class AveragedWeights(LastWeights):
    """An exponential moving average of the weights, in a second network.

    After step t of a stage, t from 0: ``d = min(decay, (1 + t) / (10 + t))`` and
    ``average = d * average + (1 - d) * weights``, starting from the weights before the first step.
    The ramp, that of TensorFlow's ``ExponentialMovingAverage(num_updates=t)``, lets the average
    forget its start: a plain average of decay 0.9999 remembers it for some ten thousand steps.

    Averaged are the trained parameters (PACT's alpha among them) and the running statistics of
    BatchNorm, which belong to the weights of the same steps. All else, such as the scales of
    activations and the state of their observers, is copied: those are averages or maxima already,
    and an average of maxima would clip.

    What a freeze makes stand still (alpha, the statistics of BatchNorm) stays among the averaged:
    it nears the frozen value at the pace of the weights that it was learned with.

    Args:
        net: the network that is trained.
        decay: the decay, in (0, 1).
    """

    def __init__(self, net: nn.Layer, decay: float) -> None:
        super().__init__(copy.deepcopy(net))
        self.decay = decay
        self.trained = net
        for parameter in self.net.parameters():
            parameter.stop_gradient = True
        theirs, mine = net.state_dict(), self.net.state_dict()
        statistics = {id(theirs[name]) for name in batch_norm_statistics(net)}
        averaged = {id(p) for p in net.parameters() if not p.stop_gradient} | statistics
        # A layer that is used twice has two names in the state and one tensor.
        pairs = {id(mine[name]): (mine[name], theirs[name]) for name in mine}.values()
        self._averaged = [pair for pair in pairs if id(pair[1]) in averaged]
        self._copied = [pair for pair in pairs if id(pair[1]) not in averaged]

    @paddle.no_grad()
    def update(self, steps: int) -> None:
        """Take a step of the trained network into the average."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for mine, theirs in self._averaged:
            mine.lerp_(theirs, 1.0 - decay)
        for mine, theirs in self._copied:
            paddle.assign(theirs, output=mine)

    def agree(self) -> None:
        """Make both networks the same on all processes (a collective call)."""
        distributed.average_batch_norm(self.trained)
        super().agree()

    def state(self) -> Mapping[str, Tensor]:
        """The average by the names of the network's state."""
        return self.net.state_dict()

    def restore(self, latest: Latest) -> None:
        """Go on with the average of a checkpoint.

        Raises:
            EngineError: it holds none, or that of another network.
        """
        load_into(self.net, latest.average, latest.path)


def follow(net: nn.Layer, decay: float) -> LastWeights:
    """What is evaluated and saved of a network in training: its average, or with 0 itself."""
    return AveragedWeights(net, decay) if decay > 0 else LastWeights(net)


def batch_norm_statistics(net: nn.Layer) -> set[str]:
    """Names of the running means and variances in ``net.state_dict()``."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, layer in net.named_sublayers(include_self=True)
        if is_batch_norm(layer)
        for name in ("_mean", "_variance")
    }
