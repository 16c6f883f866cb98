"""What is known about a model before it is built: its default input and published weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from paddle import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelInfo:
    """One row of the registry.

    Attributes:
        name: the name that ``--model`` takes.
        build: makes the network with random weights, ``build(num_classes=...)``.
        channels: channels of the input image.
        image_size: side of the square input, in pixels.
        resize_size: length of the short side before the centre crop of evaluation, in pixels.
        mean: per-channel mean of the input, on the scale 0 to 1.
        std: per-channel standard deviation of the input, on the scale 0 to 1.
        interpolation: how images are resized.
        antialias: whether that filter is stretched when it shrinks an image.
        min_image_size: the smallest side at which every feature map still has a pixel, in pixels.
        default_pretrained: ``'auto'`` (Paddle's own download), the name of a weight file that
            users have to bring, or None if nobody publishes weights for this model.
        weights_url: for ``'auto'``, the address of the file and its MD5 sum.
    """

    name: str
    build: Callable[..., nn.Layer]
    channels: int = 3
    image_size: int = 224
    resize_size: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    antialias: bool = False
    min_image_size: int = 1
    default_pretrained: str | None = None
    weights_url: tuple[str, str] | None = None

    def for_channels(self, channels: int) -> ModelInfo:
        """Return this row for an input of another number of channels.

        Mean and standard deviation become the average of the model's own ones, once per channel:
        what grey images need of a colour model's statistics, and the other way round.
        """
        if channels == self.channels:
            return self
        mean = sum(self.mean) / len(self.mean)
        std = sum(self.std) / len(self.std)
        return replace(self, channels=channels, mean=(mean,) * channels, std=(std,) * channels)
