"""The one list of models, and how to build one of them."""

from __future__ import annotations

import difflib
from functools import partial

from paddle import nn

from .errors import ModelError
from .info import ModelInfo
from .mobilenet_v3 import SCALES, MobileNetV3
from .vision import VISION_MODELS, replace_first_conv, resize_lenet

# Distilled weights of the large network at scale 1.0 (Top1 78.96 on ImageNet).
SSLD_WEIGHTS = "MobileNetV3_large_x1_0_ssld_pretrained"


def _mobilenet_v3_info(size: str, scale: float, name: str | None = None) -> ModelInfo:
    return ModelInfo(
        name=name or f"mobilenet_v3_{size}_x{str(scale).replace('.', '_')}",
        build=partial(MobileNetV3, size, scale),
        default_pretrained=SSLD_WEIGHTS if (size, scale) == ("large", 1.0) else None,
    )


_MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        _mobilenet_v3_info("large", 1.0, "mobilenet_v3"),
        *VISION_MODELS,
        *(_mobilenet_v3_info(size, scale) for size in ("large", "small") for scale in SCALES),
    )
}

ALIASES = {
    "mobilenetv1": "mobilenet_v1",
    "mobilenetv2": "mobilenet_v2",
    "resnet": "resnet50",
    "vgg": "vgg16",
}


def list_models() -> list[str]:
    """Return the names that ``--model`` takes, the aliases left out."""
    return list(_MODELS)


def model_info(name: str) -> ModelInfo:
    """Return the registry row of a model name or alias.

    Raises:
        ModelError: if there is no such model.
    """
    info = _MODELS.get(ALIASES.get(name, name))
    if info is None:
        near = difflib.get_close_matches(name, [*_MODELS, *ALIASES], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"unknown model {name!r}{hint} (there are: {', '.join(_MODELS)})")
    return info


def build_model(
    name: str,
    num_classes: int,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> nn.Layer:
    """Build a network with random weights.

    Args:
        name: a name of `list_models`, or an alias.
        num_classes: length of the output.
        in_channels: channels of the input; None takes the model's own.
        image_size: side of the square input in pixels; None takes the model's own.

    Returns:
        A network that maps float32 images ``[N, in_channels, image_size, image_size]`` to logits
        ``[N, num_classes]``.

    Raises:
        ModelError: if there is no such model, or it cannot have such an input or output.
    """
    info = model_info(name)
    in_channels = info.channels if in_channels is None else in_channels
    image_size = info.image_size if image_size is None else image_size
    if num_classes < 1:
        raise ModelError(f"model {info.name}: num_classes is {num_classes}; at least 1 is needed")
    if in_channels < 1:
        raise ModelError(f"model {info.name}: channels is {in_channels}; at least 1 is needed")
    if image_size < info.min_image_size:
        raise ModelError(
            f"model {info.name}: image_size is {image_size}; "
            f"at least {info.min_image_size} is needed"
        )
    net = info.build(num_classes=num_classes)
    if in_channels != info.channels:
        replace_first_conv(net, in_channels)
    if info.name == "lenet" and image_size != info.image_size:
        resize_lenet(net, image_size)
    return net
