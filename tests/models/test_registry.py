from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest
from paddle.vision import models as vision

from models import ModelError, build_model, list_models, model_info

REQUIRED = [
    "lenet",
    "mobilenet_v1",
    "mobilenet_v1_x0_25",
    "mobilenet_v1_x0_5",
    "mobilenet_v2",
    "mobilenet_v2_x0_25",
    "mobilenet_v2_x0_5",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "mobilenet_v3",
    *(
        f"mobilenet_v3_{size}_x{scale}"
        for size in ("large", "small")
        for scale in ("0_35", "0_5", "0_75", "1_0", "1_25")
    ),
]
# VGG's classifier alone has 120 million weights, which makes it slow to build.
QUICK = [name for name in REQUIRED if not name.startswith(("vgg", "resnet101", "resnet152"))]
HEAVY = [name for name in REQUIRED if name not in QUICK]


def logits_shape(name: str, channels: int | None = None, size: int | None = None) -> list[int]:
    info = model_info(name)
    net = build_model(name, 7, channels, size)
    net.eval()
    side = size or max(32, info.min_image_size) if info.image_size != 28 else size or 28
    shape = [2, channels or info.channels, side, side]
    with paddle.no_grad():
        return [int(n) for n in net(paddle.zeros(shape)).shape]


def test_all_names_are_listed_once():
    assert sorted(list_models()) == sorted(REQUIRED)


@pytest.mark.parametrize("name", QUICK)
def test_model_maps_images_to_logits(name):
    assert logits_shape(name) == [2, 7]


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_heavy_model_maps_images_to_logits(name):
    assert logits_shape(name) == [2, 7]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("mobilenetv1", "mobilenet_v1"),
        ("mobilenetv2", "mobilenet_v2"),
        ("resnet", "resnet50"),
        ("vgg", "vgg16"),
    ],
)
def test_alias_names_the_same_row(alias, name):
    assert model_info(alias) is model_info(name)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("lenet", vision.LeNet),
        ("mobilenet_v1", vision.MobileNetV1),
        ("resnet18", vision.ResNet),
        ("resnet34", vision.ResNet),
    ],
)
def test_vision_model_is_paddles_own(name, layer):
    assert type(build_model(name, 10)) is layer


def test_mobilenet_v3_is_the_large_network_of_scale_1():
    shapes = [
        {key: list(value.shape) for key, value in build_model(name, 5).state_dict().items()}
        for name in ("mobilenet_v3", "mobilenet_v3_large_x1_0")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["lenet", "mobilenet_v1", "resnet18", "mobilenet_v3_small_x0_35"])
def test_number_of_input_channels_can_be_set(name):
    channels = 3 if name == "lenet" else 1
    assert logits_shape(name, channels=channels, size=32) == [2, 7]


def test_changing_the_channels_keeps_every_name_and_other_shape():
    colour = build_model("mobilenet_v1", 10).state_dict()
    grey = build_model("mobilenet_v1", 10, in_channels=1).state_dict()
    assert list(colour) == list(grey)
    changed = [key for key in colour if list(colour[key].shape) != list(grey[key].shape)]
    assert len(changed) == 1
    assert list(colour[changed[0]].shape) == [32, 3, 3, 3]
    assert list(grey[changed[0]].shape) == [32, 1, 3, 3]


def test_first_convolution_of_grey_model_keeps_stride_padding_and_missing_bias():
    colour = build_model("resnet18", 10).conv1
    grey = build_model("resnet18", 10, in_channels=1).conv1
    assert grey.bias is None
    assert grey._stride == colour._stride
    assert grey._padding == colour._padding


@pytest.mark.parametrize("size", [12, 28, 32, 64])
def test_lenet_takes_other_sizes(size):
    assert logits_shape("lenet", size=size) == [2, 7]


def test_lenet_defaults_to_grey_images_of_28_pixels_without_a_crop():
    info = model_info("lenet")
    assert (info.channels, info.image_size, info.resize_size) == (1, 28, 28)
    assert (info.mean, info.std) == ((0.2860,), (0.3530,))


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet50", "mobilenet_v3"])
def test_imagenet_models_default_to_imagenet_input(name):
    info = model_info(name)
    assert (info.channels, info.image_size, info.resize_size) == (3, 224, 256)
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.std == (0.229, 0.224, 0.225)


def test_statistics_follow_the_number_of_channels():
    info = model_info("resnet18")
    grey = info.for_channels(1)
    assert grey.mean == (pytest.approx(np.mean(info.mean)),)
    assert grey.std == (pytest.approx(np.mean(info.std)),)
    assert info.for_channels(3) is info
    colour = model_info("lenet").for_channels(3)
    assert colour.mean == pytest.approx((0.2860,) * 3)
    assert colour.channels == 3


def test_info_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_info("lenet").channels = 3


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("mobilnet_v1", "mobilenet_v1"), ("resnet51", "resnet50"), ("le_net", "lenet")],
)
def test_unknown_model_names_the_nearest_and_all_others(wrong, near):
    with pytest.raises(ModelError) as caught:
        build_model(wrong, 10)
    message = str(caught.value)
    assert repr(wrong) in message and f"did you mean {near}?" in message
    assert all(name in message for name in REQUIRED)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("lenet", 0), "num_classes is 0"),
        (("lenet", 10, 0), "channels is 0"),
        (("lenet", 10, 1, 11), "image_size is 11; at least 12"),
        (("vgg11", 10, 3, 31), "image_size is 31; at least 32"),
    ],
)
def test_impossible_settings_are_refused(arguments, named):
    with pytest.raises(ModelError, match=named):
        build_model(*arguments)
