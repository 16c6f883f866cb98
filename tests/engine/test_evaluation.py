import numpy as np
import paddle
import pytest
from paddle import nn

from engine.evaluation import agreement, evaluate, evaluate_network


def batches_of(sizes, classes=4):
    rng = np.random.default_rng(0)
    return [
        [
            paddle.to_tensor(rng.normal(size=(n, classes)).astype(np.float32)),
            paddle.to_tensor(rng.integers(0, classes, (n, 1))),
        ]
        for n in sizes
    ]


def test_figures_equal_numpys_over_batches_of_different_sizes():
    batches = batches_of([5, 5, 1])
    found = evaluate(lambda images: images * 2.0, batches, with_loss=True)
    logits = np.concatenate([x.numpy() for x, _ in batches]).astype(np.float64) * 2
    labels = np.concatenate([y.numpy() for _, y in batches])[:, 0]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found.metrics.top1 == pytest.approx((logits.argmax(1) == labels).mean())
    assert found.metrics.loss == pytest.approx(-log_p[np.arange(11), labels].mean(), rel=1e-5)
    assert found.choices.tolist() == logits.argmax(1).tolist()
    assert found.labels.tolist() == labels.tolist()
    order = np.argsort(-logits, axis=1)
    assert found.ranks.tolist() == [int(np.flatnonzero(o == k)[0]) for o, k in zip(order, labels)]
    assert found.num_scores == 4
    assert found.metrics.num_images == 11
    assert found.images_per_second > 0


def test_evaluation_runs_in_evaluation_mode_and_puts_each_layer_back():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.BatchNorm1D(4))
    net.train()
    net[2].eval()  # a layer that the user keeps frozen
    before = net[2]._mean.numpy()
    runs = [evaluate_network(net, batches_of([16])).metrics.loss for _ in range(2)]
    assert runs[0] == runs[1]
    np.testing.assert_array_equal(net[2]._mean.numpy(), before)
    assert [layer.training for layer in net.sublayers(include_self=True)] == [
        True,
        True,
        True,
        False,
    ]


def test_agreement_is_the_share_of_equal_choices():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75
