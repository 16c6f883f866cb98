"""The classifiers that can be trained here: those of ``paddle.vision`` and MobileNetV3.

Example::

    from models import build_model, model_info
    net = build_model("resnet18", num_classes=10)
    print(model_info("resnet18").image_size)
"""

from __future__ import annotations

from .cost import Cost, cost
from .errors import ModelError
from .info import ModelInfo
from .mobilenet_v3 import MobileNetV3
from .pretrained import find_pretrained
from .registry import ALIASES, build_model, list_models, model_info
from .weight_names import old_name, with_current_names, with_old_names

__all__ = [
    "ALIASES",
    "Cost",
    "MobileNetV3",
    "ModelError",
    "ModelInfo",
    "build_model",
    "cost",
    "find_pretrained",
    "list_models",
    "model_info",
    "old_name",
    "with_current_names",
    "with_old_names",
]
