from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from data.resize import ANTIALIASED, _fast_resizer, resize

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), np.uint8)


@pytest.mark.parametrize("interpolation", ANTIALIASED)
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("size", [(50, 40), (61, 97), (150, 300), (1, 1)])
def test_antialiased_filters_are_pillows(interpolation: str, channels: tuple, size: tuple) -> None:
    # Little contrast: where a pass overshoots 0 or 255, the order of the two passes shows.
    image = noise(97, 131, *channels) // 3 + 80
    out = resize(image, *size, interpolation, True)
    expected = Image.fromarray(image).resize(size[::-1], PILLOW[interpolation])
    assert out.dtype == np.uint8 and out.shape == (*size, *channels)
    assert np.abs(out.astype(int) - np.asarray(expected)).max() <= 2


def test_without_antialiasing_pixels_are_skipped() -> None:
    # Columns of 0 and 255 in turn: gray to whoever looks at all of them.
    stripes = np.tile(np.array([0, 255], np.uint8), (96, 144))
    averaged = resize(stripes, 32, 96, "bilinear", True)
    sampled = resize(stripes, 32, 96, "bilinear", False)
    assert np.abs(averaged.astype(int) - 127).max() < 45
    assert sampled.std() > 100
    np.testing.assert_array_equal(sampled, cv2.resize(stripes, (96, 32)))


def test_a_part_of_an_array_is_resized_like_a_copy_of_it() -> None:
    image = noise(60, 80, 3)[10:50, 20:70]
    for antialias in (False, True):
        out = resize(image, 24, 24, "bilinear", antialias)
        np.testing.assert_array_equal(
            out, resize(np.ascontiguousarray(image), 24, 24, "bilinear", antialias)
        )


@pytest.mark.parametrize("antialias", [False, True])
def test_an_image_of_the_right_size_is_left_alone(antialias: bool) -> None:
    image = noise(24, 32, 3)
    assert resize(image, 24, 32, "bilinear", antialias) is image


@pytest.mark.parametrize("interpolation", ANTIALIASED)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_without_the_fast_package_pillow_resizes_and_one_line_says_so(
    interpolation: str,
    channels: tuple,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = noise(60, 80, *channels)
    for name in ("cykooz_resizer", "cykooz.resizer"):
        monkeypatch.setitem(sys.modules, name, None)
    _fast_resizer.cache_clear()
    try:
        out = [resize(image, 24, 32, interpolation, True) for _ in range(2)]
    finally:
        _fast_resizer.cache_clear()
    expected = Image.fromarray(image).resize((32, 24), PILLOW[interpolation])
    for array in out:
        np.testing.assert_array_equal(array, np.asarray(expected))
    assert len(caplog.records) == 1
    assert "cykooz.resizer is not installed" in caplog.text
