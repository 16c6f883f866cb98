import numpy as np
import paddle
from paddle import nn
from paddle.regularizer import L2Decay

from engine.optimizer import build_optimizer
from engine.schedule import build_schedule


def constant(lr):
    return build_schedule("piecewise_decay", lr, epoch_steps=1000, num_epochs=1, step_epochs=[])


def one_weight(value, **attr):
    net = nn.Linear(1, 1, weight_attr=paddle.ParamAttr(**attr), bias_attr=False)
    net.weight.set_value(np.full((1, 1), value, np.float32))
    return net


def train(net, steps, momentum, decay):
    optimizer = build_optimizer(net, constant(0.1), momentum, decay)
    for _ in range(steps):
        (net.weight * 3.0).sum().backward()  # the gradient is 3
        optimizer.step()
        optimizer.clear_grad()
    return net.weight.item()


def numpy_sgd(value, steps, momentum, decay, scale=1.0):
    velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 3.0 + decay * value
        value -= 0.1 * scale * velocity
    return value


def test_steps_equal_momentum_sgd_with_l2_decay():
    found = train(one_weight(2.0), 4, momentum=0.9, decay=0.01)
    np.testing.assert_allclose(found, numpy_sgd(2.0, 4, 0.9, 0.01), rtol=1e-5)


def test_a_parameter_keeps_its_own_learning_rate_and_regularizer():
    net = one_weight(2.0, learning_rate=10.0, regularizer=L2Decay(0.5))
    found = train(net, 2, momentum=0.0, decay=0.01)
    np.testing.assert_allclose(found, numpy_sgd(2.0, 2, 0.0, 0.5, scale=10.0), rtol=1e-5)


def test_a_frozen_parameter_is_left_out():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight.stop_gradient = True
    before = net[0].weight.numpy()
    optimizer = build_optimizer(net, constant(0.1), 0.9, 0.1)
    net(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(net[0].weight.numpy(), before)
