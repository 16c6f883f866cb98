"""What MobileNetV3's tensors are called in the weights that PaddleClas has published.

=================================  =============================  ================================
in the network here                Paddle 1.x (the SSLD tar)      PaddleClas 2.0 | 2.2 and later
=================================  =============================  ================================
``conv1.conv.weight``              ``conv1_weights``              ``conv1.`` | ``conv.``
``conv1.bn.weight``, ``.bias``     ``conv1_bn_scale, _offset``
``conv1.bn._mean``, ``_variance``  ``conv1_bn_mean, _variance``
``units.conv2.expand.``            ``conv2_expand_``              ``conv2.`` | ``blocks.0.``, then
``units.conv2.depthwise.``         ``conv2_depthwise_``           ``expand_conv.``,
``units.conv2.linear.``            ``conv2_linear_``              ``bottleneck_conv.``,
``units.conv5.se.conv1.weight``    ``conv5_se_1_weights``         ``linear_conv.`` or ``mid_se.``
``units.conv5.se.conv1.bias``      ``conv5_se_1_offset``
``conv_last.``                     ``conv_last_``                 ``last_second_conv.``
``last_1x1_conv.weight``           ``last_1x1_conv_weights``      ``last_conv.weight``
``fc.weight``, ``fc.bias``         ``fc_weights``, ``fc_offset``  ``out.`` | ``fc.``
=================================  =============================  ================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from paddle import nn

from .mobilenet_v3 import MobileNetV3

Tensor = TypeVar("Tensor")

_BATCH_NORM = {
    "weight": "bn_scale",
    "bias": "bn_offset",
    "_mean": "bn_mean",
    "_variance": "bn_variance",
}
_CONV_OR_LINEAR = {"weight": "weights", "bias": "offset"}

# Replaced wherever they stand in a name, in this order.
_PADDLECLAS_PARTS = {
    ".expand.": ".expand_conv.",
    ".depthwise.": ".bottleneck_conv.",
    ".linear.": ".linear_conv.",
    ".se.": ".mid_se.",
}
# The first part of a name: in version 2.0, and from 2.2 on.
_PADDLECLAS_HEADS = {
    "conv1": ("conv1", "conv"),
    "conv_last": ("last_second_conv", "last_second_conv"),
    "last_1x1_conv": ("last_conv", "last_conv"),
    "fc": ("out", "fc"),
}

_CONV_BN = re.compile(r"(?:units\.)?(\w+(?:\.(?:expand|depthwise|linear))?)\.(conv|bn)\.(\w+)")
_GATE = re.compile(r"units\.(\w+)\.se\.conv([12])\.(weight|bias)")
_PLAIN = re.compile(r"(last_1x1_conv|fc)\.(weight|bias)")


def old_name(name: str) -> str | None:
    """Return the Paddle 1.x name of a tensor of MobileNetV3, or None if it had none.

    Args:
        name: a key of ``MobileNetV3(...).state_dict()``.
    """
    match = _CONV_BN.fullmatch(name)
    if match:
        layer, part, tensor = match.groups()
        ending = (_CONV_OR_LINEAR if part == "conv" else _BATCH_NORM).get(tensor)
        return None if ending is None else f"{layer.replace('.', '_')}_{ending}"
    match = _GATE.fullmatch(name)
    if match:
        return f"{match[1]}_se_{match[2]}_{_CONV_OR_LINEAR[match[3]]}"
    match = _PLAIN.fullmatch(name)
    return f"{match[1]}_{_CONV_OR_LINEAR[match[2]]}" if match else None


def paddleclas_names(name: str) -> tuple[str, str]:
    """Return what PaddleClas 2.0, and from 2.2 on, calls a tensor of MobileNetV3.

    Args:
        name: a key of ``MobileNetV3(...).state_dict()``.
    """
    for here, there in _PADDLECLAS_PARTS.items():
        name = name.replace(here, there)
    head, _, tail = name.partition(".")
    if head == "units":
        unit, _, tail = tail.partition(".")
        return name[len("units.") :], f"blocks.{int(unit[len('conv') :]) - 2}.{tail}"
    heads = _PADDLECLAS_HEADS.get(head, (head, head))
    return f"{heads[0]}.{tail}", f"{heads[1]}.{tail}"


def with_current_names(net: nn.Layer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what has a published name to its key in ``net.state_dict()``; the rest stays.

    Where a tensor is there under two names, the second stays as it is, so that none is lost unseen.

    Args:
        net: the network that the state is meant for; only MobileNetV3 has other names.
        state: tensors by names of any kind above.
    """
    if not isinstance(net, MobileNetV3):
        return dict(state)
    targets = net.state_dict()
    keys: dict[str | None, str] = {}
    for key in targets:
        keys.update(dict.fromkeys((old_name(key), *paddleclas_names(key)), key))
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = name if name in targets else keys.get(name, name)
        taken = key in renamed or (key != name and key in state)
        renamed[name if taken else key] = tensor
    return renamed


def with_old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a MobileNetV3 to what they were called in Paddle 1.x.

    Args:
        state: tensors by the keys of ``MobileNetV3(...).state_dict()``; one that had no name then
            (a scale of a quantizer) keeps its own.
    """
    return {old_name(name) or name: tensor for name, tensor in state.items()}
