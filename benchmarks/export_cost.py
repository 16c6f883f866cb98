"""What an export costs: seconds, and memory beside the size of the float weights.

    python benchmarks/export_cost.py --models resnet50 mobilenet_v1

Each model is a process of its own, which builds it with random weights at its own input size,
calibrates it on one batch, and then writes the int8 files of Paddle and the ONNX file, a few times
each. Peak memory is that of the process less what it had before the first export. Writes a JSON
(command, versions, commit), a CSV and a PNG.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Rows, Worker, paddle_version, write_results

FORMATS = ("paddle", "onnx")


def main() -> None:
    """Measures and writes; or, as a worker, answers."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
        return
    args = parse()
    rows = [measure(model, form, args.rounds) for model in args.models for form in FORMATS]
    unit = "seconds, median; bytes: float weights, and growth of the process's peak in an export"
    write_results(rows, args.output, {"paddle": paddle_version(), "unit": unit}, plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v1"])
    parser.add_argument("--rounds", type=int, default=3)
    default = ROOT / "benchmarks" / "results" / f"export_cost_{paddle_version()}"
    parser.add_argument("--output", type=Path, default=default, help="path without an ending")
    return parser.parse_args()


def measure(model: str, form: str, rounds: int) -> dict[str, Any]:
    """The figures of one model and format, from a process that exports nothing else."""
    worker = Worker([sys.executable, __file__, "--worker", model], {"OMP_NUM_THREADS": "1"})
    answers = [worker.work(form) for _ in range(rounds)]
    worker.end()
    row = {
        "model": model,
        "format": form,
        "seconds": statistics.median(answer["seconds"] for answer in answers),
        "weight_bytes": answers[0]["weight_bytes"],
        "peak_bytes": answers[0]["peak_bytes"],
    }
    row["peak_over_weights"] = row["peak_bytes"] / row["weight_bytes"]
    print(row, flush=True)
    return row


def work(model: str) -> None:
    """Exports the model once for each line of input, the format's name."""
    import numpy as np
    import paddle

    sys.path.insert(0, str(ROOT))
    from models import build_model, model_info
    from quant import QAT

    info = model_info(model)
    shape = [info.channels, info.image_size, info.image_size]
    paddle.seed(0)
    net = build_model(model, 1000)
    quanter = QAT()
    quanter.quantize(net)
    images = np.random.default_rng(0).normal(size=[2, *shape]).astype(np.float32)
    quanter.calibrate(net, [images])
    net.eval()
    spec = [paddle.static.InputSpec([None, *shape], "float32")]
    print(json.dumps({"ready": model}), flush=True)
    for line in sys.stdin:
        before = peak()
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            if line.strip() == "onnx":
                quanter.export_onnx(net, f"{folder}/model.onnx", spec)
            else:
                quanter.save_quantized_model(net, f"{folder}/model", spec)
            seconds = time.perf_counter() - start
        found = {
            "seconds": seconds,
            "weight_bytes": sum(4 * parameter.numel().item() for parameter in net.parameters()),
            "peak_bytes": peak() - before,
        }
        print(json.dumps(found), flush=True)


def peak() -> int:
    """The most memory that the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plot(rows: Rows, path: str) -> None:
    """Bars: seconds, and peak memory over the size of the float weights."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
    names = [f"{row['model']}, {row['format']}" for row in rows]
    labels = {"seconds": "seconds", "peak_over_weights": "peak memory over float weights"}
    for axes, (key, label) in zip(panels, labels.items()):
        bars = axes.barh(names, [row[key] for row in rows])
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.set_xlabel(label)
        axes.invert_yaxis()
        axes.margins(x=0.15)
    figure.suptitle(f"Export, Paddle {paddle_version()}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
