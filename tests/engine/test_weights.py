from __future__ import annotations

import os
import pickle
import random
import struct
from collections import OrderedDict

import numpy as np
import paddle
import pytest
import safetensors.numpy
from paddle import nn

from engine import pickles
from engine.errors import EngineError
from engine.weights import SUFFIXES, load_weights
from models import build_model, pretrained


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

    def test_memory_stays_in_proportion_to_the_file(self, put, peak_memory):
        text = "x" * 1_000_000
        encode = b"c_codecs\nencode\n"
        body = b"X" + struct.pack("<I", len(text)) + text.encode() + b"q\x01"
        latin = b"X\x06\x00\x00\x00latin1q\x02"
        call = encode + b"h\x01h\x02\x86R"
        bomb = b"\x80\x02]" + b"(" + body + latin + call * 2000 + b"e."
        path = put(bomb)
        with peak_memory() as peak:
            message = refusal(path)
        assert "more array content than the file has bytes" in message
        assert peak.size < 20 * len(bomb)

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
    message = refusal(put(b"", "w.onnx"))
    assert ".pdparams, .safetensors, .tar or a folder" in message


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors", ".tar"])
def test_ending_of_each_kind_may_be_left_out(put, old_format, tmp_path, suffix):
    state = {"a": np.ones(3, np.float32)}
    if suffix == ".tar":
        old_format.tar(tmp_path / "w.tar", state)
    else:
        write = pickle.dumps if suffix == ".pdparams" else safetensors.numpy.save
        put(write(state), f"w{suffix}")
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["a"], state["a"])


def test_file_without_an_ending_is_not_guessed(put):
    assert "unknown kind" in refusal(put(pickle.dumps({"a": np.ones(3)}), "w"))


def test_published_weights_are_looked_for_in_every_kind_that_is_read():
    assert set(pretrained.SUFFIXES) == {"", *SUFFIXES}
