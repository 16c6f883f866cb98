from __future__ import annotations

import copy
import pickle

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import QAT, ConfigError, ExportError, QuantError
from quant.layers import QuantizedConv2D, QuantizedLayer, QuantizedLinear


def quantized_names(net) -> list[str]:
    return [
        name
        for name, layer in net.named_sublayers(include_self=True)
        if isinstance(layer, QuantizedLayer)
    ]


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )


def image(n: int = 2, size: int = 4) -> paddle.Tensor:
    x = np.random.default_rng(0).normal(size=(n, 3, size, size))
    return paddle.to_tensor(x.astype(np.float32))


def test_convolutions_and_linear_layers_are_swapped_in_place_and_nothing_else():
    net = small()
    conv, norm, fc = net[0], net[1], net[4]
    assert QAT().quantize(net) is net
    assert net[0] is conv and net[4] is fc and net[1] is norm
    assert isinstance(conv, QuantizedConv2D) and isinstance(fc, QuantizedLinear)
    assert isinstance(conv, nn.Conv2D) and isinstance(fc, nn.Linear)
    assert type(norm) is nn.BatchNorm2D


def test_layers_in_every_container_are_found():
    class Nested(nn.Layer):
        def __init__(self):
            super().__init__()
            self.listed = nn.LayerList([nn.Conv2D(3, 3, 1), nn.Sequential(nn.Linear(2, 2))])
            self.named = nn.LayerDict({"a": nn.Linear(2, 2), "b": nn.LayerList([nn.Linear(2, 2)])})
            self.deep = nn.Sequential(nn.Sequential(("inner", nn.Conv2D(3, 3, 1))))

        def forward(self, x):
            return x

    net = QAT().quantize(Nested())
    wanted = ["listed.0", "listed.1.0", "named.a", "named.b.0", "deep.0.inner"]
    assert quantized_names(net) == wanted


@pytest.mark.parametrize("layer", [nn.Conv2D(3, 4, 3), nn.Linear(4, 2)])
def test_the_network_itself_may_be_the_layer(layer):
    assert QAT().quantize(layer) is layer
    assert isinstance(layer, QuantizedLayer)


def test_a_shared_layer_is_swapped_once_and_observes_both_uses():
    class Shared(nn.Layer):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x):
            return self.second(self.first(x) * 100)

    net = QAT({"activation_quantize_type": "abs_max"}).quantize(Shared())
    assert net.first is net.second
    assert len(quantized_names(net)) == 1
    net(paddle.ones([2, 4]))
    inner = nn.Linear.forward(net.first, paddle.ones([2, 4]))
    kept = net.first._act_quant.scale_numpy()
    np.testing.assert_allclose(kept, [np.abs(inner.numpy()).max() * 100], rtol=0.05)


def test_a_subclass_that_inherits_forward_is_quantized_and_keeps_its_methods():
    class Named(nn.Conv2D):
        def area(self):
            return self._kernel_size[0] * self._kernel_size[1]

    conv = Named(3, 4, 3)
    reference = copy.deepcopy(conv)
    QAT().quantize(conv)
    assert isinstance(conv, Named) and isinstance(conv, QuantizedLayer)
    assert conv.area() == 9
    x = image()
    difference = (conv(x) - reference(x)).abs().max().item()
    assert 0 < difference < 0.1


