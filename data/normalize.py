"""From 8-bit pixels to what a network reads: the one conversion to float."""

from __future__ import annotations

import cv2
import numpy as np
import paddle

from .input_config import InputConfig


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Give an image the channels of a network.

    Args:
        image: uint8 [H, W] (gray) or [H, W, 3] (RGB). Gray is repeated for a network of three
            channels, RGB becomes luma (ITU-R BT.601) for one of a single channel.
        channels: 3 or 1.

    Returns:
        uint8 [H, W, channels].
    """
    if channels == 1:
        luma = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return luma[:, :, None]
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


class Normalizer:
    """``(x / 255 - mean) / std``, channels first.

    Args:
        config: gives channels, mean and std.
    """

    def __init__(self, config: InputConfig) -> None:
        self._mean = np.array(config.mean)
        self._std = np.array(config.std)
        # A byte has 256 values, so each is computed once, and a pixel is one look-up.
        values = (np.arange(256) / 255 - self._mean[:, None]) / self._std[:, None]
        self._tables = values.astype(np.float32)

    def array(self, images: np.ndarray) -> np.ndarray:
        """Normalise on the CPU, in the calling thread.

        Args:
            images: uint8 [N, H, W, C].

        Returns:
            float32 [N, C, H, W].
        """
        count, height, width, channels = images.shape
        out = np.empty((count, channels, height, width), np.float32)
        for image, target in zip(images, out):
            for plane, table, result in zip(cv2.split(image), self._tables, target):
                cv2.LUT(plane, table, result)
        return out

    def tensor(self, images: paddle.Tensor) -> paddle.Tensor:
        """Normalise on the device where the images are, to within float32 rounding the same.

        Args:
            images: uint8 [N, H, W, C].

        Returns:
            float32 [N, C, H, W].
        """
        scale = paddle.to_tensor((1 / (255 * self._std)).astype(np.float32), place=images.place)
        shift = paddle.to_tensor((self._mean / self._std).astype(np.float32), place=images.place)
        return (images.astype("float32") * scale - shift).transpose([0, 3, 1, 2])
