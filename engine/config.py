"""The settings of the three commands: one dataclass each, whose fields are the flags.

Example::

    from engine.config import TrainConfig, load_config
    cfg = load_config(TrainConfig, ["--model=lenet", "--data=fashion_mnist", "--lr", "0.01"])
    cfg = TrainConfig(model="lenet", data="fashion_mnist", lr=0.01)      # the same
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from data import DATASETS, INTERPOLATIONS
from models import ModelError, model_info
from quant.config import ACTIVATION_TYPES, DEPLOY_TARGETS, PACT_INITS, WEIGHT_TYPES
from quant.to_onnx import DEFAULT_OPSET, HIGHEST_OPSET, LOWEST_OPSET

from .errors import EngineError
from .flags import check, flag, parse_flags

# Flags that do nothing unless another one is set.
SWITCHES = {
    "amp_dtype": "amp",
    "distill_temperature": "distill",
    "distill_weight": "distill",
    "fp32_lr": "fp32_epochs",
    "pact_init": "use_pact",
    "pact_l2_decay": "use_pact",
    "pact_lr_factor": "use_pact",
}
LR_STRATEGIES = ("piecewise_decay", "cosine_decay")
AMP_DTYPES = ("auto", "float16", "bfloat16")
ENGINES = ("auto", "native", "paddle", "onednn", "onnxruntime", "openvino")

TRAIN_EXAMPLES = """\
examples:
  python train.py --model=mobilenet_v1
  python train.py --lr=0.001 --use_pact=True --num_epochs=30 --l2_decay=2e-5 --ls_epsilon=0.1
  python train.py --model=lenet --data=fashion_mnist --fp32_epochs=2 --fp32_lr=0.05 --use_gpu=False
  python train.py --config configs/lenet_fashion_mnist.yaml --num_epochs=2
  python -m paddle.distributed.launch --gpus="0,1,2,3" train.py --model=mobilenet_v1
"""

EVAL_EXAMPLES = """\
examples:
  python eval.py output_models/best_model.pdparams
  python eval.py output_models/inference_model/qat_model --engine onednn --output result.json
  python eval.py output_models/best_model.pdparams --details details
  python eval.py weights.pdparams --model=resnet50 --data_dir /data/ILSVRC2012
"""

EXPORT_EXAMPLES = """\
examples:
  python export.py output_models/best_model.pdparams --output deploy/model
  python export.py weights.pdparams --model=resnet50 --output deploy/resnet50
  python export.py --check deploy/model
  python export.py output_models/best_model.pdparams --check deploy/model --output report
