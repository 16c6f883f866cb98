from __future__ import annotations

import os
import pickle
import random
import struct
import tracemalloc
from collections import OrderedDict

import numpy as np
import paddle
import pytest
import safetensors.numpy
from paddle import nn

from engine import pickles
from engine.errors import EngineError
from engine.weights import load_into, load_weights
from models import build_model
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


def refusal(path) -> str:
    with pytest.raises(EngineError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.fixture
def put(tmp_path):
    def write(data: bytes, name: str = "w.pdparams"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


class TestPdparams:
    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_state_dict_that_paddle_saved(self, tmp_path, protocol):
        net = small_net()
        path = tmp_path / "w.pdparams"
        paddle.save(net.state_dict(), str(path), protocol=protocol)
        loaded = load_weights(path)
        expected = arrays(net)
        assert list(loaded) == list(expected)
        for name, value in expected.items():
            assert loaded[name].dtype == value.dtype
            np.testing.assert_array_equal(loaded[name], value)

    def test_single_tensors_that_paddle_saved(self, tmp_path):
        path = tmp_path / "w.pdparams"
        count = paddle.to_tensor(np.arange(3))
        paddle.save({"count": count, "scale": paddle.ones([2])}, str(path))
        loaded = load_weights(path)
        np.testing.assert_array_equal(loaded["count"], [0, 1, 2])
        np.testing.assert_array_equal(loaded["scale"], [1, 1])

    def test_bfloat16_is_widened(self, tmp_path):
        net = nn.Linear(3, 2)
        net.bfloat16()
        path = tmp_path / "w.pdparams"
        paddle.save(net.state_dict(), str(path))
        loaded = load_weights(path)
        assert loaded["weight"].dtype == np.float32
        np.testing.assert_array_equal(loaded["weight"], net.weight.astype("float32").numpy())

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "?"])
    def test_arrays_pickled_by_hand(self, put, protocol, dtype):
        original = np.arange(6).reshape(2, 3).astype(dtype)
        state = OrderedDict(a=original, b=np.asfortranarray(original), c=np.array(3, dtype))
        loaded = load_weights(put(pickle.dumps(state, protocol)))
        for name, value in state.items():
            np.testing.assert_array_equal(loaded[name], value)
            assert loaded[name].dtype == value.dtype
            assert loaded[name].shape == value.shape

    def test_names_of_numpy_1_and_2_are_both_known(self, put):
        data = pickle.dumps({"a": np.ones(3, np.float32)}, 4)
        has_new = b"numpy._core.multiarray" in data
        source, target = (
            (b"numpy._core", b"numpy.core") if has_new else (b"numpy.core", b"numpy._core")
        )
        shift = len(target) - len(source)
        position = data.index(source)
        # The byte before the text is its length; the frame length is at 3..10.
        changed = bytearray(data.replace(source, target, 1))
        changed[position - 1] += shift
        changed[3:11] = struct.pack("<Q", struct.unpack("<Q", data[3:11])[0] + shift)
        np.testing.assert_array_equal(load_weights(put(bytes(changed)))["a"], np.ones(3))

    def test_suffix_may_be_left_out(self, put, tmp_path):
        put(pickle.dumps({"a": np.ones(3)}, 4), "epoch_0.pdparams")
        assert list(load_weights(tmp_path / "epoch_0")) == ["a"]

    def test_weights_of_a_whole_model_survive(self, tmp_path):
        net = build_model("mobilenet_v3_small_x0_35", 4)
        path = tmp_path / "w.pdparams"
        paddle.save(net.state_dict(), str(path))
        loaded, expected = load_weights(path), arrays(net)
        assert all(np.array_equal(loaded[name], value) for name, value in expected.items())
        assert list(loaded) == list(expected)


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class TestHostilePickles:
    @pytest.mark.parametrize(
        ("evil", "name"),
        [
            (Evil(os.system, "touch {marker}"), "system"),
            (Evil(eval, "1"), "builtins.eval"),
            (Evil(getattr, 1, "real"), "builtins.getattr"),
            (Evil(np.ones, 10**12), "ones"),
            (Evil(bytearray, 10**12), "builtins.bytearray"),
            (np.random.RandomState, "numpy.random"),
            ({1, 2}, "builtins.set"),
        ],
    )
    @pytest.mark.parametrize("protocol", [2, 3])
    def test_other_globals_are_named_and_refused(self, put, tmp_path, evil, name, protocol):
        marker = tmp_path / "marker"
        if isinstance(evil, Evil) and evil.call[0] is os.system:
            evil = Evil(os.system, f"touch {marker}")
        message = refusal(put(pickle.dumps({"a": evil}, protocol)))
        assert "refused" in message and name.rsplit(".")[-1] in message.replace("__builtin__", "")
        assert not marker.exists()

    def test_class_that_is_never_called_is_refused_too(self, put):
        assert "collections.deque" in refusal(put(b"\x80\x02ccollections\ndeque\n."))

    def test_globals_with_dots_do_not_slip_through(self, put):
        message = refusal(put(b"\x80\x02cnumpy\ncore.multiarray.scalar.__class__\n."))
        assert "refused" in message

    def test_long_names_are_cut(self, put):
        assert len(refusal(put(b"\x80\x02c" + b"x" * 10**6 + b"\ny\n."))) < 400

    def test_array_of_objects_is_refused(self, put):
        assert "refused" in refusal(put(pickle.dumps({"a": np.array([{}, []], object)}, 4)))

    def test_record_array_is_refused(self, put):
        array = np.zeros(2, dtype=[("x", "f4"), ("y", "i4")])
        assert "refused" in refusal(put(pickle.dumps({"a": array}, 4)))

    def test_big_endian_array_is_refused_and_not_misread(self, put):
        assert "big-endian" in refusal(put(pickle.dumps({"a": np.ones(2, ">f4")}, 4)))

    def test_array_that_claims_to_be_larger_than_its_content(self, put):
        data = pickle.dumps({"a": np.ones((3, 5), np.float32)}, 2)
        # The shape is the pair of one-byte integers 3, 5.
        changed = data.replace(b"K\x03K\x05\x86", b"K\x03K\x7f\x86")
        assert changed != data
        assert "content is cut" in refusal(put(changed))

    def test_array_of_very_many_dimensions_is_refused(self, put):
        data = pickle.dumps({"a": np.ones((3, 5, 7), np.float32)}, 2)
        changed = data.replace(b"K\x03K\x05K\x07\x87", b"(" + b"K\x7f" * 100_000 + b"t")
        assert changed != data
        assert "odd shape" in refusal(put(changed))

    def test_memory_stays_in_proportion_to_the_file(self, put):
        text = "x" * 1_000_000
        encode = b"c_codecs\nencode\n"
        body = b"X" + struct.pack("<I", len(text)) + text.encode() + b"q\x01"
        latin = b"X\x06\x00\x00\x00latin1q\x02"
        call = encode + b"h\x01h\x02\x86R"
        bomb = b"\x80\x02]" + b"(" + body + latin + call * 2000 + b"e."
        path = put(bomb)
        tracemalloc.start()
        try:
            message = refusal(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert "more array content than the file has bytes" in message
        assert peak < 20 * len(bomb)

    @pytest.mark.parametrize(
        "data",
        [
            b"\x80\x04r\xff\xff\xff\x7f.",  # LONG_BINPUT far away with nothing on the stack
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",  # BINBYTES8 of 2**63 - 1 bytes
            b"\x80\x04B\xff\xff\xff\x7fabc.",  # BINBYTES of 2 GiB
            b"\x80\x04\x8d\xff\xff\xff\xff\x00\x00\x00\x00abc.",  # BINUNICODE8 of 4 GiB
        ],
    )
    def test_lengths_beyond_the_file_are_not_believed(self, put, data):
        assert "cut" in refusal(put(data))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x80",
            b".",
            b"hello world",
            b"PK\x03\x04 a zip file",
            b"\x89PNG\r\n",
            b"\x80\x04N",
        ],
    )
    def test_files_of_another_kind(self, put, data):
        refusal(put(data))

    def test_pickle_without_names(self, put):
        assert "holds list" in refusal(put(pickle.dumps([1, 2], 4)))

    def test_value_that_is_no_tensor_is_named(self, put):
        message = refusal(put(pickle.dumps({"a": np.ones(1), "epoch": 3}, 4)))
        assert "epoch is no tensor but int" in message

    def test_every_cut_of_a_real_file_is_one_clean_error(self, tmp_path, put):
        path = tmp_path / "whole.pdparams"
        paddle.save(nn.Linear(2, 2).state_dict(), str(path))
        data = path.read_bytes()
        for length in range(len(data)):
            refusal(put(data[:length]))

    def test_damaged_bytes_never_raise_anything_else(self, tmp_path):
        path = tmp_path / "whole.pdparams"
        paddle.save(nn.Linear(2, 2).state_dict(), str(path))
        data = path.read_bytes()
        rng = random.Random(0)
        loaded = 0
        for _ in range(3000):
            changed = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 5])):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            path.write_bytes(bytes(changed))
            try:
                load_weights(path)
                loaded += 1
            except EngineError:
                pass
        assert 0 < loaded < 3000

    @pytest.mark.parametrize(
        "value",
        [
            {"a": [1, -2, 300, 2**40, 1.5, True, None, "text", b"bytes"]},
            {"a": (1,), "b": (1, 2), "c": (1, 2, 3), "d": (1, 2, 3, 4), "e": ()},
            {"nested": {"x": {"y": []}}, "": {}},
            OrderedDict(z=1, y=2),
        ],
    )
    @pytest.mark.parametrize("protocol", [3, 4])
    def test_plain_containers_come_back_as_from_pickle(self, value, protocol):
        assert pickles.loads(pickle.dumps(value, protocol)) == value

    def test_numpy_numbers_come_back_as_python_numbers(self):
        value = pickles.loads(pickle.dumps({"lr": np.float64(0.25), "n": np.int64(7)}, 4))
        assert value == {"lr": 0.25, "n": 7}
        assert type(value["lr"]) is float and type(value["n"]) is int


