from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, ExportError, Predictor, save_float_model


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1D(6), nn.Dropout(0.5), nn.Linear(6, 2))


def array(rows: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)


SPEC = [paddle.static.InputSpec([None, 4], "float32")]


def test_a_float_network_is_stored_as_it_is(tmp_path):
    net = small()
    net.train()
    save_float_model(net, str(tmp_path / "net"), SPEC)
    assert net.training and net[2].training
    net.eval()
    found = Predictor(str(tmp_path / "net"))(array())[0]
    np.testing.assert_allclose(found, net(paddle.to_tensor(array())), rtol=1e-4, atol=1e-5)


def test_an_example_tensor_will_do_for_an_input_spec(tmp_path):
    net = small()
    net.eval()
    save_float_model(net, str(tmp_path / "net"), [paddle.to_tensor(array())])
    found = Predictor(str(tmp_path / "net"))(array())[0]
    np.testing.assert_allclose(found, net(paddle.to_tensor(array())), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [None, [], "x", [[None, 4]], [None], {"x": 1}])
def test_a_bad_input_spec_is_named(spec, tmp_path):
    with pytest.raises(ExportError, match="input_spec.*allowed is"):
        save_float_model(small(), str(tmp_path / "net"), spec)
    assert list(tmp_path.iterdir()) == []


class Untraceable(nn.Layer):
    """Looks up a value in a dictionary, which has no meaning in a graph."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x) * {True: 1.0, False: 2.0}[bool(x.sum() > 0)]


class NoTensor(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        self.fc(x)
        return 3


@pytest.mark.parametrize("cls", [Untraceable, NoTensor])
def test_a_network_that_cannot_be_traced_is_an_error_of_one_line(cls, tmp_path):
    quanter = QAT()
    net = quanter.quantize(cls())
    net.train()
    before = net(paddle.to_tensor(array()))
    with pytest.raises(ExportError) as caught:
        quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    assert cls.__name__ in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    # The network is as it was.
    assert net.training
    after = net(paddle.to_tensor(array()))
    assert type(after) is type(before)


def test_the_wrong_number_of_inputs_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ExportError) as caught:
        save_float_model(small(), str(tmp_path / "net"), SPEC * 2)
    assert "\n" not in str(caught.value)


def test_tracing_leaves_no_trace(tmp_path):
    net = small()
    forwards = [layer.__dict__.get("forward") for layer in net.sublayers(include_self=True)]
    keys = [set(layer.__dict__) for layer in net.sublayers(include_self=True)]
    save_float_model(net, str(tmp_path / "net"), SPEC)
    assert [layer.__dict__.get("forward") for layer in net.sublayers(include_self=True)] == forwards
    assert [set(layer.__dict__) for layer in net.sublayers(include_self=True)] == keys
    assert paddle.in_dynamic_mode()


def test_what_only_training_does_is_left_out(tmp_path):
    class Noisy(nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            y = self.fc(x)
            if self.training:
                y = y + 100.0
            return y

    net = Noisy()
    net.train()
    save_float_model(net, str(tmp_path / "net"), SPEC)
    expected = array() @ net.fc.weight.numpy() + net.fc.bias.numpy()
    found = Predictor(str(tmp_path / "net"))(array())[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
