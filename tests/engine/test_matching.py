from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from engine.errors import EngineError
from engine.matching import load_into
from engine.weights import load_weights
from models import MobileNetV3, build_model, with_old_names
from quant import QAT


def small_net() -> nn.Layer:
    return nn.Sequential(
        ("conv", nn.Conv2D(3, 4, 3)),
        ("bn", nn.BatchNorm2D(4)),
        ("pool", nn.AdaptiveAvgPool2D(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(4, 5)),
    )


def arrays(net: nn.Layer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


def test_every_tensor_is_set():
    source, target = small_net(), small_net()
    source.bn._mean.set_value(paddle.arange(4, dtype="float32"))
    assert load_into(target, arrays(source), "w") == (8, 8, [])
    for name, value in arrays(source).items():
        np.testing.assert_array_equal(arrays(target)[name], value)


def test_floats_of_another_width_are_converted():
    net = small_net()
    state = {name: value.astype(np.float64) for name, value in arrays(net).items()}
    state["fc.bias"] += 0.5
    load_into(net, state, "w")
    assert net.fc.bias.dtype == paddle.float32
    np.testing.assert_array_equal(net.fc.bias.numpy(), [0.5] * 5)


def test_integers_are_not_taken_for_floats():
    net = small_net()
    state = arrays(net)
    state["fc.weight"] = state["fc.weight"].astype(np.int8)
    with pytest.raises(EngineError, match="fc.weight is int8, in the network float32"):
        load_into(net, state, "w")


def test_mismatches_are_listed_by_name_and_shape():
    net = small_net()
    state = arrays(net)
    del state["conv.bias"]
    state["bn.weight"] = np.ones(7, np.float32)
    state["extra"] = np.ones((2, 3), np.float32)
    before = arrays(net)
    state["fc.bias"] = state["fc.bias"] + 1
    with pytest.raises(EngineError) as caught:
        load_into(net, state, "some/file.pdparams")
    message = str(caught.value)
    for part in (
        "some/file.pdparams: 3 tensors",
        "conv.bias [4] is missing",
        "bn.weight is [7], in the network [4]",
        "extra [2, 3] is not in the network",
    ):
        assert part in message
    assert "\n" not in message
    for name, value in before.items():
        np.testing.assert_array_equal(arrays(net)[name], value)


def test_every_one_of_many_mismatches_is_listed():
    net = build_model("mobilenet_v1", 4)
    state = arrays(net)
    gone = [name for name in state if name.endswith("_mean")]
    for name in gone:
        del state[name]
    with pytest.raises(EngineError, match="27 tensors do not match") as caught:
        load_into(net, state, "w")
    assert all(f"{name} [" in str(caught.value) for name in gone)


def test_list_of_a_hostile_file_ends_with_a_count():
    state = {**arrays(small_net()), **{f"x{i}": np.ones(1) for i in range(3000)}}
    with pytest.raises(EngineError, match="3000 tensors do not match.* and 1000 more"):
        load_into(small_net(), state, "w")


def test_other_number_of_classes_is_said_so():
    state = arrays(build_model("mobilenet_v1", 1000))
    with pytest.raises(EngineError) as caught:
        load_into(build_model("mobilenet_v1", 10), state, "w.pdparams")
    message = str(caught.value)
    assert "w.pdparams: weights for 1000 classes, but the network has 10" in message
    assert "--num_classes" in message


def test_other_input_channels_are_not_taken_for_classes():
    state = arrays(build_model("mobilenet_v1", 10))
    with pytest.raises(EngineError) as caught:
        load_into(build_model("mobilenet_v1", 10, in_channels=1), state, "w")
    assert "classes" not in str(caught.value)
    assert "[32, 3, 3, 3], in the network [32, 1, 3, 3]" in str(caught.value)


def test_checkpoint_of_another_model_is_said_so():
    state = arrays(build_model("resnet18", 10))
    with pytest.raises(
        EngineError, match="w: a checkpoint of another model: 2 of its 102"
    ) as caught:
        load_into(build_model("mobilenet_v1", 10), state, "w")
    # Both lists are whole, by name and shape.
    for name, value in state.items():
        if name not in ("fc.weight", "fc.bias"):
            assert f"{name} {list(value.shape)} is not in the network" in str(caught.value)
    for name, value in arrays(build_model("mobilenet_v1", 10)).items():
        if name not in ("fc.weight", "fc.bias"):
            assert f"{name} {list(value.shape)} is missing" in str(caught.value)


def test_names_from_a_hostile_file_do_not_flood_or_steer_the_terminal():
    state = {**arrays(small_net()), "\x1b[2J\n": np.ones(1), "x" * 10**6: np.ones(1)}
    with pytest.raises(EngineError) as caught:
        load_into(small_net(), state, "w")
    message = str(caught.value)
    assert len(message) < 300 and message.isprintable()


def test_empty_state_is_refused():
    with pytest.raises(EngineError):
        load_into(small_net(), {}, "w")


def test_partial_loading_sets_what_matches_and_lists_the_rest():
    net = small_net()
    before = arrays(net)
    state = {name: value + 1 for name, value in before.items()}
    del state["conv.bias"]
    state["bn.weight"] = np.ones(7, np.float32)
    state["fc.bias"] = np.ones(5, np.int32)
    state["extra"] = np.ones((2, 3), np.float32)
    found = load_into(net, state, "w", allow_partial=True)
    assert (found.loaded, found.total) == (5, 8)
    assert found.mismatches == [
        "conv.bias [4] is missing",
        "bn.weight is [7], in the network [4]",
        "fc.bias is int32, in the network float32",
        "extra [2, 3] is not in the network",
    ]
    after = arrays(net)
    for name, value in before.items():
        kept = name in ("conv.bias", "bn.weight", "fc.bias")
        np.testing.assert_array_equal(after[name], value if kept else value + 1, err_msg=name)


def test_partial_loading_of_all_lists_nothing():
    source, target = small_net(), small_net()
    assert load_into(target, arrays(source), "w", allow_partial=True) == (8, 8, [])


def test_partial_loading_leaves_out_the_classifier_of_other_classes():
    source, target = (MobileNetV3("small", 0.35, classes) for classes in (1000, 10))
    fc = target.fc.weight.numpy().copy()
    left_out = load_into(target, arrays(source), "w", allow_partial=True).mismatches
    assert left_out == [
        "fc.weight is [1280, 1000], in the network [1280, 10]",
        "fc.bias is [1000], in the network [10]",
    ]
    np.testing.assert_array_equal(target.fc.weight.numpy(), fc)
    np.testing.assert_array_equal(
        target.conv1.conv.weight.numpy(), source.conv1.conv.weight.numpy()
    )


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"other": np.ones(3, np.float32)},
        {"fc.bias": np.ones(3, np.float32)},
        {"fc.bias": np.ones(5, np.int64)},
    ],
)
@pytest.mark.parametrize("allow_partial", [False, True])
def test_nothing_that_matches_is_refused_either_way(state, allow_partial):
    net = small_net()
    before = arrays(net)
    with pytest.raises(EngineError):
        load_into(net, state, "w", allow_partial)
    for name, value in before.items():
        np.testing.assert_array_equal(arrays(net)[name], value)