class TestSafetensors:
    def test_round_trip(self, put):
        state = {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.array(5, dtype=np.int64),
            "c": np.array([True, False]),
            "d": np.ones((0, 3), np.float16),
        }
        loaded = load_weights(put(safetensors.numpy.save(state), "w.safetensors"))
        assert set(loaded) == set(state)
        for name, value in state.items():
            np.testing.assert_array_equal(loaded[name], value)
            assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape)

    def test_bfloat16_is_widened(self, put):
        values = np.array([1.5, -2.0, 0.0], np.float32)
        content = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header = b'{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
        data = struct.pack("<Q", len(header)) + header + content
        np.testing.assert_array_equal(load_weights(put(data, "w.safetensors"))["a"], values)

    def test_unknown_type_is_named(self, put):
        header = b'{"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}}'
        data = struct.pack("<Q", len(header)) + header + b"\0\0\0"
        assert "F8_E4M3" in refusal(put(data, "w.safetensors"))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"abc",
            struct.pack("<Q", 2**60) + b"{}",
            struct.pack("<Q", 3) + b"{{{",
            struct.pack("<Q", 54) + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,9]}}',
        ],
    )
    def test_broken_files(self, put, data):
        assert "cut, or no safetensors file" in refusal(put(data, "w.safetensors"))


