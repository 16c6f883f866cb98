"""What the Python examples share: an image as the network wants it, and the answer as text.

Copy this file with the one that you need; neither uses the rest of this project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def description_beside(model: str) -> dict[str, Any]:
    """What MODEL.run.json, or run.json in the folder or the one above, says of a model."""
    path = Path(model)
    for file in (path.with_name(f"{path.name}.run.json"), path.parent / "run.json",
                 path.parent.parent / "run.json"):  # fmt: skip
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    raise SystemExit(f"{model}: there is no run.json beside it")


def load_image(path: str, description: dict[str, Any]) -> np.ndarray:
    """A float32 batch [1, C, size, size]: short side resized, centre cropped, normalised."""
    config = description["input"]
    flag = cv2.IMREAD_COLOR if config["channels"] == 3 else cv2.IMREAD_GRAYSCALE
    image = cv2.imread(path, flag)
    if image is None:
        raise SystemExit(f"{path}: no image")
    if image.ndim == 3:
        image = image[:, :, ::-1]  # OpenCV reads BGR
    scale = max(config["resize_size"], config["image_size"]) / min(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    image = resized(np.ascontiguousarray(image), height, width, config)
    size = config["image_size"]
    top, left = (height - size) // 2, (width - size) // 2
    image = image[top : top + size, left : left + size].reshape([size, size, -1])
    image = (image / 255 - np.array(config["mean"])) / np.array(config["std"])
    return np.ascontiguousarray(image.transpose([2, 0, 1])[None], dtype=np.float32)


def resized(image: np.ndarray, height: int, width: int, config: dict[str, Any]) -> np.ndarray:
    """The image in another size, by the filter that the network was trained with."""
    kind = config.get("interpolation", "bilinear")
    if config.get("antialias", False):
        from PIL import Image

        how = Image.Resampling[kind.upper()]
        return np.asarray(Image.fromarray(image).resize((width, height), how))
    names = {"bilinear": "LINEAR", "bicubic": "CUBIC", "lanczos": "LANCZOS4"}
    flag = getattr(cv2, f"INTER_{names.get(kind, kind.upper())}")
    return cv2.resize(image, (width, height), interpolation=flag)


def show(logits: np.ndarray, description: dict[str, Any], count: int = 5) -> None:
    """Prints the likeliest classes with their probabilities."""
    odds = np.exp(logits[0] - logits[0].max())
    odds = odds / odds.sum()
    names = description.get("class_names") or [str(i) for i in range(len(odds))]
    for i in np.argsort(-odds)[:count]:
        print(f"{odds[i]:7.2%}  {names[i]}")
