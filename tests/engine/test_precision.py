import json
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from engine.errors import EngineError
from engine.optimizer import build_optimizer
from engine.precision import (
    FIRST_LOSS_SCALE,
    STEPS_BEFORE_GROWTH,
    BFloat16,
    Float16,
    Precision,
    build_precision,
    usable_dtype,
)
from engine.schedule import build_schedule

LARGEST_FLOAT32 = 3.4e38


@pytest.fixture
def float16(monkeypatch):
    """Float16 with Paddle's own loss scaling at work; on a CPU Paddle switches it off."""
    from paddle.amp import grad_scaler

    def make():
        with monkeypatch.context() as patch:
            place = SimpleNamespace(is_gpu_place=lambda: True)
            tracer = SimpleNamespace(_expected_place=place)
            patch.setattr(grad_scaler, "_dygraph_tracer", lambda: tracer)
            precision = Float16()
        assert precision._scaler.is_enable()
        return precision

    return make


def linear():
    paddle.seed(0)
    net = nn.Linear(3, 2)
    schedule = build_schedule("piecewise_decay", 0.1, 10, 1, [])
    return net, build_optimizer(net, schedule, 0.9, 0.0)


def one_step(net, optimizer, precision, factor=1.0):
    loss = net(paddle.to_tensor([[0.5, -1.0, 2.0]])).square().sum() * factor
    precision.backward(loss)
    precision.step(optimizer)
    optimizer.clear_grad()


def weights(net):
    return net.weight.numpy().copy()


def test_scaling_the_loss_leaves_the_step_as_it_is(float16):
    (plain, plain_optimizer), (scaled, scaled_optimizer) = linear(), linear()
    for _ in range(3):
        one_step(plain, plain_optimizer, Precision())
        one_step(scaled, scaled_optimizer, float16())
    np.testing.assert_allclose(weights(scaled), weights(plain), rtol=1e-6)


def test_a_gradient_that_overflows_skips_the_step_and_halves_the_scale(float16, capfd):
    net, optimizer = linear()
    precision = float16()
    one_step(net, optimizer, precision)
    before = weights(net)
    one_step(net, optimizer, precision, factor=LARGEST_FLOAT32 / 100)
    np.testing.assert_array_equal(weights(net), before)
    assert (precision.scale, precision.skipped_steps) == (FIRST_LOSS_SCALE / 2, 1)
    one_step(net, optimizer, precision)
    assert not np.array_equal(weights(net), before) and precision.skipped_steps == 1
    assert precision.note() == ", loss scale 32768, 1 steps skipped"
    assert capfd.readouterr().out == ""  # Paddle's own rule prints from every process


def test_the_scale_doubles_after_many_good_steps_in_a_row(float16):
    net, optimizer = linear()
    precision = float16()
    precision.good_steps = STEPS_BEFORE_GROWTH - 2
    one_step(net, optimizer, precision)
    assert precision.scale == FIRST_LOSS_SCALE
    one_step(net, optimizer, precision)
    assert (precision.scale, precision.good_steps) == (2 * FIRST_LOSS_SCALE, 0)
    before = weights(net)
    one_step(net, optimizer, precision, factor=0.0)
    assert not np.array_equal(weights(net), before)  # momentum
    assert precision._scaler.scale(paddle.ones([])).item() == 2 * FIRST_LOSS_SCALE


def test_gradients_that_are_never_finite_end_the_run(float16):
    net, optimizer = linear()
    precision = float16()
    with pytest.raises(EngineError, match=r"not finite in float16 .* --amp_dtype=bfloat16"):
        for _ in range(20):
            one_step(net, optimizer, precision, factor=float("inf"))
    assert precision.skipped_steps == 17  # 2^16 to 1


def test_a_resumed_run_has_the_scale_and_the_counts(float16):
    net, optimizer = linear()
    first = float16()
    one_step(net, optimizer, first)
    one_step(net, optimizer, first, factor=LARGEST_FLOAT32 / 100)
    one_step(net, optimizer, first)
    second = float16()
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert first.state() == {"loss_scale": 32768.0, "good_steps": 1, "skipped_steps": 1}
    assert second._scaler.scale(paddle.ones([])).item() == 32768.0


def test_an_empty_state_leaves_the_scale_as_it_is(float16):
    precision = float16()
    before = precision.state()
    precision.restore({})
    assert precision.state() == before


@pytest.mark.parametrize("wish,dtype", [("auto", "bfloat16"), ("float16", "float16")])
def test_where_paddle_has_no_mixed_precision_one_line_says_so(wish, dtype):
    """Paddle 2.6 and 3.3 have none on the CPU; were that to change, this would tell."""
    found, warning = usable_dtype(True, wish)
    assert found is None and "\n" not in warning
    assert dtype in warning and "--amp trains in float32" in warning
    assert usable_dtype(False, wish) == (None, None)


def test_automatic_choice_is_float16_on_a_gpu(monkeypatch):
    from engine import precision

    monkeypatch.setattr(precision, "_takes_effect", lambda dtype: True)
    assert usable_dtype(True, "auto") == ("bfloat16", None)
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    assert usable_dtype(True, "auto") == ("float16", None)
    assert usable_dtype(True, "bfloat16") == ("bfloat16", None)


def test_each_type_has_its_arithmetic():
    assert type(build_precision(None)) is Precision
    assert type(build_precision("bfloat16")) is BFloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_autocast_asks_paddle_for_level_o1_in_that_type(dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **words: asked.append(words))
    build_precision(dtype).autocast()
    assert asked == [{"level": "O1", "dtype": dtype}]
