from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from data import DATASETS, DataError, InputConfig, build_dataset
from data.imagenet import DEFAULT_DIR

ROOT = Path(__file__).resolve().parents[2]


def test_the_three_data_sets_are_known() -> None:
    assert DATASETS == ("imagenet", "cifar10", "fashion_mnist")


def test_it_is_a_paddle_dataset() -> None:
    config = InputConfig(28, channels=1, mean=(0.5,), std=(0.5,))
    assert isinstance(build_dataset("fashion_mnist", "val", config), paddle.io.Dataset)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("imagnet", "train"), "data is 'imagnet', allowed: .*did you mean 'imagenet'"),
        (("imagenet", "test"), "split is 'test', allowed: train, val"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(arguments: tuple, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_dataset(*arguments, InputConfig())


@pytest.mark.parametrize(
    ("arguments", "words"), [({"seed": -1}, "seed is -1"), ({"num_classes": 0}, "num_classes is 0")]
)
def test_a_number_out_of_range_is_refused(arguments: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_dataset("fashion_mnist", "val", InputConfig(), **arguments)


def test_imagenet_is_expected_in_the_projects_own_folder() -> None:
    assert DEFAULT_DIR == ROOT / "data" / "ILSVRC2012"


def test_the_package_imports_none_of_the_others() -> None:
    code = (
        "import sys, data; "
        "print([m for m in sys.modules if m.split('.')[0] in ('quant', 'models', 'engine')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "[]", result.stderr
