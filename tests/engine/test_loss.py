import numpy as np
import paddle
import pytest

from engine.loss import classification_loss


def numpy_loss(logits, labels, eps):
    """Cross entropy against the target vectors 1 - eps + eps / K and eps / K."""
    classes = logits.shape[1]
    target = np.full(logits.shape, eps / classes)
    target[np.arange(len(labels)), labels] += 1 - eps
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    log_p = np.log(exp / exp.sum(axis=1, keepdims=True))
    return float(-(target * log_p).sum(axis=1).mean())


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_loss_equals_the_formula(eps, shape):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 7)) * 3
    labels = rng.integers(0, 7, 5)
    found = classification_loss(
        paddle.to_tensor(logits), paddle.to_tensor(labels.reshape(shape)), eps
    )
    assert found.item() == pytest.approx(numpy_loss(logits, labels, eps), rel=1e-9)


def test_gradient_is_probability_minus_target():
    logits = paddle.to_tensor(np.array([[1.0, 2.0, 0.5]]), stop_gradient=False)
    classification_loss(logits, paddle.to_tensor([1]), 0.3).backward()
    exp = np.exp([1.0, 2.0, 0.5])
    np.testing.assert_allclose(logits.grad.numpy()[0], exp / exp.sum() - [0.1, 0.8, 0.1], rtol=1e-9)
