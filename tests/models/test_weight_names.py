from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from models import MobileNetV3, build_model, old_name, with_current_names, with_old_names
from models.mobilenet_v3 import SCALES
from models.weight_names import paddleclas_names

BATCH_NORM = ("scale", "offset", "mean", "variance")
# Units with squeeze-and-excitation, by their number, from the paper's tables.
GATED = {"large": (5, 6, 7, 12, 13, 14, 15, 16), "small": (2, 5, 6, 7, 8, 9, 10, 11, 12)}
UNITS = {"large": 15, "small": 11}


def names_of_paddle_1(size: str) -> set[str]:
    """Every variable of the network as PaddleClas named it."""
    convs = ["conv1", "conv_last"]
    for number in range(2, UNITS[size] + 2):
        convs += [f"conv{number}_{part}" for part in ("expand", "depthwise", "linear")]
    names = {f"{conv}_weights" for conv in convs}
    names |= {f"{conv}_bn_{part}" for conv in convs for part in BATCH_NORM}
    for number in GATED[size]:
        names |= {f"conv{number}_se_{i}_{part}" for i in (1, 2) for part in ("weights", "offset")}
    return names | {"last_1x1_conv_weights", "fc_weights", "fc_offset"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", ["large", "small"])
def test_both_ways_for_every_variant(size, scale):
    net = MobileNetV3(size, scale, 3)
    # A number of its own for each tensor, so that none can take another's place.
    state = {name: number for number, name in enumerate(net.state_dict())}
    old = with_old_names(state)
    assert set(old) == names_of_paddle_1(size)
    assert with_current_names(net, old) == state


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("conv1.conv.weight", "conv1_weights"),
        ("units.conv2.expand.bn.weight", "conv2_expand_bn_scale"),
        ("units.conv2.expand.bn.bias", "conv2_expand_bn_offset"),
        ("units.conv10.depthwise.bn._mean", "conv10_depthwise_bn_mean"),
        ("units.conv16.linear.bn._variance", "conv16_linear_bn_variance"),
        ("units.conv4.se.conv1.weight", "conv4_se_1_weights"),
        ("units.conv4.se.conv2.bias", "conv4_se_2_offset"),
        ("conv_last.bn._mean", "conv_last_bn_mean"),
        ("last_1x1_conv.weight", "last_1x1_conv_weights"),
        ("fc.weight", "fc_weights"),
        ("fc.bias", "fc_offset"),
    ],
)
def test_names_of_the_published_weights(name, old):
    assert old_name(name) == old


@pytest.mark.parametrize(
    "name", ["units.conv2.expand.conv._act_quant.scale", "conv1.bn.extra", "something", ""]
)
def test_what_had_no_name_then(name):
    assert old_name(name) is None
    assert with_old_names({name: 1}) == {name: 1}


def test_unknown_names_and_current_ones_stay():
    net = MobileNetV3("small", 0.35, 3)
    state = {"conv1_weights": 1, "fc.weight": 2, "other": 3}
    assert with_current_names(net, state) == {"conv1.conv.weight": 1, "fc.weight": 2, "other": 3}


@pytest.mark.parametrize(
    "state",
    [
        {"fc_weights": 1, "fc.weight": 2},
        {"fc.weight": 2, "fc_weights": 1},
        {"fc.weight": 2, "fc_weights": 1, "out.weight": 3},
    ],
)
def test_tensor_under_two_names_is_not_lost(state):
    assert with_current_names(MobileNetV3("small", 0.35, 3), state) == state


def test_of_two_foreign_names_one_stays():
    state = {"fc_weights": 1, "out.weight": 2}
    renamed = with_current_names(MobileNetV3("small", 0.35, 3), state)
    assert renamed == {"fc.weight": 1, "out.weight": 2}


def names_of_paddleclas_2(size: str, version: str) -> set[str]:
    """Every key of the state of PaddleClas's own network, by its classes."""
    old = version == "2.0"
    bases = ["conv1" if old else "conv", "last_second_conv"]
    names = {"last_conv.weight"} | {
        f"{'out' if old else 'fc'}.{part}" for part in ("weight", "bias")
    }
    for number in range(UNITS[size]):
        block = f"conv{number + 2}" if old else f"blocks.{number}"
        bases += [f"{block}.{part}_conv" for part in ("expand", "bottleneck", "linear")]
        if number + 2 in GATED[size]:
            gate = f"{block}.mid_se.conv"
            names |= {f"{gate}{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    names |= {f"{base}.conv.weight" for base in bases}
    parts = ("weight", "bias", "_mean", "_variance")
    return names | {f"{base}.bn.{part}" for base in bases for part in parts}


@pytest.mark.parametrize("version", ["2.0", "2.2"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", ["large", "small"])
def test_names_of_paddleclas_2_for_every_variant(size, scale, version):
    net = MobileNetV3(size, scale, 3)
    index = ["2.0", "2.2"].index(version)
    state = {paddleclas_names(key)[index]: key for key in net.state_dict()}
    assert set(state) == names_of_paddleclas_2(size, version)
    assert with_current_names(net, state) == {key: key for key in net.state_dict()}


@pytest.mark.parametrize("net", [nn.Linear(2, 2), build_model("lenet", 10)])
def test_other_networks_have_no_old_names(net):
    assert with_current_names(net, {"fc_weights": 1}) == {"fc_weights": 1}


def test_renamed_weights_compute_the_same():
    source, target = (MobileNetV3("small", 0.35, 5) for _ in range(2))
    target.set_state_dict(with_current_names(target, with_old_names(source.state_dict())))
    source.eval()
    target.eval()
    x = paddle.rand([1, 3, 32, 32])
    np.testing.assert_array_equal(source(x).numpy(), target(x).numpy())