def test_a_subclass_with_a_forward_of_its_own_is_left_alone():
    class Standardized(nn.Conv2D):
        def forward(self, x):
            weight = self.weight - self.weight.mean()
            return F.conv2d(x, weight, self.bias)

    net = nn.Sequential(Standardized(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    QAT().quantize(net)
    assert type(net[0]) is Standardized
    assert quantized_names(net) == ["2"]


def test_relatives_of_the_two_layers_are_left_alone():
    others = [nn.Conv1D(3, 3, 1), nn.Conv3D(3, 3, 1), nn.Conv2DTranspose(3, 3, 1)]
    others += [nn.Embedding(3, 3), nn.Bilinear(3, 3, 3), nn.LSTM(3, 3)]
    types = [type(layer) for layer in others]
    net = QAT().quantize(nn.Sequential(*others, nn.Linear(3, 3)))
    assert [type(layer) for layer in net][:-1] == types


def test_the_attribute_skip_quant_keeps_a_layer_float():
    net = small()
    net[0].skip_quant = True
    QAT().quantize(net)
    assert quantized_names(net) == ["4"]


@pytest.mark.parametrize("pattern, left", [("0", ["4"]), ("[0-3]", ["4"]), ("4", ["0"])])
def test_the_skip_list_takes_names_and_patterns(pattern, left):
    net = QAT({"skip_quant": [pattern]}).quantize(small())
    assert quantized_names(net) == left


def test_a_name_in_the_skip_list_that_matches_nothing_is_an_error():
    net = small()
    with pytest.raises(ConfigError, match="'fc'"):
        QAT({"skip_quant": ["0", "fc"]}).quantize(net)
    assert quantized_names(net) == []


@pytest.mark.parametrize("kind, left", [("Conv2D", ["0"]), ("Linear", ["4"])])
def test_only_the_listed_types_are_swapped(kind, left):
    assert quantized_names(QAT({"quantizable_layer_type": [kind]}).quantize(small())) == left


def test_nothing_to_quantize_is_an_error():
    with pytest.raises(ConfigError, match="no layer to quantize"):
        QAT().quantize(nn.Sequential(nn.ReLU()))
    with pytest.raises(QuantError, match="function"):
        QAT().quantize(lambda x: x)


def test_keys_of_weights_and_biases_stay_and_checkpoints_load_both_ways():
    net, other = small(), small()
    keys, checkpoint = set(net.state_dict()), copy.deepcopy(other.state_dict())
    QAT({"activation_preprocess_type": "PACT"}).quantize(net)
    added = set(net.state_dict()) - keys
    assert keys < set(net.state_dict())
    assert added and all("_act_quant." in key or "_weight_quant." in key for key in added)

    missing, unexpected = net.set_state_dict(checkpoint)
    assert set(missing) == added and not unexpected
    np.testing.assert_array_equal(net[0].weight, other[0].weight)

    back = small()
    missing, unexpected = back.set_state_dict(net.state_dict())
    assert not missing and set(unexpected) == added
    np.testing.assert_array_equal(back[4].weight, other[4].weight)
    back.eval()
    other.eval()
    np.testing.assert_array_equal(back(image()), other(image()))


def test_a_quantized_checkpoint_gives_the_same_network(tmp_path):
    config = {"activation_preprocess_type": "PACT", "weight_preprocess_type": "PACT"}
    first, second = QAT(config).quantize(small()), QAT(config).quantize(small())
    first(image())
    paddle.save(first.state_dict(), str(tmp_path / "net.pdparams"))
    missing, unexpected = second.set_state_dict(paddle.load(str(tmp_path / "net.pdparams")))
    assert not missing and not unexpected
    first.eval()
    second.eval()
    np.testing.assert_array_equal(first(image()), second(image()))


def test_parameters_keep_their_identity_and_optimizer_settings():
    attr = paddle.ParamAttr(
        name="special_w", learning_rate=0.5, regularizer=paddle.regularizer.L2Decay(0.25)
    )
    conv = nn.Conv2D(3, 4, 3, weight_attr=attr)
    conv.bias.stop_gradient = True
    weight = conv.weight
    regularizer = weight.regularizer
    QAT().quantize(conv)
    assert conv.weight is weight and weight.name == "special_w"
    assert weight.optimize_attr["learning_rate"] == 0.5
    assert weight.regularizer is regularizer
    assert conv.bias.stop_gradient


def test_an_optimizer_made_before_quantize_still_trains_the_weights():
    net = small()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    QAT().quantize(net)
    before = net[0].weight.numpy().copy()
    net(image()).sum().backward()
    optimizer.step()
    assert np.abs(net[0].weight.numpy() - before).max() > 0


def test_hooks_stay():
    net = small()
    seen = []
    net[0].register_forward_pre_hook(lambda layer, args: seen.append("before"))
    net[0].register_forward_post_hook(lambda layer, args, output: output * 0)
    QAT().quantize(net)
    net.eval()
    net[0]._act_quant.train()
    assert (net[0](image()).numpy() == 0).all()
    assert seen == ["before"]


def test_inplace_false_leaves_the_original_alone():
    net = small()
    net.eval()
    before, keys = net(image()).numpy(), list(net.state_dict())
    copied = QAT().quantize(net, inplace=False)
    assert copied is not net
    assert quantized_names(net) == [] and quantized_names(copied) == ["0", "4"]
    copied.train()
    copied(image())
    copied[0].weight.set_value(copied[0].weight * 2)
    assert list(net.state_dict()) == keys
    np.testing.assert_array_equal(net(image()), before)


def test_quantizing_twice_changes_nothing():
    net = QAT().quantize(small())
    net(image())
    quantizer, keys = net[0]._act_quant, list(net.state_dict())
    net.eval()
    before = net(image()).numpy()
    QAT({"weight_bits": 4}).quantize(net)
    assert net[0]._act_quant is quantizer and list(net.state_dict()) == keys
    np.testing.assert_array_equal(net(image()), before)


def test_the_mode_of_the_network_is_kept():
    net = small()
    net.eval()
    QAT().quantize(net)
    assert not any(layer.training for layer in net.sublayers())


def test_a_deep_copy_is_independent():
    net = QAT({"activation_preprocess_type": "PACT"}).quantize(small())
    net(image())
    net.eval()
    twin = copy.deepcopy(net)
    np.testing.assert_array_equal(twin(image()), net(image()))
    before = net(image()).numpy()
    twin.train()
    twin(image() * 50)
    np.testing.assert_array_equal(net(image()), before)
    assert twin[0]._act_quant.scale_numpy() > net[0]._act_quant.scale_numpy()


def test_the_state_can_be_pickled():
    net = QAT({"activation_preprocess_type": "PACT"}).quantize(small())
    net(image())
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    other = QAT({"activation_preprocess_type": "PACT"}).quantize(small())
    missing, unexpected = other.set_state_dict(pickle.loads(pickle.dumps(state)))
    assert not missing and not unexpected
    net.eval()
    other.eval()
    np.testing.assert_array_equal(other(image()), net(image()))


class Doubler(nn.Layer):
    """A preprocess step that leaves a trace in the values."""

    def forward(self, x):
        return x * 2


class Coarse(nn.Layer):
    """A quantizer with a fixed scale of 4 and 4 bits."""

    bits = 4

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", paddle.full([1], 4.0))

    def forward(self, x):
        codes = paddle.clip(paddle.round(x / 4 * 7), -7, 7)
        return x + (codes * 4 / 7 - x).detach()


class NoScale(nn.Layer):
    def forward(self, x):
        return x


def test_preprocess_classes_of_the_user_run_before_the_quantizers():
    layer = nn.Linear(4, 3, bias_attr=False)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    expected = (2 * x) @ (2 * layer.weight.numpy())
    QAT(weight_preprocess=Doubler, act_preprocess=Doubler).quantize(layer)
    difference = np.abs(layer(paddle.to_tensor(x)).numpy() - expected).max()
    assert 0 < difference < 0.03 * np.abs(expected).max()


def test_quantizer_classes_of_the_user_replace_the_built_in_ones(tmp_path):
    layer = nn.Linear(4, 3, bias_attr=False)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32) * 3
    w = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    layer.weight.set_value(w)
    coarse = [np.clip(np.rint(v / 4 * 7), -7, 7) * 4 / 7 for v in (x, w)]
    quanter = QAT(weight_quantize=Coarse, act_quantize=Coarse)
    net = quanter.quantize(nn.Sequential(layer))
    net.eval()
    np.testing.assert_allclose(
        net(paddle.to_tensor(x)), coarse[0] @ coarse[1], rtol=1e-4, atol=1e-5
    )
    spec = [paddle.static.InputSpec([None, 4], "float32")]
    receipt = quanter.save_quantized_model(net, str(tmp_path / "own"), spec)
    assert len(receipt.int8_weights) == 1
    assert quanter.verify(net, str(tmp_path / "own"), [x]).passed


def test_a_quantizer_of_the_user_without_a_scale_cannot_be_exported(tmp_path):
    spec = [paddle.static.InputSpec([None, 4], "float32")]
    for options in ({"act_quantize": NoScale}, {"weight_quantize": NoScale}):
        quanter = QAT(**options)
        net = quanter.quantize(nn.Sequential(nn.Linear(4, 3)))
        net(paddle.to_tensor(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)))
        with pytest.raises(ExportError) as caught:
            quanter.save_quantized_model(net, str(tmp_path / "own"), spec)
        assert "scale" in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_something_that_is_no_class_is_refused():
    with pytest.raises(ConfigError, match="act_quantize=3"):
        QAT(act_quantize=3)