@pytest.mark.parametrize("kept", range(1, 8))
def test_less_than_half_of_the_tensors_is_no_start(kept):
    net = small_net()
    before = arrays(net)
    state = {name: value + (1 if n < kept else 0) for n, (name, value) in enumerate(before.items())}
    for name in list(state)[kept:]:
        state[name] = np.ones((9, 9), np.float32)
    if kept >= 4:
        assert load_into(net, state, "w", allow_partial=True).loaded == kept
        return
    with pytest.raises(EngineError, match=rf"only {kept} of the 8 tensors.* \[9, 9\]"):
        load_into(net, state, "w", allow_partial=True)
    for name, value in before.items():
        np.testing.assert_array_equal(arrays(net)[name], value)


def test_old_names_are_taken_as_the_new_ones():
    source, target = (MobileNetV3("small", 0.35, 10) for _ in range(2))
    assert load_into(target, with_old_names(arrays(source)), "w").mismatches == []
    for name, value in arrays(source).items():
        np.testing.assert_array_equal(arrays(target)[name], value, err_msg=name)


def test_old_names_go_into_a_quantized_network():
    source, net = (MobileNetV3("small", 0.35, 10) for _ in range(2))
    QAT().quantize(net)
    left_out = load_into(net, with_old_names(arrays(source)), "w", allow_partial=True).mismatches
    assert left_out and all("_quant." in line and "is missing" in line for line in left_out)
    np.testing.assert_array_equal(net.fc.weight.numpy(), source.fc.weight.numpy())


def test_mismatch_of_an_old_name_is_listed():
    net = MobileNetV3("small", 0.35, 10)
    state = with_old_names(arrays(net))
    del state["conv2_se_1_offset"]
    state["@LR_DECAY_COUNTER@"] = np.zeros(1, np.int64)
    with pytest.raises(EngineError) as caught:
        load_into(net, state, "w")
    message = str(caught.value)
    assert "2 tensors do not match" in message and "--allow_partial=True" in message
    assert "units.conv2.se.conv1.bias [2] is missing" in message
    assert "@LR_DECAY_COUNTER@ [1] is not in the network" in message


def test_file_to_network(tmp_path):
    source, target = build_model("lenet", 10), build_model("lenet", 10)
    path = tmp_path / "w.pdparams"
    paddle.save(source.state_dict(), str(path))
    load_into(target, load_weights(path), path)
    x = paddle.rand([2, 1, 28, 28])
    np.testing.assert_array_equal(source(x).numpy(), target(x).numpy())
