"""The job of ``export.py --check``: what an int8 model holds, and whether it does what it should.

The model may come from anywhere: from this project or from Paddle's own tools.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor

from quant import FileContent, Predictor, QuantConfig, VerifyError, inspect_file
from quant.paddle_format import read_graph
from quant.predictor import ENGINES
from quant.targets import TARGETS
from quant.verify import NAMES, SHARE_OF_RANGE, Difference, difference

from .config import ExportConfig
from .crash_guard import working_on
from .errors import EngineError
from .export import (
    checkpoint_task,
    print_verdict,
    quantized_network,
    verification_batches,
    write_verdict,
)
from .files import make_writable_folder, write_json
from .inference import check_images, default_threads, input_shape
from .run_file import find_run
from .runtime import seed_everything, select_device
from .task import task_of_file

EXIT_OK = 0
EXIT_NOT_WELL = 1
RANDOM_INPUTS = 16
RANDOM_SIZE, RANDOM_CHANNELS = 224, 3  # where the file leaves them open


@dataclass(frozen=True)
class EngineRuns:
    """How the engines run a file.

    Attributes:
        inputs: what they were given, in words.
        num_inputs: how many samples.
        errors: by engine that does not run it: why.
        between: of each output, plain CPU against oneDNN; empty unless both run.
        ranges: of each output, max - min on plain CPU.
        failures: one line for each thing that is wrong.
        notes: what is shown and not judged, and why.
    """

    inputs: str
    num_inputs: int
    errors: dict[str, str]
    between: tuple[Difference, ...]
    ranges: tuple[float, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "between": [vars(item) for item in self.between]}

    def __str__(self) -> str:
        lines = [f"run on {self.num_inputs} {self.inputs}:"]
        for engine in ENGINES:
            lines.append(f"  {NAMES[engine]}: {self.errors.get(engine, 'runs')}")
        for i, (found, span) in enumerate(zip(self.between, self.ranges)):
            lines.append(
                f"  output {i}, one against the other: mean |d| {found.mean_abs / span:.3%} and "
                f"max |d| {found.max_abs / span:.3%} of the range, same Top1 {found.agreement:.2%}"
            )
        return "\n".join([*lines, *(f"note: {line}" for line in self.notes)])


def run_check(cfg: ExportConfig) -> int:
    """Look at the file that ``--check`` names.

    Returns:
        The exit code: 0, or 1 if the file is no int8 model, is broken, or is not the network of the
        checkpoint.

    Raises:
        DataError, EngineError, ModelError, QuantError: something is not usable as it is.
    """
    prefix = _prefix(str(cfg.check))
    if cfg.output is not None:
        make_writable_folder(Path(cfg.output).absolute().parent, "--output")
    select_device(cfg.use_gpu)
    seed_everything(cfg.seed)
    content = inspect_file(str(prefix))
    print(content)
    failures = list(content.failures)
    written: list[str] = []
    report: dict[str, Any] = {"content": content.to_dict()}
    if cfg.checkpoint:
        path, task = checkpoint_task(cfg)
        net, quanter = quantized_network(cfg, path, task)
        verdict = quanter.verify(net, str(prefix), verification_batches(cfg, task))
        print_verdict(verdict, cfg.verify_all_layers)
        if cfg.output is not None:
            written += write_verdict(verdict, Path(cfg.output))
        report["verification"] = verdict.to_dict()
        broken = list(failures)
        failures += verdict.failures
    else:
        runs = run_engines(prefix, content, *_inputs(cfg, prefix))
        print(runs)
        report["runs"] = runs.to_dict()
        broken = failures = [*failures, *runs.failures]
    for line in broken:
        print(f"FAILED: {line}")
    if cfg.output is not None:
        file = Path(f"{cfg.output}.check.json")
        write_json(file, {**report, "failures": failures})
        print("written: " + ", ".join([*written, str(file)]))
    if failures:
        return EXIT_NOT_WELL
    print(f"checked: {prefix} is an int8 model in order")
    return EXIT_OK


def _prefix(given: str) -> Path:
    for ending in (".pdmodel", ".pdiparams"):
        if given.endswith(ending):
            given = given[: -len(ending)]
    if given.endswith(".onnx"):
        raise EngineError(f"--check {given}: an ONNX file; allowed is a model of Paddle")
    if not Path(f"{given}.pdmodel").is_file() and Path(f"{given}.json").is_file():
        raise EngineError(
            f"--check {given}: {given}.json is the newer format of Paddle 3; "
            "allowed is a model with .pdmodel"
        )
    return Path(given)


def run_engines(
    prefix: Path, content: FileContent, batches: Iterable[list[np.ndarray]], inputs: str
) -> EngineRuns:
    """Run a file on plain CPU and on oneDNN, and compare what they give."""
    data = list(batches)
    found: dict[str, list[np.ndarray]] = {}
    errors: dict[str, str] = {}
    for engine in ENGINES:
        try:
            working_on(f"{prefix}.pdmodel")
            predictor = Predictor(str(prefix), engine, default_threads())
            columns = list(zip(*(predictor(batch) for batch in data)))
            found[engine] = [np.concatenate([np.atleast_1d(x) for x in c]) for c in columns]
        except VerifyError as error:
            errors[engine] = str(error)
    failures = list(errors.values())
    for engine, values in found.items():
        if not all(np.isfinite(value).all() for value in values):
            failures.append(f"{NAMES[engine]}: the output holds NaN or Inf")
    between: list[Difference] = []
    ranges: list[float] = []
    notes: list[str] = []
    if len(found) == len(ENGINES):
        target = TARGETS[_deploy_target(prefix)]
        comparable = all(engine in target.engines for engine in ENGINES)
        if not comparable:
            notes.append(
                f"made for --deploy_target={target.name}, of which only "
                f"{', '.join(NAMES[engine] for engine in target.engines)} has the integers; "
                "the difference is shown, not judged"
            )
        for i, (a, b) in enumerate(zip(found["paddle"], found["onednn"])):
            between.append(difference(a, b))
            ranges.append(max(float(np.ptp(a)), 1e-30))
            share, bound = between[-1].mean_abs / ranges[-1], SHARE_OF_RANGE["onednn"]
            if comparable and not share <= bound:
                failures.append(
                    f"output {i} of plain CPU and of oneDNN differ by {share:.2%} of the range on "
                    f"average, allowed is {bound:.0%}"
                )
    count = sum(batch[0].shape[0] for batch in data)
    return EngineRuns(
        inputs, count, errors, tuple(between), tuple(ranges), tuple(failures), tuple(notes)
    )


def _deploy_target(prefix: Path) -> str:
    quantization = find_run(prefix).values.get("quantization")
    return QuantConfig.from_dict(quantization).deploy_target


def _inputs(cfg: ExportConfig, prefix: Path) -> tuple[list[list[np.ndarray]], str]:
    """Images where the flags or ``run.json`` name a data set, else random numbers; and a title."""
    if cfg.data is None and cfg.data_dir is None and not find_run(prefix).values:
        return [_random_inputs(cfg, prefix)], "random inputs (no data set is named)"
    task = task_of_file(cfg, prefix, needs_network=False)
    shape = input_shape(prefix)
    if len(shape) != 4:
        raise EngineError(f"{prefix}: takes an input of shape {shape}; allowed is [N, C, H, W]")
    check_images(prefix, shape[1:], task.input)
    batches: Iterable[list[Tensor]] = verification_batches(cfg, task)
    return [[images.numpy()] for images, _ in batches], f"images of {task.data}"


def _random_inputs(cfg: ExportConfig, prefix: Path) -> list[np.ndarray]:
    graph = read_graph(str(prefix))
    rng = np.random.default_rng(cfg.seed)
    arrays = []
    for name in graph.inputs:
        dtype, shape = graph.dtype(name), list(graph.shape(name) or [])
        if dtype != "float32" or not shape:
            raise EngineError(
                f"{prefix}: input {name} is {dtype} {shape}; without a data set, allowed is float32"
            )
        channels = cfg.channels or RANDOM_CHANNELS
        side = cfg.image_size or RANDOM_SIZE
        sizes = dict(enumerate([min(cfg.verify_images, RANDOM_INPUTS), channels]))
        shape = [size if size > 0 else sizes.get(i, side) for i, size in enumerate(shape)]
        arrays.append(rng.normal(size=shape).astype(np.float32))
    return arrays
