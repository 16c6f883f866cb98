"""The classifiers of ``paddle.vision.models``: their registry rows and two adaptations.

Paddle builds them for one kind of input: three channels (LeNet: one channel of 28x28). The first
convolution, and LeNet's first Linear, are exchanged for one that fits where the input differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

from paddle import nn
from paddle.vision.models import (
    LeNet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenetv1,
    mobilenetv2,
    resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    vgg,
    vgg11,
    vgg13,
    vgg16,
    vgg19,
)

from .info import ModelInfo

# Mean and standard deviation of the 60,000 training images of Fashion-MNIST, on the scale 0 to 1.
FASHION_MNIST_MEAN = (0.2860,)
FASHION_MNIST_STD = (0.3530,)

# Paddle's model_urls dictionaries: key -> (address, MD5 sum).
WEIGHTS_URLS: dict[str, tuple[str, str]] = {
    "mobilenet_v1": mobilenetv1.model_urls["mobilenetv1_1.0"],
    "mobilenet_v2": mobilenetv2.model_urls["mobilenetv2_1.0"],
    **{f"resnet{depth}": resnet.model_urls[f"resnet{depth}"] for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}": vgg.model_urls[f"vgg{depth}"] for depth in (16, 19)},
}


def _build(factory: Callable[..., nn.Layer], num_classes: int) -> nn.Layer:
    return factory(num_classes=num_classes)


def _info(name: str, factory: Callable[..., nn.Layer], min_image_size: int = 1) -> ModelInfo:
    url = WEIGHTS_URLS.get(name)
    return ModelInfo(
        name=name,
        build=partial(_build, factory),
        min_image_size=min_image_size,
        default_pretrained=None if url is None else "auto",
        weights_url=url,
    )


LENET = ModelInfo(
    name="lenet",
    build=partial(_build, LeNet),
    channels=1,
    image_size=28,
    resize_size=28,
    mean=FASHION_MNIST_MEAN,
    std=FASHION_MNIST_STD,
    min_image_size=12,
)

# VGG halves the image five times without padding, so a side below 32 leaves nothing.
VISION_MODELS = (
    LENET,
    _info("mobilenet_v1", mobilenet_v1),
    _info("mobilenet_v1_x0_25", partial(mobilenet_v1, scale=0.25)),
    _info("mobilenet_v1_x0_5", partial(mobilenet_v1, scale=0.5)),
    _info("mobilenet_v2", mobilenet_v2),
    _info("mobilenet_v2_x0_25", partial(mobilenet_v2, scale=0.25)),
    _info("mobilenet_v2_x0_5", partial(mobilenet_v2, scale=0.5)),
    _info("resnet18", resnet18),
    _info("resnet34", resnet34),
    _info("resnet50", resnet50),
    _info("resnet101", resnet101),
    _info("resnet152", resnet152),
    _info("vgg11", vgg11, min_image_size=32),
    _info("vgg13", vgg13, min_image_size=32),
    _info("vgg16", vgg16, min_image_size=32),
    _info("vgg19", vgg19, min_image_size=32),
)


def replace_first_conv(net: nn.Layer, in_channels: int) -> None:
    """Exchange the first convolution of ``net`` for a fresh one that reads ``in_channels``."""
    path, conv = next(
        (path, layer) for path, layer in net.named_sublayers() if isinstance(layer, nn.Conv2D)
    )
    fresh = nn.Conv2D(
        in_channels,
        conv._out_channels,
        conv._kernel_size,
        stride=conv._stride,
        padding=conv._padding,
        weight_attr=conv._param_attr,
        bias_attr=conv._bias_attr,
    )
    *parents, name = path.split(".")
    parent = reduce(getattr, parents, net)
    setattr(parent, name, fresh)


def resize_lenet(net: nn.Layer, image_size: int) -> None:
    """Exchange LeNet's first Linear for a fresh one that takes the features of another size."""
    # Halved, then 5x5 without padding, then halved again; 16 channels.
    side = (image_size // 2 - 4) // 2
    net.fc[0] = nn.Linear(16 * side * side, 120)
