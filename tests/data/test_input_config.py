from __future__ import annotations

import pytest

from data import DataError, InputConfig


def test_defaults_are_the_imagenet_protocol() -> None:
    config = InputConfig()
    assert (config.image_size, config.resize_size, config.channels) == (224, 256, 3)
    assert config.mean == (0.485, 0.456, 0.406)
    assert config.std == (0.229, 0.224, 0.225)
    assert config.interpolation == "bilinear"


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (28, 32), (160, 183), (32, 37)])
def test_resize_size_follows_image_size(size: int, resize: int) -> None:
    assert InputConfig(size).resize_size == resize


def test_lists_as_yaml_gives_them_are_accepted() -> None:
    config = InputConfig(28, channels=1, mean=[0.5], std=[1])  # type: ignore[arg-type]
    assert config == InputConfig(28, channels=1, mean=(0.5,), std=(1.0,))
    assert hash(config) == hash(InputConfig(28, channels=1, mean=(0.5,), std=(1.0,)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": 0}, ["image_size", "0", "from 1"]),
        ({"image_size": 22.5}, ["image_size", "22.5"]),
        ({"image_size": True}, ["image_size", "True"]),
        ({"image_size": 10**6}, ["image_size", "1000000", "8192"]),
        ({"resize_size": 200}, ["resize_size", "200", "224"]),
        ({"channels": 2}, ["channels", "2", "1 (gray) or 3 (RGB)"]),
        ({"channels": 1}, ["mean", "0.485", "1 finite"]),
        ({"mean": (0.5, 0.5)}, ["mean", "(0.5, 0.5)", "3 finite"]),
        ({"mean": (0.5, 0.5, float("nan"))}, ["mean", "nan"]),
        ({"mean": "abc"}, ["mean", "'abc'"]),
        ({"std": (0.1, 0.0, 0.1)}, ["std", "0.0", "above 0"]),
        ({"interpolation": "bilinaer"}, ["bilinaer", "lanczos", "did you mean 'bilinear'"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(arguments: dict, words: list) -> None:
    with pytest.raises(DataError) as caught:
        InputConfig(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
