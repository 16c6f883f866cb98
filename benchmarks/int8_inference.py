"""Latency of int8 files on three engines in one run, ours beside everyone else's.

    python benchmarks/int8_inference.py --models mobilenet_v1 --batches 1 16

Each model gets random weights and calibrated scales (latency depends on neither). Per engine:

    onednn       Paddle Inference with oneDNN
        float    save_float_model
        generic  QAT()
        ours     QAT({"deploy_target": "onednn"})
        paddle   paddle.quantization.ImperativeQuantAware(onnx_format=True)
    onnxruntime  ONNX Runtime
        float    save_float_onnx
        ours     QAT({"deploy_target": "onnxruntime"}).export_onnx
        static   onnxruntime.quantization.quantize_static of the float file, BatchNorm folded by
                 its quant_pre_process: QDQ, uint8 activations, int8 weights per channel
    openvino     OpenVINO, float32 where a file has float operators
        float, static
                 the same files
        ours     QAT({"deploy_target": "openvino"}).export_onnx
        shared   the file for ONNX Runtime, which OpenVINO runs as exactly
        nncf     nncf.quantize of the converted model with BatchNorm folded

`again` is the file of `paddle` or `static` in a second session: how far two equal things differ
here. All variants of an engine are timed in turn, round after round, each round beginning with
another one, on one thread; ratios are taken within a round, so that a machine whose speed drifts
does not favour one of them. What is not installed is left out and named.
Writes a JSON (command, versions, commit, all medians), a CSV and a PNG.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from side_by_side import write_results  # noqa: E402

from models import build_model, model_info  # noqa: E402
from quant import QAT, Predictor, save_float_model, save_float_onnx  # noqa: E402
from quant.onnx_predictor import OnnxPredictor  # noqa: E402

ENGINES: dict[str, tuple[str, ...]] = {
    "onednn": ("float", "generic", "ours", "paddle", "again"),
    "onnxruntime": ("float", "ours", "static", "again"),
    "openvino": ("float", "ours", "shared", "static", "nncf", "again"),
}
TITLES = {"onednn": "Paddle oneDNN", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
Files = dict[str, Path]
Runner = Callable[[np.ndarray], Any]


def main() -> None:
    """Exports, measures, writes."""
    args = parse()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for model in args.models:
            folder = Path(name) / model
            folder.mkdir()
            files = export(model, folder, args.engines)
            for engine in args.engines:
                for batch in args.batches:
                    rounds = args.rounds if batch == 1 else max(8, args.rounds // 4)
                    rows.append(measure(model, engine, files[engine], batch, rounds))
                    print(line(rows[-1]), flush=True)
    facts = {
        "versions": versions(),
        "threads": 1,
        "unit": "ms, median over rounds; ours_over_B is the median of the ratios within a round",
    }
    write_results(rows, Path(args.output), facts, plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v1"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument(
        "--rounds", type=int, default=60, help="timed rounds at batch 1; a quarter of it at others"
    )
    default = str(ROOT / "benchmarks" / "results" / f"int8_inference_{paddle.__version__}")
    parser.add_argument("--output", default=default, help="path without an ending")
    return parser.parse_args()


def export(model: str, folder: Path, engines: list[str]) -> dict[str, Files]:
    """The file of each variant by engine; what cannot be made is left out and named."""
    info = model_info(model)
    spec = [
        paddle.static.InputSpec(
            [None, info.channels, info.image_size, info.image_size], "float32", name="image"
        )
    ]
    batch = inputs_of(model, 4, seed=0)
    files: dict[str, Files] = {engine: {} for engine in ENGINES}
    paddle.seed(0)
    net = build_model(model, 1000)
    net.eval()

    def quantized(target: str) -> tuple[QAT, Any]:
        quanter = QAT({"deploy_target": target})
        copy = quanter.quantize(net, inplace=False, input_spec=spec)
        quanter.calibrate(copy, [batch])
        return quanter, copy

    def attempt(engine: str, variant: str, name: str, make: Callable[[Path], Any]) -> None:
        if engine not in engines:
            return
        path = folder / name
        try:
            make(path)
            files[engine][variant] = path
        except Exception as error:
            print(f"{engine}, {variant} of {model} left out: {type(error).__name__}: {error}")

    def save_paddle(target: str) -> Callable[[Path], Any]:
        quanter, copy = quantized(target)
        return lambda path: quanter.save_quantized_model(copy, str(path), spec)

    attempt("onednn", "float", "float", lambda path: save_float_model(net, str(path), spec))
    if "onednn" in engines:
        attempt("onednn", "generic", "generic", save_paddle("generic"))
        attempt("onednn", "ours", "ours", save_paddle("onednn"))
    attempt(
        "onednn", "paddle", "paddle", lambda path: export_with_paddle(model, str(path), spec, batch)
    )
    if set(engines) & {"onnxruntime", "openvino"}:
        float_file = folder / "float.onnx"
        save_float_onnx(net, str(float_file), spec)
        for engine in ("onnxruntime", "openvino"):
            quanter, copy = quantized(engine)
            ours = folder / f"{engine}.onnx"
            quanter.export_onnx(copy, str(ours), spec)
            files[engine].update({"float": float_file, "ours": ours})
            attempt(
                engine,
                "static",
                "static.onnx",
                lambda path: quantize_static(float_file, path, batch),
            )
        files["openvino"]["shared"] = files["onnxruntime"]["ours"]
        attempt("openvino", "nncf", "nncf.xml", lambda path: quantize_nncf(float_file, path, batch))
    for engine, made in files.items():
        first = "paddle" if engine == "onednn" else "static"
        if first in made:
            made["again"] = made[first]
    return files


def inputs_of(model: str, count: int, seed: int) -> np.ndarray:
    """Random images of a model."""
    info = model_info(model)
    shape = (count, info.channels, info.image_size, info.image_size)
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def quantize_static(source: Path, target: Path, batch: np.ndarray) -> None:
    """ONNX Runtime's own quantizer, as its documentation advises for CPUs of this kind."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"image": batch}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared = source.with_name("prepared.onnx")
    quantization.shape_inference.quant_pre_process(
        str(source), str(prepared), skip_symbolic_shape=True
    )
    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )


