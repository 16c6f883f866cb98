"""An ONNX file as a function from images to logits, and what it says about itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from data import InputConfig
from quant.errors import VerifyError
from quant.onnx_predictor import OnnxPredictor

from .crash_guard import working_on
from .errors import EngineError
from .inference import check_images
from .run_file import Known, check_known

# The entry of metadata_props that holds what run.json would say, as JSON.
METADATA_KEY = "paddleqat.run"
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
OUTPUT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")
# What a fixed number of images may take as float32; fewer images are filled up to it.
MAX_BATCH_BYTES = 1 << 30


class OnnxFile:
    """Runs the file through ONNX Runtime or OpenVINO on the CPU.

    Calling it maps images, float32 [N, C, H, W], to the file's output, float32. A file that takes
    a fixed number of images gets just that many at a time, the last ones filled up with zeros whose
    answers are dropped.

    Attributes:
        shape: the sizes [N, C, H, W] that the input takes; None where it takes any.
        known: what the metadata entry `METADATA_KEY` says, a JSON object with the keys of
            ``run.json``; nothing without one.
        fixed_input: ``channels`` and ``image_size`` where the file takes one value only.

    ONNX Runtime runs it, and also reads what the file says of itself; ``run_on`` names another.

    Raises:
        EngineError: ONNX Runtime is not installed or cannot load the file, or the file does not
            map one tensor of images to one tensor.
    """

    def __init__(self, path: Path, threads: int) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise EngineError(f"{path}: onnxruntime is not installed; pip install onnxruntime")
        working_on(str(path))
        import onnxruntime  # a machine that runs no ONNX file need not have it

        self.path, self.threads = path, threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what it cannot do comes as an exception
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exceptions have no common base
            raise EngineError(f"{path}: onnxruntime cannot load it ({_reason(error)})") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1:
            raise EngineError(
                f"{path}: takes {len(inputs)} inputs ({_names(inputs)}); allowed is one, the images"
            )
        if len(outputs) != 1:
            raise EngineError(
                f"{path}: has {len(outputs)} outputs ({_names(outputs)}); "
                "allowed is one, the logits"
            )
        self._input, self._output = inputs[0].name, outputs[0].name
        if inputs[0].type not in INPUT_TYPES:
            raise EngineError(
                f"{path}: input {self._input!r} is a {inputs[0].type}; "
                f"allowed is {' or '.join(INPUT_TYPES)}"
            )
        if outputs[0].type not in OUTPUT_TYPES:
            raise EngineError(
                f"{path}: output {self._output!r} is a {outputs[0].type}; "
                f"allowed is {' or '.join(OUTPUT_TYPES)}"
            )
        self._dtype = INPUT_TYPES[inputs[0].type]
        self.shape = [size if isinstance(size, int) else None for size in inputs[0].shape or []]
        if len(self.shape) != 4 or self.shape[1] not in (None, 1, 3):
            raise EngineError(
                f"{path}: input {self._input!r} has the shape {inputs[0].shape}; allowed is "
                "[N, C, H, W] with 1 or 3 channels"
            )
        if any(size is not None and size < 1 for size in self.shape):
            raise EngineError(
                f"{path}: input {self._input!r} has the shape {inputs[0].shape}; allowed are sizes "
                "of 1 or more"
            )
        fixed = {"channels": self.shape[1], "image_size": self.shape[2] or self.shape[3]}
        self.fixed_input = {key: size for key, size in fixed.items() if size is not None}
        self.known = self._known()
        self._other: OnnxPredictor | None = None

    def run_on(self, engine: str) -> None:
        """Have the file run by 'onnxruntime' or 'openvino'.

        Raises:
            EngineError: the engine is not installed, or cannot load the file.
        """
        try:
            other = engine != "onnxruntime"
            self._other = OnnxPredictor(str(self.path), engine, self.threads) if other else None
        except VerifyError as error:
            raise EngineError(f"--engine={engine}: {error}") from None

    def check_input(self, config: InputConfig) -> None:
        """See that images of this configuration are what the file takes.

        Raises:
            EngineError: they are not; names the flag that would make them so.
        """
        check_images(self.path, self.shape[1:], config)
        count = self.shape[0]
        most = MAX_BATCH_BYTES // (4 * config.channels * config.image_size**2)
        if count is not None and count > most:
            raise EngineError(
                f"{self.path}: takes {count} images at a time; allowed are up to {most} of "
                f"{config.image_size}x{config.image_size} pixels"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Raises EngineError where ONNX Runtime fails."""
        array = images.numpy().astype(self._dtype, copy=False)
        step = self.shape[0] or len(array)
        parts = [self._run(array[start : start + step]) for start in range(0, len(array), step)]
        return paddle.to_tensor(np.concatenate(parts).astype(np.float32, copy=False))

    def _run(self, array: np.ndarray) -> np.ndarray:
        count, fixed = len(array), self.shape[0]
        if fixed is not None and count < fixed:
            array = np.concatenate(
                [array, np.zeros((fixed - count, *array.shape[1:]), array.dtype)]
            )
        try:
            if self._other is not None:
                found = self._other([array])[0]
            else:
                found = np.asarray(self._session.run([self._output], {self._input: array})[0])
        except VerifyError as error:
            raise EngineError(str(error)) from None
        except Exception as error:
            raise EngineError(
                f"{self.path}: onnxruntime cannot run it ({_reason(error)})"
            ) from error
        if found.ndim == 0 or len(found) != len(array):
            raise EngineError(
                f"{self.path}: its output for {len(array)} images is {list(found.shape)}; "
                f"allowed is [{len(array)}, classes]"
            )
        return found[:count]

    def _known(self) -> Known:
        source = f"{self.path}: metadata {METADATA_KEY}"
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        try:
            values = {} if text is None else json.loads(text)
        except ValueError as error:
            raise EngineError(f"{source}: not JSON") from error
        return check_known(source, values)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _names(values: list[Any]) -> str:
    names = [value.name for value in values]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
