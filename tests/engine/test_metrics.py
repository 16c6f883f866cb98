import numpy as np
import paddle
import pytest

from engine.metrics import NO_CHOICE, MetricSums, first_choice, rank_of_label


def numpy_rank(logits, label):
    """Position of the label in a stable sort by falling score."""
    order = np.argsort(-logits, kind="stable")
    return int(np.flatnonzero(order == label)[0])


def counted(batches, losses=None):
    sums = MetricSums()
    for i, (logits, labels) in enumerate(batches):
        loss = None if losses is None else paddle.to_tensor(losses[i], dtype="float32")
        sums.add(paddle.to_tensor(logits), paddle.to_tensor(labels), loss)
    return sums.result(with_loss=losses is not None)


def test_rank_equals_numpys_stable_sort_also_with_ties():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 12)).astype(np.float32)  # few values, so many ties
    labels = rng.integers(0, 12, 200)
    found = rank_of_label(paddle.to_tensor(logits), paddle.to_tensor(labels)).numpy()
    assert found.tolist() == [numpy_rank(row, label) for row, label in zip(logits, labels)]


def test_first_choice_is_the_lowest_of_equal_classes():
    logits = paddle.to_tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert first_choice(logits).tolist() == [1, 0]


@pytest.mark.parametrize("place", [0, 2])
def test_a_row_with_nan_has_no_first_choice(place):
    logits = np.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]], np.float32)
    logits[1, place] = np.nan
    assert first_choice(paddle.to_tensor(logits)).tolist() == [1, NO_CHOICE]


def test_infinite_scores_have_an_order():
    logits = paddle.to_tensor([[-np.inf, np.inf, 0.0]], dtype="float32")
    assert first_choice(logits).tolist() == [1]
    labels = paddle.to_tensor([0], dtype="int64")
    assert rank_of_label(logits, labels).tolist() == [2]


def test_a_small_last_batch_counts_by_its_images():
    right = (np.eye(10, dtype=np.float32)[[0, 0, 0]], np.zeros((3, 1), np.int64))
    wrong = (np.eye(10, dtype=np.float32)[[9]], np.zeros((1, 1), np.int64))
    found = counted([right, wrong], losses=[1.0, 3.0])
    assert found.top1 == 0.75  # the mean of the two batch means would be 0.5
    assert found.loss == pytest.approx(1.5)
    assert found.num_images == 4


def test_top5_counts_the_first_five():
    scores = np.arange(10, 0, -1, dtype=np.float32)[None]
    for label, expected in [(4, 1.0), (5, 0.0)]:
        assert counted([(scores, np.array([label]))]).top5 == expected


def test_top5_of_three_classes_is_top3():
    logits = np.array([[3.0, 2.0, 1.0]], np.float32)
    found = counted([(logits, np.array([2]))])
    assert (found.top1, found.top5) == (0.0, 1.0)


@pytest.mark.parametrize("classes", [3, 10])
def test_a_row_with_nan_counts_as_wrong(classes):
    logits = np.zeros((2, classes), np.float32)
    logits[0] = np.nan
    logits[1, 1] = np.nan
    found = counted([(logits, np.array([0, 0]))])
    assert (found.top1, found.top5) == (0.0, 0.0)


def test_no_batch_gives_no_image():
    assert counted([]).num_images == 0
