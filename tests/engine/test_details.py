from __future__ import annotations

import csv
import json
import warnings

import cv2
import numpy as np
import pytest

from engine import confusion_plot
from engine.confusion import Confusion
from engine.details import details_json, details_lines, write_details
from engine.evaluation import Evaluation
from engine.metrics import Metrics


def answers(num_images, num_classes, right=0.7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    others = rng.integers(0, num_classes, num_images)
    choices = np.where(rng.random(num_images) < right, labels, others)
    ranks = np.where(choices == labels, 0, rng.integers(1, max(2, num_classes), num_images))
    return Evaluation(Metrics(None, 0.0, 0.0, num_images), choices, labels, ranks, num_classes, 1.0)


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def confusion():
    # names with what a CSV and a formula of matplotlib could stumble over
    return Confusion(answers(300, 4), 4, ("T-shirt, top", 'the "x"', "a_$b^", "靴子"))


def test_the_matrix_file_has_names_on_both_sides(confusion, tmp_path):
    write_details(tmp_path, confusion)
    rows = read(tmp_path / "confusion_matrix.csv")
    assert rows[0] == ["label", *confusion.names]
    assert [row[0] for row in rows[1:]] == list(confusion.names)
    assert [[int(x) for x in row[1:]] for row in rows[1:]] == confusion.matrix().tolist()


def test_the_class_file_has_one_line_per_class(confusion, tmp_path):
    write_details(tmp_path, confusion)
    rows = read(tmp_path / "per_class.csv")
    assert rows[0] == ["class", "name", "images", "chosen", "top1", "top5", "precision", "f1"]
    matrix = confusion.matrix()
    for number, row in enumerate(rows[1:]):
        assert row[:3] == [str(number), confusion.names[number], str(matrix[number].sum())]
        assert float(row[4]) == pytest.approx(
            matrix[number, number] / matrix[number].sum(), abs=1e-6
        )


def test_a_figure_that_does_not_exist_is_an_empty_cell(tmp_path):
    write_details(tmp_path, Confusion(answers(50, 3), 4))
    assert read(tmp_path / "per_class.csv")[4] == ["3", "3", "0", "0", "", "", "", ""]


def test_single_answers_stand_in_the_order_of_the_images(confusion, tmp_path):
    write_details(tmp_path, confusion)
    rows = read(tmp_path / "predictions.csv")
    found = answers(300, 4)
    assert rows[0] == ["image", "label", "choice", "rank_of_label"]
    assert np.array(rows[1:], int).T.tolist() == [
        list(range(300)),
        found.labels.tolist(),
        found.choices.tolist(),
        found.ranks.tolist(),
    ]


@pytest.mark.parametrize("classes", [1, 2, 10, 30, 41, 1000])
def test_the_image_is_drawn_for_any_number_of_classes(classes, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # axes that do not fit, glyphs that are missing
        files = write_details(tmp_path, Confusion(answers(3000, classes), classes))
    assert all(file.stat().st_size > 0 for file in files)
    image = cv2.imread(str(tmp_path / "confusion_matrix.png"))
    assert min(image.shape[:2]) > 400 and image.std() > 5


def test_a_name_that_no_font_can_draw_becomes_its_number(tmp_path):
    private_use = "\ue000"  # a character that is in no font
    confusion = Confusion(answers(50, 3), 3, ("a", private_use, "c"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        write_details(tmp_path, confusion)
    assert confusion_plot.drawable_names(confusion, ["DejaVu Sans"]) == ["a", "1", "c"]
    assert read(tmp_path / "confusion_matrix.csv")[0][2] == private_use


def test_the_image_of_a_perfect_network_of_many_classes_is_drawn(tmp_path):
    write_details(tmp_path, Confusion(answers(500, 100, right=1.0), 100))
    assert cv2.imread(str(tmp_path / "confusion_matrix.png")) is not None


def test_of_very_many_classes_the_pairs_replace_the_matrix(tmp_path):
    confusion = Confusion(answers(500, 5000), 5000)
    files = [path.name for path in write_details(tmp_path, confusion)]
    assert "confusion_matrix.csv" not in files
    rows = read(tmp_path / "confused_pairs.csv")[1:]
    assert sum(int(row[4]) for row in rows) == np.sum(confusion.labels != confusion.choices)


def test_json_holds_the_matrix_of_few_classes_only(confusion):
    found = json.loads(json.dumps(details_json(confusion)))
    assert found["confusion_matrix"] == confusion.matrix().tolist()
    assert found["per_class"][1]["class"] == 1 and found["per_class"][1]["name"] == 'the "x"'
    assert found["mean_class_top1"] == confusion.mean_class_top1()
    assert details_json(Confusion(answers(500, 101), 101))["confusion_matrix"] is None


def test_the_console_names_the_weakest_class_and_the_pair_confused_most_often():
    labels = np.array([0, 0, 0, 0, 1, 1])
    choices = np.array([1, 1, 1, 0, 1, 1])
    found = Evaluation(Metrics(None, 0.5, 1.0, 6), choices, labels, choices * 0, 2, 1.0)
    lines = "\n".join(details_lines(Confusion(found, 2, ("cat", "dog"))))
    assert "mean Top1 over the 2 classes that have images: 0.6250" in lines
    assert "lowest Top1: cat 0.2500 of 4 images; dog 1.0000 of 2 images" in lines
    assert "most often confused: cat taken for dog 3 times (75.0 %)" in lines
