from contextlib import nullcontext

import numpy as np
import paddle
import pytest

from engine.distillation import Distillation, soft_label_loss
from engine.loss import label_criterion


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numpy_soft_loss(student, teacher, t):
    p, q = softmax(teacher / t), softmax(student / t)
    return t * t * (p * np.log(p / q)).sum(axis=1).mean()


@pytest.fixture
def logits():
    generator = np.random.default_rng(1)
    return generator.normal(size=(2, 5, 7)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_soft_loss_is_the_divergence_times_the_square_of_the_temperature(logits, temperature):
    student, teacher = (paddle.to_tensor(x.astype(np.float32)) for x in logits)
    found = soft_label_loss(student, teacher, temperature).item()
    assert found == pytest.approx(numpy_soft_loss(*logits, temperature), rel=1e-5)
    assert soft_label_loss(teacher, teacher, temperature).item() == pytest.approx(0.0, abs=1e-6)


def test_the_gradient_is_that_of_hinton(logits):
    """d/dz = T * (softmax(z / T) - softmax(teacher / T)) / N."""
    student, teacher = (paddle.to_tensor(x.astype(np.float32)) for x in logits)
    student.stop_gradient = teacher.stop_gradient = False
    soft_label_loss(student, teacher, 3.0).backward()
    expected = 3.0 * (softmax(logits[0] / 3) - softmax(logits[1] / 3)) / 5
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-6)
    assert teacher.grad is None


def test_a_teacher_with_large_and_equal_outputs_gives_no_nan():
    student = paddle.to_tensor([[0.0, 1e4]])
    assert np.isfinite(soft_label_loss(student, paddle.to_tensor([[1e4, 0.0]]), 1.0).item())


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_mixes_labels_and_teacher_by_the_weight(weight, dropout_net):
    teacher, student = dropout_net(seed=1), dropout_net(seed=2)
    teacher.train()
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(6, 1, 28, 28)), "float32")
    labels = paddle.to_tensor([[0], [3], [9], [1], [1], [2]])
    student.eval()
    found = student(images)
    before = {name: value.numpy() for name, value in teacher.state_dict().items()}
    criterion = Distillation(teacher, label_criterion(0.1), weight, 2.0, nullcontext)
    loss = criterion(images, found, labels)

    teacher.eval()
    soft = numpy_soft_loss(found.numpy().astype(float), teacher(images).numpy().astype(float), 2.0)
    target = np.eye(10)[labels.numpy().ravel()] * 0.9 + 0.01
    hard = -(target * np.log(softmax(found.numpy().astype(float)))).sum(axis=1).mean()
    assert loss.item() == pytest.approx((1 - weight) * hard + weight * soft, rel=1e-5)

    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    for name, value in teacher.state_dict().items():  # no statistics were taken
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
