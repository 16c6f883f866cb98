from __future__ import annotations

import collections

import numpy as np
import pytest

from engine.confusion import Confusion
from engine.evaluation import Evaluation
from engine.metrics import NO_CHOICE, Metrics


def evaluation_of(logits, labels):
    """What `evaluate` returns, with choices and ranks from a stable sort of NumPy."""
    order = np.argsort(-logits, axis=1, kind="stable")
    ranks = np.argmax(order == labels[:, None], axis=1)
    metrics = Metrics(None, 0.0, 0.0, len(labels))
    return Evaluation(metrics, order[:, 0], labels, ranks, logits.shape[1], 1.0)


@pytest.fixture
def random_answers():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 5, (400, 7)).astype(np.float32)  # few values, so many ties
    labels = rng.integers(0, 6, 400)  # class 6 has no image
    return evaluation_of(logits, labels)


def test_the_matrix_counts_every_image_once(random_answers):
    expected = np.zeros((7, 7), int)
    for label, choice in zip(random_answers.labels, random_answers.choices):
        expected[label, choice] += 1
    found = Confusion(random_answers, 7).matrix()
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == 400


def test_the_figures_of_a_class_equal_those_of_the_matrix(random_answers):
    confusion = Confusion(random_answers, 7)
    matrix = confusion.matrix()
    for row in confusion.per_class()[:6]:
        k = row.index
        of_class = random_answers.labels == k
        assert row.images == of_class.sum()
        assert row.chosen == matrix[:, k].sum()
        assert row.top1 == pytest.approx(matrix[k, k] / matrix[k].sum())
        assert row.top5 == pytest.approx((random_answers.ranks[of_class] < 5).mean())
        assert row.precision == pytest.approx(matrix[k, k] / matrix[:, k].sum())
        harmonic = 2 / (1 / row.top1 + 1 / row.precision)
        assert row.f1 == pytest.approx(harmonic)
    top1 = [matrix[k, k] / matrix[k].sum() for k in range(6)]
    assert confusion.mean_class_top1() == pytest.approx(np.mean(top1))


def test_a_class_without_images_has_no_recall(random_answers):
    row = Confusion(random_answers, 7).per_class()[6]
    assert (row.images, row.top1, row.top5) == (0, None, None)
    assert row.chosen > 0 and row.precision == 0.0


def test_a_class_that_is_never_chosen_has_no_precision():
    logits = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    rows = Confusion(evaluation_of(logits, np.array([0, 1])), 2).per_class()
    assert (rows[1].chosen, rows[1].precision, rows[1].top1, rows[1].f1) == (0, None, 0.0, 0.0)


def test_pairs_come_by_their_number_then_by_class(random_answers):
    counted = collections.Counter(
        (int(a), int(b)) for a, b in zip(random_answers.labels, random_answers.choices) if a != b
    )
    expected = sorted(((a, b, n) for (a, b), n in counted.items()), key=lambda x: (-x[2], x[:2]))
    pairs = Confusion(random_answers, 7).pairs()
    assert [(pair.label, pair.choice, pair.images) for pair in pairs] == expected
    of_class = np.bincount(random_answers.labels)
    assert pairs[0].share == pytest.approx(pairs[0].images / of_class[pairs[0].label])


def test_top5_of_three_classes_is_top3():
    logits = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert Confusion(evaluation_of(logits, np.array([2])), 3).per_class()[2].top5 == 1.0


def test_an_image_without_a_choice_is_wrong_and_in_no_column():
    choices, labels = np.array([0, NO_CHOICE]), np.array([0, 0])
    ranks = np.array([0, 2])  # as `rank_of_label` gives it: the number of classes
    found = Evaluation(Metrics(None, 0.5, 0.5, 2), choices, labels, ranks, 2, 1.0)
    confusion = Confusion(found, 2)
    assert confusion.without_choice == 1
    assert confusion.matrix().tolist() == [[1, 0], [0, 0]]
    row = confusion.per_class()[0]
    assert (row.images, row.top1, row.top5, row.precision) == (2, 0.5, 0.5, 1.0)
    assert confusion.pairs() == []


def test_a_million_classes_need_no_matrix():
    labels, choices = np.array([0, 5, 999_999]), np.array([7, 5, 3])
    ranks = np.array([1, 0, 9])
    found = Evaluation(Metrics(None, 0.3, 0.7, 3), choices, labels, ranks, 1_000_000, 1.0)
    pairs = Confusion(found, 1_000_000).pairs()
    assert [(pair.label, pair.choice) for pair in pairs] == [(0, 7), (999_999, 3)]


def test_names_have_to_be_as_many_as_classes(random_answers):
    with pytest.raises(ValueError, match="2 names for 7 classes"):
        Confusion(random_answers, 7, ("a", "b"))
