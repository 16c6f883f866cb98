"""The job of ``export.py``: from a checkpoint to an int8 model that is known to be the same."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from paddle import Tensor, nn

from data import build_loader
from quant import QAT, Receipt, Verdict
from quant.to_onnx import DEFAULT_OPSET

from . import distributed
from .config import ExportConfig
from .errors import EngineError
from .files import make_writable_folder, write_json
from .inference import first_batches, require_engine
from .loading import load_network
from .onnx_file import METADATA_KEY
from .run_file import RUN_FILE
from .runtime import seed_everything, select_device
from .task import Task, run_values, task_of_file, warn_of_default_quantization, write_run
from .verify_plot import plot_layers
from .weights import weights_file

CALIBRATION_BATCHES = 16

EXIT_OK = 0
EXIT_NOT_THE_NETWORK = 1


def run_export(cfg: ExportConfig) -> int:
    """Run ``export.py``.

    Returns:
        The exit code: 0, or 1 if a written file does not compute what the network computes.

    Raises:
        DataError, EngineError, ModelError, QuantError: something is not usable as it is.
    """
    distributed.require_one_process("export.py")
    prefix = str(cfg.output)
    make_writable_folder(Path(prefix).absolute().parent, "--output")
    select_device(cfg.use_gpu)
    seed_everything(cfg.seed)
    path, task = checkpoint_task(cfg)
    if cfg.verify:
        require_engine(task.target)
        task.dataset("val")  # says now, before anything is written, what is wrong with the data
    net, quanter = quantized_network(cfg, path, task)
    receipt = quanter.save_quantized_model(net, prefix, task.input_spec())
    print(receipt)
    written = [f"{prefix}.pdmodel", f"{prefix}.pdiparams"]
    if cfg.onnx or task.target.is_for_onnx:
        print(export_onnx(quanter, net, f"{prefix}.onnx", task, dataclasses.asdict(cfg), cfg.opset))
        written.append(f"{prefix}.onnx")
    write_run(Path(f"{prefix}.{RUN_FILE}"), task, dataclasses.asdict(cfg))
    if cfg.verify:
        for file in [prefix, *(name for name in written if name.endswith(".onnx"))]:
            verdict = quanter.verify(net, file, verification_batches(cfg, task))
            print_verdict(verdict, cfg.verify_all_layers)
            written += write_verdict(verdict, Path(file))
            if not verdict.passed:
                print(
                    f"error: {file} is not the network of {path}: it departs from it by more than "
                    "float noise explains (see the figures above)",
                    file=sys.stderr,
                )
                return EXIT_NOT_THE_NETWORK
    print("written: " + ", ".join(written))
    return EXIT_OK


def checkpoint_task(cfg: ExportConfig) -> tuple[Path, Task]:
    """The checkpoint that the flags name, and what it is about.

    Raises:
        DataError, EngineError, ModelError, QuantError: it is missing, or the flags do not fit it.
    """
    path = Path(str(cfg.checkpoint))
    if Path(f"{path}.pdmodel").is_file():
        raise EngineError(
            f"{path} is an exported model; allowed is a checkpoint (--check looks at such a model)"
        )
    weights_file(path)
    task = task_of_file(cfg, path, needs_network=True)
    kinds = task.quantization.activation_preprocess_type, task.quantization.weight_preprocess_type
    if cfg.pact_init is not None and "PACT" not in kinds:
        raise EngineError(
            f"--pact_init is {cfg.pact_init}, but nothing is quantized with PACT; add --use_pact"
        )
    return path, task


def quantized_network(cfg: ExportConfig, path: Path, task: Task) -> tuple[nn.Layer, QAT]:
    """The quantized network of a checkpoint; a float one is calibrated."""
    net, quanter = load_network(task, path)
    if quanter is None:
        quanter = _quantize(cfg, task, net)
    else:
        _refuse_flags_of_calibration(cfg, path)
        warn_of_default_quantization(path)
    net.eval()
    return net, quanter


def print_verdict(verdict: Verdict, every_layer: bool) -> None:
    """Print a verdict, with the row of each layer if asked for."""
    print(verdict)
    if every_layer and verdict.layers:
        print(verdict.layer_table(every=True))


def write_verdict(verdict: Verdict, path: Path) -> list[str]:
    """Write PATH.verify.json and, where there are layers, PATH.verify.png; returns their names."""
    report, image = Path(f"{path}.verify.json"), Path(f"{path}.verify.png")
    write_json(report, verdict.to_dict(layers=True))
    if not verdict.layers:
        return [str(report)]
    plot_layers(verdict, image)
    return [str(report), str(image)]


def _refuse_flags_of_calibration(cfg: ExportConfig, path: Path) -> None:
    for name in ("pact_init", "calibration_batches"):
        value = getattr(cfg, name)
        if value is not None:
            raise EngineError(
                f"--{name} is {value}, but {path} is a QAT checkpoint, whose scales and alpha are "
                "trained already; leave the flag out"
            )


def _quantize(cfg: ExportConfig, task: Task, net: nn.Layer) -> QAT:
    """Quantize a float network with scales from training images."""
    quanter = QAT(task.quantization)
    quanter.quantize(net, input_spec=task.input_spec())
    loader = build_loader(
        task.dataset("train", cfg.seed),
        cfg.batch_size,
        train=True,
        seed=cfg.seed,
        num_workers=cfg.num_workers,
    )
    count = quanter.calibrate(net, islice(loader, cfg.calibration_batches or CALIBRATION_BATCHES))
    print(f"a float checkpoint: activation scales calibrated on {count} batches of training images")
    return quanter


def verification_batches(cfg: ExportConfig, task: Task) -> Iterator[list[Tensor]]:
    """The images, and labels, on which a file is held against its network."""
    return first_batches(task.dataset("val"), cfg.verify_images, cfg.batch_size, cfg.num_workers)


def export_onnx(
    quanter: QAT,
    net: nn.Layer,
    path: str,
    task: Task,
    recipe: dict[str, Any],
    opset: int = DEFAULT_OPSET,
) -> Receipt:
    """Write an ONNX file that says itself what ``run.json`` would say of it.

    Args:
        quanter: what quantized the network.
        net: the network.
        path: the file.
        task: what it is about.
        recipe: every flag of the command.
        opset: version of the operator set.

    Raises:
        QuantError: the network has no ONNX form.
    """
    metadata = {METADATA_KEY: json.dumps(run_values(task, recipe))}
    return quanter.export_onnx(net, path, task.input_spec(), opset, metadata)
