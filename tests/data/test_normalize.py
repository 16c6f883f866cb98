from __future__ import annotations

import numpy as np
import paddle
import pytest

from data import InputConfig
from data.normalize import Normalizer, with_channels

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def batch(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 9, 7, channels), np.uint8)


def test_normalisation_is_the_formula_on_channels_first() -> None:
    images = batch()
    expected = ((images / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2)
    out = Normalizer(InputConfig()).array(images)
    assert out.dtype == np.float32 and out.shape == (4, 3, 9, 7) and out.flags.c_contiguous
    # Every value is the nearest float32.
    np.testing.assert_array_equal(out, expected.astype(np.float32))


def test_one_channel_has_its_own_mean_and_std() -> None:
    images = batch(1)
    config = InputConfig(channels=1, mean=(0.3,), std=(0.2,))
    out = Normalizer(config).array(images)
    np.testing.assert_allclose(out[:, 0], (images[..., 0] / 255 - 0.3) / 0.2, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_computes_the_same(channels: int) -> None:
    images = batch(channels)
    config = InputConfig(channels=channels, mean=(0.4,) * channels, std=(0.2,) * channels)
    normalizer = Normalizer(config)
    out = normalizer.tensor(paddle.to_tensor(images))
    assert out.dtype == paddle.float32
    np.testing.assert_allclose(out.numpy(), normalizer.array(images), atol=2e-6)


def test_gray_is_repeated_for_a_colour_network() -> None:
    image = batch(1)[0, :, :, 0]
    out = with_channels(image, 3)
    assert out.shape == (9, 7, 3)
    for channel in range(3):
        np.testing.assert_array_equal(out[:, :, channel], image)


def test_colour_becomes_luma_for_a_gray_network() -> None:
    image = batch()[0]
    out = with_channels(image, 1)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert out.shape == (9, 7, 1)
    assert np.abs(out[:, :, 0] - luma).max() <= 0.51


@pytest.mark.parametrize("channels", [1, 3])
def test_what_has_its_channels_keeps_its_values(channels: int) -> None:
    image = batch(channels)[0]
    given = image[:, :, 0] if channels == 1 else image
    np.testing.assert_array_equal(with_channels(given, channels), image)
