from __future__ import annotations

import csv
import importlib.util
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "accuracy.py"


@pytest.fixture(scope="module")
def accuracy():
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module
    spec.loader.exec_module(module)
    return module


def row(method, seed, top1, bits=(8, 8), model="net"):
    weight, activation = (32, 32) if method == "float" else bits
    figures = {"fp32": top1} if method == "float" else {"fp32": 0.9, "qat": 0.5, "int8": top1}
    return {
        "model": model,
        "method": method,
        "weight_bits": weight,
        "activation_bits": activation,
        "seed": seed,
        "top1": figures,
        "flags": ["--a=1"],
        "seconds": 1.0,
    }


FLOAT = [0.90, 0.92, 0.91]
QAT = [0.89, 0.91, 0.90]  # one point below float on every seed
PACT = [0.88, 0.93, 0.90]  # sometimes above, sometimes below
ROWS = [
    row(method, seed, top1)
    for method, values in (("float", FLOAT), ("qat", QAT), ("qat_pact", PACT))
    for seed, top1 in enumerate(values)
]


def cells(text, way):
    line = next(line for line in text.splitlines() if f"| {way} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_has_mean_and_sample_standard_deviation(accuracy):
    found = cells(accuracy.table(ROWS, accuracy.Bits(8, 8)), "float")
    mean, sd = statistics.mean(FLOAT), statistics.stdev(FLOAT)
    assert found == ["net", "float", "3", f"{100 * mean:.2f} ± {100 * sd:.2f}", "", ""]


def test_differences_are_paired_by_seed(accuracy):
    # Unpaired, a point would drown in the spread of the seeds; paired it is the same every time.
    found = cells(accuracy.table(ROWS, accuracy.Bits(8, 8)), "QAT")
    assert found[4:] == ["**-1.00 ± 0.00**", ""]


def test_difference_within_the_spread_of_the_seeds_is_not_bold(accuracy):
    found = cells(accuracy.table(ROWS, accuracy.Bits(8, 8)), "QAT, PACT (α = 100)")
    differences = [a - b for a, b in zip(PACT, QAT)]
    sd = statistics.stdev(differences)
    assert found[5] == f"{100 * statistics.mean(differences):+.2f} ± {100 * sd:.2f}"


def test_seed_that_one_side_lacks_takes_no_part_in_the_difference(accuracy):
    rows = [*ROWS, row("float", 7, 0.1)]
    text = accuracy.table(rows, accuracy.Bits(8, 8))
    assert cells(text, "float")[2] == "4"
    assert cells(text, "QAT")[4] == "**-1.00 ± 0.00**"


def test_other_widths_are_another_table(accuracy):
    rows = [*ROWS, row("qat", 0, 0.5, bits=(4, 8))]
    assert accuracy.widths(rows) == [(8, 8), (4, 8)]
    found = cells(accuracy.table(rows, accuracy.Bits(4, 8)), "QAT")
    assert found[2:5] == ["1", "50.00", "-40.00"]


def test_file_that_failed_its_check_has_no_figure(accuracy):
    rows = [*ROWS, row("qat_distill", 0, None)]
    assert "distillation" not in accuracy.table(rows, accuracy.Bits(8, 8))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_is_that_of_students_t(accuracy, n):
    stats = pytest.importorskip("scipy.stats")
    values = [0.1 * i * i for i in range(n)]
    sample = accuracy.Sample.of(values)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    assert sample.half == pytest.approx(half, rel=1e-3)


def test_one_seed_has_no_spread_and_proves_no_difference(accuracy):
    sample = accuracy.Sample.of([0.25])
    assert sample.text(sign=True) == "+25.00"
    assert math.isnan(sample.sd) and not sample.differs


def test_text_goes_between_the_markers(accuracy, tmp_path):
    path = tmp_path / "doc.md"
    path.write_text(f"above\n{accuracy.BEGIN}\nold\n{accuracy.END}\nbelow\n", encoding="utf-8")
    accuracy.insert(path, "new")
    text = path.read_text(encoding="utf-8")
    assert text == f"above\n{accuracy.BEGIN}\nnew\n{accuracy.END}\nbelow\n"


def test_document_without_markers_is_left_alone(accuracy, tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("text\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="needs the lines"):
        accuracy.insert(path, "new")
    assert path.read_text(encoding="utf-8") == "text\n"


def test_row_of_other_flags_is_not_taken_for_the_same(accuracy, tmp_path):
    store = accuracy.Store(tmp_path / "rows.json")
    store.add(row("qat", 0, 0.5))
    key = accuracy.Key("net", "qat", accuracy.Bits(8, 8), 0)
    again = accuracy.Store(tmp_path / "rows.json")
    assert again.has(key, ["--a=1"])
    assert not again.has(key._replace(seed=1), ["--a=1"])
    with pytest.raises(accuracy.RunError, match="--a=1, --a=2"):
        again.has(key, ["--a=2"])


def test_flags_of_every_method_are_flags_of_train(accuracy):
    from engine.config import TrainConfig, load_config

    args = accuracy.parse(["--max_steps", "3", "--pact_lr", "0.001"])
    for method in accuracy.QAT_METHODS:
        key = accuracy.Key("mobilenet_v1_x0_25", method, accuracy.Bits(4, 8), 2)
        words = [*accuracy.flags_of(key, args), "--pretrained_model=weights.pdparams"]
        cfg = load_config(TrainConfig, words)
        assert (cfg.weight_bits, cfg.activation_bits, cfg.seed, cfg.max_steps) == (4, 8, 2, 3)
        assert cfg.use_pact == ("pact" in method)
        assert cfg.lr == (0.001 if method == "qat_pact" else args.lr)


@pytest.mark.slow
def test_rows_are_run_written_and_not_run_again(tmp_path):
    doc = tmp_path / "doc.md"
    doc.write_text("<!-- accuracy: begin -->\n<!-- accuracy: end -->\n", encoding="utf-8")
    words = ["--models", "lenet", "--methods", "calibration", "qat", "--bits", "w4a8"]
    words += ["--seeds", "5", "--image_size", "28", "--batch_size", "64", "--fp32_epochs", "1"]
    words += ["--max_steps", "2", "--verify_images", "4", "--runs", str(tmp_path / "runs")]
    words += ["--out", str(tmp_path / "out" / "acc"), "--doc", str(doc)]
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "acc.json").read_text(encoding="utf-8"))["rows"]
    assert [r["method"] for r in rows] == ["float", "calibration", "qat"]
    fp32 = {r["top1"]["fp32"] for r in rows}
    assert len(fp32) == 1, "every row starts from the same float network"
    assert all(0 < r["top1"]["int8"] <= 1 and r["verified"] for r in rows[1:])
    assert str(tmp_path) not in "".join(c for r in rows for c in r["commands"])
    with open(tmp_path / "out" / "acc.csv", encoding="utf-8") as file:
        assert [r["top1_int8"] for r in csv.DictReader(file)][1:] == [
            str(r["top1"]["int8"]) for r in rows[1:]
        ]
    assert "W4A8" in doc.read_text(encoding="utf-8")
    assert (tmp_path / "out" / "acc.png").stat().st_size > 1000

    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("\n") == 1 and again.stdout.startswith("written:")