def test_missing_file_folder_and_unknown_kind(tmp_path, put):
    assert "no such file" in refusal(tmp_path / "none.pdparams")
    assert "a folder" in refusal(tmp_path)
    message = refusal(put(b"", "w.onnx"))
    assert ".pdparams, .safetensors" in message


class TestLoadInto:
    def test_every_tensor_is_set(self):
        source, target = small_net(), small_net()
        source.bn._mean.set_value(paddle.arange(4, dtype="float32"))
        missing = load_into(target, arrays(source), "w")
        assert missing == []
        for name, value in arrays(source).items():
            np.testing.assert_array_equal(arrays(target)[name], value)

    def test_floats_of_another_width_are_converted(self):
        net = small_net()
        state = {name: value.astype(np.float64) for name, value in arrays(net).items()}
        state["fc.bias"] += 0.5
        load_into(net, state, "w")
        assert net.fc.bias.dtype == paddle.float32
        np.testing.assert_array_equal(net.fc.bias.numpy(), [0.5] * 5)

    def test_integers_are_not_taken_for_floats(self):
        net = small_net()
        state = arrays(net)
        state["fc.weight"] = state["fc.weight"].astype(np.int8)
        with pytest.raises(EngineError, match="fc.weight is int8, in the network float32"):
            load_into(net, state, "w")

    def test_mismatches_are_listed_by_name_and_shape(self):
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

    def test_long_lists_are_cut_with_a_count(self):
        net = build_model("mobilenet_v1", 4)
        state = arrays(net)
        for name in [name for name in state if name.endswith("_mean")]:
            del state[name]
        with pytest.raises(EngineError, match=r"27 tensors do not match.* and 17 more"):
            load_into(net, state, "w")

    def test_other_number_of_classes_is_said_so(self):
        state = arrays(build_model("mobilenet_v1", 1000))
        with pytest.raises(EngineError) as caught:
            load_into(build_model("mobilenet_v1", 10), state, "w.pdparams")
        message = str(caught.value)
        assert "w.pdparams: weights for 1000 classes, but the network has 10" in message
        assert "--num_classes" in message

    def test_other_input_channels_are_not_taken_for_classes(self):
        state = arrays(build_model("mobilenet_v1", 10))
        with pytest.raises(EngineError) as caught:
            load_into(build_model("mobilenet_v1", 10, in_channels=1), state, "w")
        assert "classes" not in str(caught.value)
        assert "[32, 3, 3, 3], in the network [32, 1, 3, 3]" in str(caught.value)

    def test_checkpoint_of_another_model_is_said_so(self):
        state = arrays(build_model("resnet18", 10))
        with pytest.raises(
            EngineError, match="w: a checkpoint of another model: 2 of its 102 tensors"
        ):
            load_into(build_model("mobilenet_v1", 10), state, "w")

    def test_names_from_a_hostile_file_do_not_flood_or_steer_the_terminal(self):
        state = {**arrays(small_net()), "\x1b[2J\n": np.ones(1), "x" * 10**6: np.ones(1)}
        with pytest.raises(EngineError) as caught:
            load_into(small_net(), state, "w")
        message = str(caught.value)
        assert len(message) < 300 and message.isprintable()

    def test_empty_state_is_refused(self):
        with pytest.raises(EngineError):
            load_into(small_net(), {}, "w")

    def test_missing_names_can_be_allowed(self):
        net = small_net()
        state = arrays(net)
        del state["bn._mean"], state["bn._variance"]
        allowed = load_into(net, state, "w", allow_missing=lambda name: name.startswith("bn._"))
        assert allowed == ["bn._mean", "bn._variance"]
        del state["fc.bias"]
        with pytest.raises(EngineError, match="fc.bias"):
            load_into(net, state, "w", allow_missing=lambda name: name.startswith("bn._"))

    def test_float_checkpoint_goes_into_a_quantized_network(self):
        state = arrays(small_net())
        net = small_net()
        QAT().quantize(net)
        allowed = load_into(net, state, "w", allow_missing=lambda name: "_quant." in name)
        assert allowed and set(allowed).isdisjoint(state)
        np.testing.assert_array_equal(net.conv.weight.numpy(), state["conv.weight"])

    def test_file_to_network(self, tmp_path):
        source, target = build_model("lenet", 10), build_model("lenet", 10)
        path = tmp_path / "w.pdparams"
        paddle.save(source.state_dict(), str(path))
        load_into(target, load_weights(path), path)
        x = paddle.rand([2, 1, 28, 28])
        np.testing.assert_array_equal(source(x).numpy(), target(x).numpy())