"""

_MODEL = "model and weights"
_DATA = "data"
_SCHEDULE = "schedule and optimizer"
_QUANT = "quantization"
_OUTPUT = "output"
_MACHINE = "machine"
GROUPS = (_MODEL, _DATA, _SCHEDULE, _QUANT, _OUTPUT, _MACHINE)


@dataclass
class CommonConfig:
    """The flags that all three commands have: where the images are, and what the network reads."""

    config: str | None = flag(
        None, "YAML file with any flags by name; the command line wins", _MODEL
    )
    num_classes: int | None = flag(
        None,
        "number of classes",
        _MODEL,
        unset="as in run.json beside the checkpoint, or in the data",
        low=1,
        high=1_000_000,
    )
    data_dir: str | None = flag(None, "folder of the data set", _DATA, unset="its usual place")
    num_workers: int = flag(
        4,
        "threads that read images; 0 reads each batch when it is asked for",
        _DATA,
        low=0,
        high=1024,
    )
    image_size: int | None = flag(
        None, "side of the square input in pixels", _DATA, unset="the model's own", low=1, high=4096
    )
    resize_size: int | None = flag(
        None,
        "short side before the centre crop of evaluation, in pixels",
        _DATA,
        unset="in the model's own ratio to --image_size",
        low=1,
        high=8192,
    )
    channels: int | None = flag(
        None, "channels of the input", _DATA, unset="the model's own", choices=(1, 3)
    )
    mean: list[float] | None = flag(
        None, "mean of each channel, on the scale 0 to 1", _DATA, unset="the model's own"
    )
    std: list[float] | None = flag(
        None,
        "standard deviation of each channel, on the scale 0 to 1",
        _DATA,
        unset="the model's own",
        above=0,
    )
    interpolation: str | None = flag(
        None, "how images are resized", _DATA, unset="the model's own", choices=INTERPOLATIONS
    )
    antialias: bool | None = flag(
        None,
        "shrink images as Pillow does, by a filter that sees every pixel, and not as OpenCV does",
        _DATA,
        unset="the model's own",
    )
    use_gpu: bool = flag(True, "use the GPU; without one the CPU, with one warning", _MACHINE)

    def __post_init__(self) -> None:
        """Check every value, and what has to hold between them.

        Raises:
            EngineError: names the flag, its value and what is allowed.
            ModelError: if there is no such model.
        """
        for field in dataclasses.fields(self):
            dashes = "" if field.metadata["positional"] else "--"
            check(field, getattr(self, field.name), f"{dashes}{field.name}")
        self._check_input()

    def _check_input(self) -> None:
        lengths = {"channels": self.channels}
        for name in ("mean", "std"):
            values = getattr(self, name)
            lengths[name] = None if values is None else len(values)
            if lengths[name] not in (None, 1, 3):
                raise EngineError(
                    f"--{name} has {len(values)} values; allowed is one per channel, 1 or 3"
                )
        given = {name: length for name, length in lengths.items() if length is not None}
        if len(set(given.values())) > 1:
            parts = ", ".join(f"--{name}: {length}" for name, length in given.items())
            raise EngineError(f"the number of channels has to be one and the same ({parts})")
        if self.resize_size is not None and self.image_size is not None:
            if self.resize_size < self.image_size:
                raise EngineError(
                    f"--resize_size is {self.resize_size}; allowed is --image_size, "
                    f"{self.image_size}, or more"
                )


@dataclass
class TrainConfig(CommonConfig):
    """Train a quantized image classifier, starting from float weights, and export it as int8.

    Every attribute is the flag of that name; see ``python train.py --help``.
    """

    model: str = flag("mobilenet_v3", "name of the network", _MODEL)
    pretrained_model: str | None = flag(
        None,
        "weights to start from (.pdparams, .safetensors, .tar or a folder of Paddle 1.x), or none",
        _MODEL,
        unset="the published weights of the model, or none if --fp32_epochs is given",
    )
    allow_partial: bool = flag(
        False,
        "start from what matches in the weights, list the rest and leave it as initialized",
        _MODEL,
    )

    data: str = flag("imagenet", "data set", _DATA, choices=DATASETS)
    batch_size: int = flag(128, "images per step and per card", _DATA, low=1)
    eval_batch_size: int | None = flag(
        None, "images per step of evaluation", _DATA, unset="--batch_size", low=1
    )
    total_images: int | None = flag(
        None,
        "images per epoch, as an override for the learning-rate schedule (ImageNet has 1281167)",
        _DATA,
        unset="the images that are there",
        low=1,
    )

    num_epochs: int = flag(1, "epochs of quantization-aware training", _SCHEDULE, low=1)
    lr: float = flag(1e-4, "learning rate of quantization-aware training", _SCHEDULE, above=0)
    lr_strategy: str = flag(
        "piecewise_decay", "how the learning rate falls", _SCHEDULE, choices=LR_STRATEGIES
    )
    step_epochs: list[int] = flag(
        [10, 20, 30], "epochs at which piecewise_decay multiplies by 0.1", _SCHEDULE, low=1
    )
    warmup_epochs: float = flag(
        0.0,
        "epochs over which the learning rate of a stage rises in a line, step by step, to its full "
        "value",
        _SCHEDULE,
        low=0,
    )
    accumulate_steps: int = flag(
        1,
        "batches whose gradients are averaged for one training step; --max_steps, --log_period and "
        "the schedule count steps",
        _SCHEDULE,
        low=1,
    )
    l2_decay: float = flag(3e-5, "weight of the L2 penalty", _SCHEDULE, low=0)
    momentum_rate: float = flag(0.9, "momentum of SGD", _SCHEDULE, low=0, below=1)
    ls_epsilon: float = flag(0.0, "label smoothing", _SCHEDULE, low=0, below=1)
    ema_decay: float = flag(
        0.0,
        "decay of the moving average of the weights, which is what is then evaluated and exported; "
        "0 for none",
        _SCHEDULE,
        low=0,
        below=1,
    )
    fp32_epochs: int = flag(
        0, "epochs that train the float network on the same data first", _SCHEDULE, low=0
    )
    fp32_lr: float | None = flag(
        None, "learning rate of the float epochs", _SCHEDULE, unset="--lr", above=0
    )
    max_steps: int | None = flag(
        None,
        "stop each stage (float, quantized) after that many training steps, then evaluate, save "
        "and export",
        _SCHEDULE,
        unset="no limit",
        low=1,
    )
    seed: int = flag(0, "seed of weights, order and augmentation", _SCHEDULE, low=0, high=2**31 - 1)

    use_pact: bool = flag(False, "learn the clipping range of activations (PACT)", _QUANT)
    pact_init: str = flag(
        "reference",
        "where PACT's alpha starts: at 100, or where the calibration batches say",
        _QUANT,
        choices=PACT_INITS,
    )
    pact_lr_factor: float | None = flag(
        None,
        "factor on the learning rate for alpha",
        _QUANT,
        unset="1000 for --pact_init=reference, 1 for calibrated",
        above=0,
    )
    pact_l2_decay: float | None = flag(
        None,
        "weight of the L2 penalty on alpha",
        _QUANT,
        unset="--l2_decay for --pact_init=reference, 1e-4 for calibrated",
        low=0,
    )
    calibration_batches: int = flag(
        4, "batches that set the activation scales before the first step; 0 for none", _QUANT, low=0
    )
    freeze_epoch: int | None = flag(
        None,
        "epoch, counted from 0, from which on observers and BatchNorm statistics stand still",
        _QUANT,
        unset="never",
        low=0,
    )
    reestimate_bn_batches: int = flag(
        0,
        "training batches over which the BatchNorm statistics of the best network are measured "
        "anew; kept if Top1 is not lower; 0 for none",
        _QUANT,
        low=0,
    )
    distill: bool = flag(
        False, "quantized training also learns the outputs of the float network", _QUANT
    )
    distill_weight: float = flag(
        0.5,
        "share of the float network's outputs in the loss; the labels have the rest",
        _QUANT,
        low=0,
        high=1,
    )
    distill_temperature: float = flag(
        1.0, "both networks' outputs are divided by it for that part of the loss", _QUANT, above=0
    )
    weight_quantize_type: str = flag(
        "channel_wise_abs_max", "how weight scales are found", _QUANT, choices=WEIGHT_TYPES
    )
    activation_quantize_type: str = flag(
        "moving_average_abs_max",
        "how activation scales are found",
        _QUANT,
        choices=ACTIVATION_TYPES,
    )
    weight_bits: int = flag(8, "bits of a weight", _QUANT, low=2, high=8)
    activation_bits: int = flag(8, "bits of an activation", _QUANT, low=2, high=8)
    moving_rate: float = flag(
        0.9, "how much of the past a moving average keeps", _QUANT, above=0, below=1
    )
    window_size: int = flag(
        10000, "accepted and checked; none of the quantizers here uses it", _QUANT, low=1
    )
    skip_quant: list[str] = flag([], "names of layers that stay float", _QUANT)
    deploy_target: str = flag(
        "generic",
        "whose integer arithmetic is simulated: any engine's, Paddle's with oneDNN, that of "
        "ONNX Runtime (and OpenVINO), of OpenVINO alone, or of TensorRT",
        _QUANT,
        choices=DEPLOY_TARGETS,
    )
    onnx_format: bool = flag(
        True,
        "accepted for old command lines; the export here stores integers either way",
        _QUANT,
    )

    onnx: bool = flag(
        False,
        "write the int8 network as ONNX too; always for --deploy_target onnxruntime, openvino, "
        "tensorrt",
        _OUTPUT,
    )
    model_save_dir: str = flag("./output_models", "folder for everything that is written", _OUTPUT)
    log_period: int = flag(10, "steps between two lines of the log", _OUTPUT, low=1)
    keep_checkpoints: int | None = flag(
        None,
        "how many of the newest epoch_N checkpoints stay, beside the best one",
        _OUTPUT,
        unset="all",
        low=1,
    )
    save_steps: int = flag(
        1000, "steps within an epoch between two saves of what --resume needs", _OUTPUT, low=1
    )
    resume: str | None = flag(
        None,
        "continue a run: auto takes the latest checkpoint in --model_save_dir, a path that one",
        _OUTPUT,
        bare="auto",
    )
    max_nonfinite_steps: int = flag(
        0,
        "steps of a stage that may be left out, as their loss or a gradient is not finite, before "
        "the run ends",
        _SCHEDULE,
        low=0,
    )
    verify_images: int = flag(
        256, "images on which the exported file is held against the network", _OUTPUT, low=1
    )

    amp: bool = flag(
        False, "mixed precision: convolutions and matrix products of training in 16 bits", _MACHINE
    )
    amp_dtype: str = flag(
        "auto",
        "the 16 bits of --amp; auto takes float16 on a GPU and bfloat16 on the CPU",
        _MACHINE,
        choices=AMP_DTYPES,
    )
    ce_test: bool = flag(
        False, "repeatable run for tests: fixed seed, no shuffle, no workers", _MACHINE
    )

    def __post_init__(self) -> None:
        """Check every value, and what has to hold between them; raises as `CommonConfig`."""
        super().__post_init__()
        model_info(self.model)
        if self.freeze_epoch is not None and self.freeze_epoch >= self.num_epochs:
            raise EngineError(
                f"--freeze_epoch is {self.freeze_epoch}; epochs count from 0 and --num_epochs is "
                f"{self.num_epochs}, so allowed is 0 to {self.num_epochs - 1}"
            )
        for name, epochs in (("num_epochs", self.num_epochs), ("fp32_epochs", self.fp32_epochs)):
            if 0 < epochs <= self.warmup_epochs:
                raise EngineError(
                    f"--warmup_epochs is {self.warmup_epochs}; allowed is less than --{name}, "
                    f"which is {epochs}"
                )
        if self.distill and self.trains_from_scratch and self.fp32_epochs == 0:
            raise EngineError(
                "--distill learns from the float network, and there is none; "
                "give --pretrained_model or --fp32_epochs"
            )
        if any(a >= b for a, b in zip(self.step_epochs, self.step_epochs[1:])):
            raise EngineError(f"--step_epochs is {self.step_epochs}; allowed are rising epochs")
        self._check_switches()
        if self.allow_partial and (self.pretrained_model or "").lower() == "none":
            raise EngineError("--allow_partial needs weights, and --pretrained_model is none")
        if self.pact_init == "calibrated" and self.calibration_batches == 0:
            raise EngineError(
                "--pact_init is calibrated, which needs --calibration_batches of 1 or more"
            )

    def _check_switches(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, switch in SWITCHES.items():
            value = getattr(self, name)
            if value != defaults[name] and not getattr(self, switch):
                wanted = "1 or more" if switch == "fp32_epochs" else "True"
                raise EngineError(f"--{name} is {value}, which needs --{switch}={wanted}")

    @property
    def trains_from_scratch(self) -> bool:
        """True if no pretrained weights are to be loaded."""
        if self.pretrained_model is None:
            return self.fp32_epochs > 0
        return self.pretrained_model.lower() == "none"


@dataclass
class EvalConfig(CommonConfig):
    """Measure Top1, Top5, speed and size of a checkpoint or of an exported model.

    Every attribute is the flag of that name; see ``python eval.py --help``.
    """

    path: str = flag(
        "",
        "float or QAT checkpoint (.pdparams, .safetensors, .tar or a folder of Paddle 1.x), "
        "exported model (its path without .pdmodel) or .onnx file",
        _MODEL,
        positional=True,
    )
    model: str | None = flag(
        None, "name of the network", _MODEL, unset="as in run.json beside the file"
    )
    data: str | None = flag(
        None, "data set", _DATA, unset="as in run.json, or imagenet", choices=DATASETS
    )
    batch_size: int = flag(64, "images per step", _DATA, low=1)
    max_images: int | None = flag(None, "look at that many images only", _DATA, unset="all", low=1)
    output: str | None = flag(None, "JSON file for the figures", _OUTPUT)
    details: str | None = flag(
        None,
        "folder for the confusion matrix (CSV and PNG), the figures of each class, the confused "
        "pairs and the single predictions; also adds them to --output",
        _OUTPUT,
        unset="none of that",
    )
    engine: str = flag(
        "auto",
        "what runs it: native (a checkpoint's network, by Paddle), paddle (plain CPU kernels of "
        "Paddle Inference), onednn (its int8 kernels), onnxruntime, openvino; auto takes native "
        "for a checkpoint, paddle or onednn for an exported model, onnxruntime for .onnx",
        _MACHINE,
        choices=ENGINES,
    )
    threads: int | None = flag(
        None, "CPU threads of the engine", _MACHINE, unset="its own choice", low=1, high=1024
    )

    def __post_init__(self) -> None:
        """Check every value, and what has to hold between them; raises as `CommonConfig`."""
        super().__post_init__()
        if self.model is not None:
            model_info(self.model)
        if not self.path:
            raise EngineError("path is empty; name a checkpoint or an exported model")


@dataclass
class ExportConfig(CommonConfig):
    """Turn a float or QAT checkpoint into a deployable int8 model and check that file.

    Every attribute is the flag of that name; see ``python export.py --help``. Quantization flags
    that are None are those of run.json beside the checkpoint, or else the defaults of `quant`.
    """

    checkpoint: str | None = flag(
        None,
        "float or QAT checkpoint (.pdparams, .safetensors, .tar or a folder of Paddle 1.x); "
        "with --check it may be left out",
        _MODEL,
        positional=True,
    )
    model: str | None = flag(
        None, "name of the network", _MODEL, unset="as in run.json beside the file"
    )
    data: str | None = flag(
        None, "data set", _DATA, unset="as in run.json, or imagenet", choices=DATASETS
    )
    batch_size: int = flag(32, "images per batch of calibration and of the check", _DATA, low=1)
    seed: int = flag(0, "seed of the choice of images", _DATA, low=0, high=2**31 - 1)

    calibration_batches: int | None = flag(
        None,
        "batches that set the activation scales of a float checkpoint",
        _QUANT,
        unset="16",
        low=1,
    )
    use_pact: bool | None = flag(None, "quantize with PACT", _QUANT, unset="as trained")
    pact_init: str | None = flag(
        None,
        "calibrated clips a float checkpoint's activations where calibration says",
        _QUANT,
        unset="as trained",
        choices=PACT_INITS,
    )
    weight_quantize_type: str | None = flag(
        None, "how weight scales are found", _QUANT, unset="as trained", choices=WEIGHT_TYPES
    )
    activation_quantize_type: str | None = flag(
        None,
        "how activation scales are found",
        _QUANT,
        unset="as trained",
        choices=ACTIVATION_TYPES,
    )
    weight_bits: int | None = flag(
        None, "bits of a weight", _QUANT, unset="as trained", low=2, high=8
    )
    activation_bits: int | None = flag(
        None, "bits of an activation", _QUANT, unset="as trained", low=2, high=8
    )
    moving_rate: float | None = flag(
        None,
        "how much of the past a moving average keeps",
        _QUANT,
        unset="as trained",
        above=0,
        below=1,
    )
    window_size: int | None = flag(
        None, "accepted and checked; none of the quantizers here uses it", _QUANT, low=1
    )
    skip_quant: list[str] | None = flag(
        None, "names of layers that stay float", _QUANT, unset="as trained"
    )
    deploy_target: str | None = flag(
        None,
        "whose integer arithmetic is simulated: any engine's, Paddle's with oneDNN, that of "
        "ONNX Runtime (and OpenVINO), of OpenVINO alone, or of TensorRT",
        _QUANT,
        unset="as trained",
        choices=DEPLOY_TARGETS,
    )

    output: str | None = flag(
        None,
        "path of the files to write, without .pdmodel; has to be given, except with --check, which "
        "then writes no report",
        _OUTPUT,
    )
    check: str | None = flag(
        None,
        "look at this int8 model (its path without .pdmodel) instead of writing one: what it "
        "stores, how it runs, and whether it is the network of CHECKPOINT, if that is given",
        _OUTPUT,
    )
    onnx: bool = flag(
        False,
        "write an ONNX file too; always for --deploy_target onnxruntime, openvino, tensorrt",
        _OUTPUT,
    )
    opset: int = flag(
        DEFAULT_OPSET, "operator set of it", _OUTPUT, low=LOWEST_OPSET, high=HIGHEST_OPSET
    )
    verify: bool = flag(True, "hold the written file against the network", _OUTPUT)
    verify_images: int = flag(256, "images on which that is done", _OUTPUT, low=1)
    verify_all_layers: bool = flag(
        False, "print the figures of each layer, not of the ten that differ most", _OUTPUT
    )

    def __post_init__(self) -> None:
        """Check every value, and what has to hold between them; raises as `CommonConfig`."""
        super().__post_init__()
        if self.model is not None:
            model_info(self.model)
        if self.check == "":
            raise EngineError("--check is empty; name an exported model")
        if self.check is not None:
            return
        if not self.checkpoint:
            raise EngineError("CHECKPOINT is required, a .pdparams or .safetensors file")
        if not self.output:
            raise EngineError("--output is missing; give the path of the files to write")


Config = TypeVar("Config", bound=CommonConfig)

_USAGE: dict[type, tuple[str, str]] = {
    TrainConfig: ("train.py [flags]", TRAIN_EXAMPLES),
    EvalConfig: ("eval.py PATH [flags]", EVAL_EXAMPLES),
    ExportConfig: (
        "export.py CHECKPOINT --output PREFIX [flags] | [CHECKPOINT] --check PREFIX [flags]",
        EXPORT_EXAMPLES,
    ),
}


def load_config(cls: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Read a configuration from the command line, and from the file that ``--config`` names.

    Args:
        cls: `TrainConfig`, `EvalConfig` or `ExportConfig`.
        argv: the words after the script's name; None takes those of this process.

    Raises:
        EngineError: if something is not as it has to be; one line.
        ModelError: if there is no such model.
        SystemExit: after ``--help`` was printed.
    """
    usage, examples = _USAGE[cls]
    words = sys.argv[1:] if argv is None else argv
    given, in_file = parse_flags(cls, words, GROUPS, usage, examples)
    for name, switch in SWITCHES.items():
        # Who switches something off on the command line means what the file says of it, too.
        if name in in_file and switch in given and switch not in in_file and not given[switch]:
            del given[name]
    try:
        return cls(**given)
    except (EngineError, ModelError) as error:
        named = [name for name in in_file if re.search(rf"--{name}\b", str(error))]
        if not named:
            raise
        origin = ", ".join(f"--{name}" for name in named)
        raise EngineError(f"{error} ({origin}: as {given['config']} says)") from error


def quant_config(cfg: TrainConfig | ExportConfig) -> dict[str, Any]:
    """Return the quantization dictionary that `quant.QAT` takes; what is not given is left out."""
    keys = (
        "pact_init",
        "pact_lr_factor",
        "pact_l2_decay",
        "weight_quantize_type",
        "activation_quantize_type",
        "weight_bits",
        "activation_bits",
        "window_size",
        "moving_rate",
        "skip_quant",
        "deploy_target",
    )
    given = {key: getattr(cfg, key, None) for key in keys}  # not every flag is one of export.py
    config = {key: value for key, value in given.items() if value is not None}
    if cfg.use_pact is not None:
        config["activation_preprocess_type"] = "PACT" if cfg.use_pact else None
    return config
