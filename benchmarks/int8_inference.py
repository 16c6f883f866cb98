"""Latency on Paddle Inference, in one run: float, our int8 export, and Paddle's own int8 export.

    python benchmarks/int8_inference.py --models mobilenet_v1 --batches 1 16

Each model gets random weights and calibrated scales (latency depends on neither), is saved as

    float    save_float_model, run by oneDNN's float kernels
    generic  QAT(), run by oneDNN's int8 kernels
    onednn   QAT({"deploy_target": "onednn"}), the same
    paddle   paddle.quantization.ImperativeQuantAware(onnx_format=True), the same
    again    the file of `paddle` in a second predictor: how far two equal things differ here

and is then timed with all variants in turn, round after round, each round beginning with another
one, on one thread; the ratio to `paddle` is taken within each round, so that a machine whose speed
drifts does not favour one of them.
Writes a JSON (command, versions, commit, all medians), a CSV and a PNG.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from models import build_model, model_info  # noqa: E402
from quant import QAT, Predictor, save_float_model  # noqa: E402

VARIANTS = ("float", "generic", "onednn", "paddle", "again")


def main() -> None:
    """Exports, measures, writes."""
    args = parse()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            prefixes = export(model, Path(folder))
            for batch in args.batches:
                rounds = args.rounds if batch == 1 else max(8, args.rounds // 4)
                rows.append(measure(model, prefixes, batch, rounds))
                print(line(rows[-1]), flush=True)
    write(rows, Path(args.output))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v1"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument(
        "--rounds", type=int, default=60, help="timed rounds at batch 1; a quarter of it at others"
    )
    default = str(ROOT / "benchmarks" / "results" / f"int8_inference_{paddle.__version__}")
    parser.add_argument("--output", default=default, help="path without an ending")
    return parser.parse_args()


def export(model: str, folder: Path) -> dict[str, str]:
    """Prefix of each variant's file; a variant that cannot be saved is left out and named."""
    size = model_info(model).image_size
    channels = model_info(model).channels
    spec = [paddle.static.InputSpec([None, channels, size, size], "float32")]
    batch = np.random.default_rng(0).standard_normal((4, channels, size, size)).astype("float32")
    prefixes = {name: str(folder / f"{model}_{name}") for name in VARIANTS}
    prefixes["again"] = prefixes["paddle"]

    paddle.seed(0)
    net = build_model(model, 1000)
    net.eval()
    save_float_model(net, prefixes["float"], spec)
    for target in ("generic", "onednn"):
        quanter = QAT({"deploy_target": target})
        quantized = quanter.quantize(net, inplace=False)
        quanter.calibrate(quantized, [batch])
        quanter.save_quantized_model(quantized, prefixes[target], spec)
    try:
        export_with_paddle(model, prefixes["paddle"], spec, batch)
    except Exception as error:
        print(f"ImperativeQuantAware did not save {model}: {type(error).__name__}: {error}")
        del prefixes["paddle"], prefixes["again"]
    return prefixes


def export_with_paddle(model: str, prefix: str, spec: list[Any], batch: np.ndarray) -> None:
    """Saves the same model with Paddle's own quantizer."""
    from paddle.quantization import ImperativeQuantAware

    paddle.seed(0)
    net = build_model(model, 1000)
    quanter = ImperativeQuantAware(
        weight_quantize_type="channel_wise_abs_max",
        activation_quantize_type="moving_average_abs_max",
        onnx_format=True,
    )
    quanter.quantize(net)
    net.train()
    for _ in range(2):  # its observers look on in training mode only
        net(paddle.to_tensor(batch))
    net.eval()
    quanter.save_quantized_model(net, prefix, input_spec=spec)


def measure(model: str, prefixes: dict[str, str], batch: int, rounds: int) -> dict[str, Any]:
    """Median latency of each variant, and ratios within rounds."""
    info = model_info(model)
    x = np.random.default_rng(1).standard_normal(
        (batch, info.channels, info.image_size, info.image_size)
    )
    x = x.astype("float32")
    predictors = {name: Predictor(prefix, "onednn") for name, prefix in prefixes.items()}
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(3):
        for predictor in predictors.values():
            predictor(x)
    names = list(predictors)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            predictor = predictors[name]
            start = time.perf_counter()
            predictor(x)
            times[name].append((time.perf_counter() - start) * 1e3)
    row: dict[str, Any] = {"model": model, "batch": batch, "rounds": rounds}
    for name, values in times.items():
        row[f"{name}_ms"] = statistics.median(values)
        row[f"{name}_bytes"] = os.path.getsize(f"{prefixes[name]}.pdiparams")
        for other in ("paddle", "float"):
            if other in times and name != other:
                ratios = [a / b for a, b in zip(values, times[other])]
                row[f"{name}_over_{other}"] = statistics.median(ratios)
    return row


def line(row: dict[str, Any]) -> str:
    """A row as one line of text."""
    parts = [f"{row['model']} batch {row['batch']}:"]
    for name in VARIANTS:
        if f"{name}_ms" in row:
            ratio = row.get(f"{name}_over_paddle")
            against = "" if ratio is None else f" ({ratio:.3f} of paddle)"
            parts.append(f"{name} {row[f'{name}_ms']:.2f} ms{against}")
    return "  ".join(parts)


def write(rows: list[dict[str, Any]], prefix: Path) -> None:
    """Writes JSON, CSV and PNG."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    name = str(prefix)
    facts = {
        "command": "python benchmarks/int8_inference.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "python": platform.python_version(),
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "cpu": cpu(),
        "threads": 1,
        "unit": "ms, median over rounds; A_over_B is the median of the ratios within a round",
        "rows": rows,
    }
    Path(f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    fields = sorted({key for row in rows for key in row}, key=lambda k: (k not in rows[0], k))
    with open(f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, f"{name}.png")
    print(f"written: {name}.json, .csv, .png")


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Bars: how many times as fast as float."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [f"{row['model']}\nbatch {row['batch']}" for row in rows]
    width = 0.8 / len(VARIANTS)
    figure, axes = plt.subplots(figsize=(2.5 + 2.2 * len(rows), 4))
    for i, name in enumerate(VARIANTS):
        values = [row["float_ms"] / row.get(f"{name}_ms", float("nan")) for row in rows]
        places = [x + (i - len(VARIANTS) / 2 + 0.5) * width for x in range(len(rows))]
        bars = axes.bar(places, values, width, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylabel("times as fast as float oneDNN")
    axes.set_title(f"Paddle {paddle.__version__}, oneDNN, one thread")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def cpu() -> str:
    """Name of the processor and its int8 instructions, as Linux tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    name = next((x.split(":")[1].strip() for x in text.splitlines() if "model name" in x), "")
    flags = [flag for flag in ("avx2", "avx512_vnni", "amx_int8") if f" {flag}" in text]
    return f"{name} ({', '.join(flags)})"


def commit() -> str | None:
    """The commit that was measured."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


if __name__ == "__main__":
    main()
