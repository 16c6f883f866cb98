from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from data import DataError, InputConfig
from data.transforms import (
    Box,
    random_crop_box,
    random_resized_crop,
    random_shift_and_flip,
    resize_and_center_crop,
    resize_square,
)


def config(size: int = 224, **others: object) -> InputConfig:
    return InputConfig(size, **others)  # type: ignore[arg-type]


def test_crops_keep_to_the_area_and_aspect_bounds() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(375, 500, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 375).all() and (left + width <= 500).all()
    area = height * width / (375 * 500)
    aspect = width / height
    # Sides are rounded to whole pixels, the smallest here being about 106.
    assert area.min() >= 0.08 * 0.98 and area.max() <= 1
    assert aspect.min() >= 3 / 4 * 0.98 and aspect.max() <= 4 / 3 * 1.02
    assert area.min() < 0.1 and area.max() > 0.85


def test_crop_aspect_is_log_uniform_and_area_uniform() -> None:
    # Large crops often do not fit and are drawn again, so look below half of the area,
    # where every aspect fits a square image.
    rng = np.random.default_rng(1)
    boxes = np.array([random_crop_box(1000, 1000, rng) for _ in range(20000)])
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    inside = area < 0.5
    log_aspect = np.log(boxes[inside, 3] / boxes[inside, 2])
    width = math.log(4 / 3)
    # A uniform variable on [-w, w] has mean 0 and variance w^2 / 3.
    assert abs(log_aspect.mean()) < 0.01
    assert log_aspect.var() == pytest.approx(width**2 / 3, rel=0.03)
    assert area[inside].mean() == pytest.approx((0.08 + 0.5) / 2, abs=0.01)


def test_crops_reach_every_corner() -> None:
    rng = np.random.default_rng(2)
    boxes = np.array([random_crop_box(40, 40, rng) for _ in range(3000)])
    top, left, height, width = boxes.T
    for row in (top == 0, top + height == 40):
        for column in (left == 0, left + width == 40):
            assert (row & column).any()


@pytest.mark.parametrize(("height", "width"), [(4, 400), (400, 4), (1, 1), (1, 300)])
def test_elongated_images_fall_back_to_the_centre(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        top, left, crop_height, crop_width = random_crop_box(height, width, rng)
        assert 1 <= crop_height <= height and 1 <= crop_width <= width
        assert 0 <= top <= height - crop_height and 0 <= left <= width - crop_width


class Pixels:
    """Decoded pixels in the place of a file."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def crop(self, box: Box, channels: int, least: int) -> np.ndarray:
        top, left, height, width = box
        return self.pixels[top : top + height, left : left + width]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area", "lanczos"])
def test_the_crop_is_cut_out_before_it_is_resized(interpolation: str, photo: np.ndarray) -> None:
    flags = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }
    rng = np.random.default_rng(5)
    top, left, height, width = random_crop_box(120, 160, rng)
    patch = photo[top : top + height, left : left + width].copy()
    expected = cv2.resize(patch, (32, 32), interpolation=flags[interpolation])
    if rng.random() < 0.5:
        expected = expected[:, ::-1]
    actual = random_resized_crop(
        Pixels(photo), config(32, interpolation=interpolation), np.random.default_rng(5)
    )
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("seed", range(4))
def test_the_antialiased_training_crop_is_pillows(seed: int, photo: np.ndarray) -> None:
    rng = np.random.default_rng(seed)
    top, left, height, width = random_crop_box(120, 160, rng)
    box = (left, top, left + width, top + height)
    expected = Image.fromarray(photo).crop(box).resize((32, 32), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rng = np.random.default_rng(seed)
    actual = random_resized_crop(Pixels(photo), config(32, antialias=True), rng)
    assert np.abs(actual.astype(int) - np.asarray(expected)).max() <= 1


def test_half_of_the_training_images_are_mirrored() -> None:
    # Brightness grows to the right, so the sign of the slope shows the flip.
    ramp = np.tile(np.arange(0, 250, 2, dtype=np.uint8), (125, 1))
    rng = np.random.default_rng(3)
    flipped = 0
    for _ in range(2000):
        out = random_resized_crop(Pixels(ramp), config(16), rng).astype(int)
        flipped += bool(out[0, 0] > out[0, -1])
    # Five standard deviations of a fair coin.
    assert abs(flipped - 1000) < 5 * math.sqrt(2000) / 2


def test_centre_crop_of_an_image_that_needs_no_resize_is_its_exact_middle() -> None:
    image = np.arange(256 * 300, dtype=np.int64).reshape(256, 300) % 251
    out = resize_and_center_crop(image.astype(np.uint8), config())
    np.testing.assert_array_equal(out, image[16:240, 38:262])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (256, 256), (100, 731)])
def test_evaluation_frames_the_same_scene_as_pillow(height: int, width: int) -> None:
    # A smooth picture, on which Pillow's antialiased and OpenCV's plain bilinear filter agree.
    y, x = np.mgrid[0:height, 0:width]
    image = 127 + 80 * np.sin(2 * np.pi * x / width) + 45 * np.cos(2 * np.pi * y / height)
    image = image.astype(np.uint8)
    scale = 256 / min(height, width)
    size = (round(width * scale), round(height * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    out = resize_and_center_crop(image, config())
    assert out.shape == (224, 224)
    assert np.abs(out.astype(int) - expected.astype(int)).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (1100, 900)])
def test_antialiased_evaluation_is_pillows(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    scale = 256 / min(height, width)
    size = (round(width * scale), round(height * scale))
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    out = resize_and_center_crop(image, config(antialias=True))
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_area_interpolation_averages_when_it_shrinks() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    out = resize_square(image, config(16, interpolation="area"))
    mean = image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(out - mean).max() <= 0.5


def test_an_image_that_would_not_fit_in_memory_is_refused() -> None:
    with pytest.raises(DataError, match=r"9000x1 pixels.*2304000x256"):
        resize_and_center_crop(np.zeros((1, 9000), np.uint8), config())


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
def test_shifted_images_are_windows_of_the_padded_one(shape: tuple, clothes: np.ndarray) -> None:
    image = clothes[0] if len(shape) == 2 else np.dstack(list(clothes[:3]))
    padding = ((2, 2), (2, 2), (0, 0))[: image.ndim]
    padded = np.pad(image, padding)
    windows = {
        padded[top : top + 28, left : left + 28][:, ::step].tobytes()
        for top in range(5)
        for left in range(5)
        for step in (1, -1)
    }
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(1500):
        out = random_shift_and_flip(image, 2, config(28), rng)
        assert out.shape == shape
        seen.add(out.tobytes())
    # Every shift and mirror image comes up, and nothing else.
    assert seen == windows


def test_a_small_image_is_resized_only_when_its_size_differs(clothes: np.ndarray) -> None:
    image = clothes[0]
    assert resize_square(image, config(28)) is image
    assert resize_square(clothes[0], config(32)).shape == (32, 32)
