import json

import numpy as np

from engine.evaluation import Evaluation
from engine.metrics import Metrics
from engine.summary import Summary, format_bytes


def found(top1, top5, speed=100.0):
    zeros = np.zeros(8, np.int64)
    return Evaluation(Metrics(None, top1, top5, 8), zeros, zeros, zeros, 10, speed)


def test_stages_that_were_not_run_are_null(tmp_path):
    summary = Summary(model="lenet")
    summary.add("qat", found(0.5, 0.75))
    summary.write(tmp_path)
    values = json.loads((tmp_path / "summary.json").read_text())
    assert values["model"] == "lenet"
    assert values["qat"] == {"top1": 0.5, "top5": 0.75}
    assert values["fp32"] is None and values["int8"] is None
    assert values["agreement_int8_qat"] is None
    assert values["sizes_bytes"] == {"fp32": None, "int8": None}


def test_the_table_has_a_line_for_each_stage_that_was_run():
    summary = Summary(model="lenet", sizes_bytes={"fp32": 4_000_000, "int8": 1_010_000})
    summary.add("fp32", found(0.7, 0.9, speed=10))
    summary.add("int8", found(0.69, 0.89, speed=40))
    summary.agreement_int8_qat = 0.999
    lines = summary.table().splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["float", "network", "70.00%", "90.00%", "10"]
    assert lines[3].split() == ["int8", "file", "69.00%", "89.00%", "1.01", "MB", "40", "99.90%"]


def test_sizes_are_in_thousands():
    sizes = [0, 999, 1000, 64333, 17_000_000, 5 * 10**12]
    assert [format_bytes(size) for size in sizes] == [
        "0 B",
        "999 B",
        "1 kB",
        "64.33 kB",
        "17 MB",
        "5000 GB",
    ]
