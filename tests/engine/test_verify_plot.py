from __future__ import annotations

import cv2
import numpy as np
import pytest

from engine.verify_plot import plot_layers
from quant import LayerRow, Verdict
from quant.layerwise import LayerError


def verdict(count: int, departs: bool = False) -> Verdict:
    rows = []
    for i in range(count):
        wrong = departs and i == count // 2
        alone = LayerError(60.0, 1e-8, 0.1 if wrong else 1e-7, 1.0)
        entering = LayerError(float("inf"), 0.0 if i == 0 else 1e-6 * i, 1e-3, 0.99)
        rows.append(
            LayerRow(
                name=f"features.{i}.a_block_with_a_rather_long_name.conv",
                kind="Conv2D",
                alone=alone,
                alone_floor=1e-7,
                input=entering,
                input_floor=1e-6 * i,
                departs="layer" if wrong else "",
            )
        )
    return Verdict("net", 8, (1.0,), (), {}, (), layers=tuple(rows), layers_engine="paddle")


@pytest.mark.parametrize("count", [1, 5, 60])
def test_the_image_has_room_for_every_layer(count, tmp_path):
    plot_layers(verdict(count), tmp_path / "v.png")
    image = cv2.imread(str(tmp_path / "v.png"))
    assert image is not None
    height, width, _ = image.shape
    assert height >= 15 * count and width > 900
    assert np.median(image) == 255  # a light background


def test_a_layer_that_departs_is_red(tmp_path):
    found = []
    for departs in (False, True):
        plot_layers(verdict(5, departs), tmp_path / "v.png")
        blue, green, red = cv2.imread(str(tmp_path / "v.png")).astype(int).transpose(2, 0, 1)
        found.append(int(np.sum((red > 180) & (green < 80) & (blue < 80))))
    assert found[0] == 0 and found[1] > 50


def test_what_was_not_compared_or_is_not_finite_can_be_drawn(tmp_path):
    broken = LayerError(float("nan"), float("nan"), float("inf"), 0.0)
    rows = (
        LayerRow("a", "Conv2D", note="not compared"),
        LayerRow("b", "Linear", alone=broken, input=broken, departs="layer"),
    )
    plot_layers(
        Verdict("net", 8, (1.0,), (), {}, (), layers=rows, layers_engine="onednn"),
        tmp_path / "v.png",
    )
    assert cv2.imread(str(tmp_path / "v.png")) is not None