def quantize_nncf(source: Path, target: Path, batch: np.ndarray) -> None:
    """NNCF's post-training quantizer on the model that OpenVINO makes of the float file."""
    import nncf
    import openvino

    # The transformations that `convert_model` and the plugin apply fold BatchNorm.
    model = openvino.convert_model(str(source))
    data = nncf.Dataset([batch[i : i + 1] for i in range(len(batch))])
    openvino.save_model(nncf.quantize(model, data), str(target), compress_to_fp16=False)


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


def runner(engine: str, file: Path, batch: int) -> Runner:
    """A function that runs a file on one thread."""
    if engine == "onednn":
        return Predictor(str(file), "onednn")
    if engine == "onnxruntime":
        return OnnxPredictor(str(file), "onnxruntime")
    import openvino

    core = openvino.Core()
    model = core.read_model(str(file))
    shape = model.inputs[0].partial_shape
    shape[0] = batch
    model.reshape(shape)
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda x: request.infer({0: x})


def measure(model: str, engine: str, files: Files, batch: int, rounds: int) -> dict[str, Any]:
    """Median latency of each variant, and ratios within rounds."""
    x = inputs_of(model, batch, seed=1)
    names = [name for name in ENGINES[engine] if name in files]
    runners = {name: runner(engine, files[name], batch) for name in names}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(3):
        for run in runners.values():
            run(x)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runners[name](x)
            times[name].append((time.perf_counter() - start) * 1e3)
    row: dict[str, Any] = {"model": model, "engine": engine, "batch": batch, "rounds": rounds}
    for name, values in times.items():
        row[f"{name}_ms"] = statistics.median(values)
        row[f"{name}_bytes"] = stored(files[name])
    for name in times:
        if name != "ours" and "ours" in times:
            ratios = [a / b for a, b in zip(times["ours"], times[name])]
            row[f"ours_over_{name}"] = statistics.median(ratios)
    first = "paddle" if engine == "onednn" else "static"
    if "again" in times:
        ratios = [a / b for a, b in zip(times["again"], times[first])]
        row["again_over_itself"] = statistics.median(ratios)
    return row


def stored(file: Path) -> int:
    """Bytes of the weights."""
    for candidate in (Path(f"{file}.pdiparams"), file.with_suffix(".bin"), file):
        if candidate.is_file():
            return candidate.stat().st_size
    raise FileNotFoundError(file)


def line(row: dict[str, Any]) -> str:
    """A row as one line of text."""
    parts = [f"{row['model']} {row['engine']} batch {row['batch']}:"]
    for name in ENGINES[row["engine"]]:
        if f"{name}_ms" in row:
            ratio = row.get(f"ours_over_{name}")
            against = "" if ratio is None else f" (ours {ratio:.3f} of it)"
            parts.append(f"{name} {row[f'{name}_ms']:.2f} ms{against}")
    return "  ".join(parts)


def versions() -> dict[str, str]:
    """Of what took part."""
    found = {"paddle": paddle.__version__, "numpy": np.__version__}
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Bars, a panel per engine and batch: how many times as fast as its float file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    engines = [engine for engine in ENGINES if any(row["engine"] == engine for row in rows)]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = plt.subplots(
        len(engines),
        len(batches),
        figsize=(2.5 + 1.7 * len(models) * len(batches), 3.2 * len(engines)),
        squeeze=False,
    )
    for panel_row, engine in zip(panels, engines):
        names = [name for name in ENGINES[engine] if name not in ("float", "again")]
        width = 0.8 / len(names)
        for axes, batch in zip(panel_row, batches):
            for i, name in enumerate(names):
                values = [
                    row["float_ms"] / row.get(f"{name}_ms", float("nan"))
                    for row in rows
                    if row["engine"] == engine and row["batch"] == batch
                ]
                places = [x + (i - len(names) / 2 + 0.5) * width for x in range(len(values))]
                bars = axes.bar(places, values, width, label=name)
                axes.bar_label(bars, fmt="%.2f", fontsize=7)
            axes.axhline(1.0, color="grey", linewidth=1)
            axes.set_xticks(range(len(models)), models, fontsize=8)
            axes.set_title(f"{TITLES[engine]}, batch {batch}", fontsize=10)
            axes.set_ylabel("times as fast as float", fontsize=8)
            axes.margins(y=0.15)
            axes.legend(fontsize=8)
    figure.suptitle(f"int8 files, one thread, Paddle {paddle.__version__}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
