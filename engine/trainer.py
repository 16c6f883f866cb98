"""The main job, from top to bottom: float network, quantization-aware training, int8 file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from paddle import nn

from models import find_pretrained, model_info
from quant import QAT, Verdict, VerifyError, save_float_model

from . import checkpoint, distributed, termination
from .batch_norm import reestimate
from .checkpoint import CheckpointFolder, load_network_state, save_weights
from .config import TrainConfig
from .evaluation import Evaluation, agreement, evaluate, evaluate_network
from .export import export_onnx
from .inference import file_forward, first_batches, onnx_forward, stored_bytes
from .matching import LISTED, load_into
from .plots import plot_curves
from .printable import first
from .resume import CURVES_FILE, INFERENCE_FOLDER, open_session
from .runtime import seed_everything, select_device
from .summary import Summary
from .training import Stage, Trainer

EXIT_OK = 0
EXIT_NOT_THE_NETWORK = 1


def train(cfg: TrainConfig) -> int:
    """Run ``train.py``.

    Returns:
        The exit code: 0, or 1 if the exported file does not compute what the network computes.

    Raises:
        DataError, EngineError, ModelError, QuantError: something is not usable as it is.
        Terminated: SIGTERM came.
    """
    distributed.init(select_device(cfg.use_gpu))
    checkpoints = CheckpointFolder(Path(cfg.model_save_dir))
    with distributed.lost_peers_named(), termination.handled(checkpoints.way_on):
        return Job(cfg).run()


class Job:
    """One run of ``train.py``.

    Args:
        cfg: the flags.
    """

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg = cfg
        self.session, self.latest = open_session(cfg)
        self.log = self.session.log
        self.progress = self.session.progress
        self.checkpoints = self.session.checkpoints
        self.summary = Summary(model=self.session.task.model)
        self.files = self.checkpoints.folder / INFERENCE_FOLDER

    def run(self) -> int:
        """The whole story; returns the exit code."""
        task = self.session.task
        self.log.line(
            f"{task.model}: {task.num_classes} classes, {len(self.session.train_data)} training "
            f"and {len(self.session.val_data)} evaluation images of {task.data}, "
            f"{distributed.world_size()} process(es)"
        )
        seed_everything(self.cfg.seed)
        net = task.build_network()
        self.float_stage(net)
        self.export_float(net)

        # Another object with the same weights: data parallel training leaves hooks in the first.
        net = task.build_network()
        load(net, self.checkpoints.fp32_path)
        quanter = QAT(task.quantization)
        quanter.quantize(net, input_spec=task.input_spec())
        self.qat_stage(net, quanter)
        best = self.evaluate_best(net)
        return self.deploy(net, quanter, best)

    # --- the float network -----------------------------------------------------------------

    def float_stage(self, net: nn.Layer) -> None:
        """Leave in ``net``, and on disk, the float network that QAT starts from.

        It is loaded, trained, or random, as the flags say.
        """
        cfg, progress = self.cfg, self.progress
        if progress.stage == checkpoint.QAT:
            load(net, self.checkpoints.fp32_path)
            self.summary.fp32 = progress.results["fp32"]
            self.summary.images_per_second.update(progress.results["images_per_second"])
            return
        if not cfg.trains_from_scratch and self.latest is None:
            self._load_pretrained(net)
        if cfg.fp32_epochs > 0:
            lr = cfg.fp32_lr or cfg.lr
            # The float stage is short, so it ends at zero whatever --lr_strategy is.
            stage = Stage(checkpoint.FP32, cfg.fp32_epochs, lr, lr_strategy="cosine_decay")
            Trainer(self.session, stage).run(net, self.latest)
            load(net, self.checkpoints.fp32_path)
        elif distributed.is_main():
            save_weights(net, self.checkpoints.fp32_path)
        distributed.barrier()
        if cfg.fp32_epochs > 0 or not cfg.trains_from_scratch:
            self._report("fp32", "float network", self._evaluate(net))
        progress.results = {
            "fp32": self.summary.fp32,
            "images_per_second": dict(self.summary.images_per_second),
        }

    def _load_pretrained(self, net: nn.Layer) -> None:
        given = self.cfg.pretrained_model
        info = model_info(self.session.task.model)
        if given is None and distributed.is_main():
            find_pretrained(info)  # one process downloads, then all find the file
        distributed.barrier()
        path = find_pretrained(info) if given is None else Path(given)
        state = load_network_state(path)
        found = load_into(net, state, path, allow_partial=self.cfg.allow_partial)
        self.log.line(f"weights: {path}")
        if found.mismatches:
            self.log.warn(
                f"{path}: {found.loaded} of the network's {found.total} tensors were loaded, the "
                f"others keep their initial values; {len(found.mismatches)} tensors do not match: "
                f"{first(found.mismatches, LISTED)}"
            )

    def export_float(self, net: nn.Layer) -> None:
        """Write the float network as an inference model, to compare the int8 one with."""
        prefix = self.files / "fp32_model"
        if distributed.is_main():
            self.files.mkdir(parents=True, exist_ok=True)
            save_float_model(net, str(prefix), self.session.task.input_spec())
        distributed.barrier()
        self.summary.sizes_bytes["fp32"] = stored_bytes(prefix)
        if self.summary.fp32 is not None:
            self._report("fp32_exported", "float file", self._evaluate_file(prefix, "paddle"))

    # --- quantization-aware training -------------------------------------------------------

    def qat_stage(self, net: nn.Layer, quanter: QAT) -> None:
        """Train the quantized network and leave in ``net`` the best one of all epochs."""
        cfg = self.cfg
        resumed = self.latest if self.progress.stage == checkpoint.QAT else None
        if resumed is None:
            self.progress.begin(checkpoint.QAT)
            if cfg.trains_from_scratch and cfg.fp32_epochs == 0:
                # BatchNorm has no statistics yet: what flows in evaluation says nothing about what
                # will flow in training, and a PACT that starts there never recovers.
                self.log.line("random weights: activation scales start with the first batch")
            elif cfg.calibration_batches > 0:
                count = quanter.calibrate(net, self.session.calibration_batches())
                self.log.line(f"activation scales calibrated on {count} batches")
        stage = Stage(
            name=checkpoint.QAT,
            epochs=cfg.num_epochs,
            lr=cfg.lr,
            lr_strategy=cfg.lr_strategy,
            freeze_epoch=cfg.freeze_epoch,
            freeze=quanter.freeze,
            teacher=self._teacher() if cfg.distill else None,
        )
        Trainer(self.session, stage).run(net, resumed)
        load(net, self.checkpoints.best_path)

    def _teacher(self) -> nn.Layer:
        """The float network that QAT started from, for good."""
        teacher = self.session.task.build_network()
        load(teacher, self.checkpoints.fp32_path)
        for parameter in teacher.parameters():
            parameter.stop_gradient = True
        return teacher

    def evaluate_best(self, net: nn.Layer) -> Evaluation:
        """Evaluate the best network, also with BatchNorm statistics measured anew if asked to.

        The new ones are kept, in ``net`` and in ``best_model.pdparams``, if Top1 is not lower.
        """
        if self.cfg.reestimate_bn_batches == 0:
            return self._evaluate(net)
        # Not best_model, which holds new statistics already where a finished run is resumed.
        path = self.checkpoints.epoch_path(self.progress.best_epoch or 0)
        load(net, path)
        before = self._evaluate(net)
        count = reestimate(net, self.session.reestimation_batches())
        if count == 0:
            self.log.line("the network has no BatchNorm whose statistics could be measured anew")
            return before
        after = self._evaluate(net)
        kept = after.metrics.top1 >= before.metrics.top1
        self.summary.reestimated_bn = {
            "batches": count,
            "top1_before": before.metrics.top1,
            "top1_after": after.metrics.top1,
            "kept": kept,
        }
        self.log.line(
            f"BatchNorm statistics of {count} batches: top1 {after.metrics.top1:.4f}, before "
            f"{before.metrics.top1:.4f}; {'kept' if kept else 'not kept'}"
        )
        if not kept:
            load(net, path)
            return before
        if distributed.is_main():
            save_weights(net, self.checkpoints.best_path)
        distributed.barrier()
        return after

    # --- the int8 file ---------------------------------------------------------------------

    def deploy(self, net: nn.Layer, quanter: QAT, qat: Evaluation) -> int:
        """Export the best network, hold the file against it, and report; returns the exit code.

        Args:
            net: the best network.
            quanter: what has quantized it.
            qat: its evaluation.
        """
        summary, log = self.summary, self.log
        prefix = self.files / "qat_model"
        summary.best_epoch = self.progress.best_epoch
        self._report("qat", f"fake-quant network of epoch {summary.best_epoch}", qat)
        if distributed.is_main():
            self._export(net, quanter, prefix)
        passed = distributed.sum_over_ranks(np.array([float(summary.verified is True)]))[0] > 0
        summary.sizes_bytes["int8"] = stored_bytes(prefix)
        if self._writes_onnx:
            summary.sizes_bytes["onnx"] = os.path.getsize(f"{prefix}.onnx")
        if passed:
            self._evaluate_int8(prefix, qat)
        if distributed.is_main():
            summary.write(self.checkpoints.folder)
            plot_curves(log.path, self.checkpoints.folder / CURVES_FILE)
        log.line(summary.table())
        if passed:
            endings = [".pdmodel", ".pdiparams", *([".onnx"] if self._writes_onnx else [])]
            log.line(f"done: {', '.join(f'{prefix}{ending}' for ending in endings)}")
            return EXIT_OK
        if distributed.is_main():
            first = summary.verification is not None and not summary.verification["passed"]
            print(
                f"error: {prefix}{'.pdmodel' if first else '.onnx'} is not the network that was "
                "trained: it departs from it by more than float noise explains (see the figures "
                "above)",
                file=sys.stderr,
            )
        return EXIT_NOT_THE_NETWORK

    @property
    def _writes_onnx(self) -> bool:
        return self.cfg.onnx or self.session.task.target.is_for_onnx

    def _export(self, net: nn.Layer, quanter: QAT, prefix: Path) -> None:
        task, summary = self.session.task, self.summary
        receipt = quanter.save_quantized_model(net, str(prefix), task.input_spec())
        self.log.line(str(receipt))
        verdict = self._verify(net, quanter, str(prefix))
        summary.verified = verdict.passed
        summary.verification = verdict.to_dict()
        if not self._writes_onnx:
            return
        path = f"{prefix}.onnx"
        receipt = export_onnx(quanter, net, path, task, self.progress.flags)
        self.log.line(f"{path}: {receipt.params_bytes:,} bytes")
        verdict = self._verify(net, quanter, path)
        summary.verified = summary.verified and verdict.passed
        summary.verification_onnx = verdict.to_dict()

    def _verify(self, net: nn.Layer, quanter: QAT, file: str) -> Verdict:
        session = self.session
        batches = first_batches(session.val_data, self.cfg.verify_images, session.eval_batch_size)
        verdict = quanter.verify(net, file, batches)
        self.log.line(str(verdict))
        return verdict

    def _evaluate_int8(self, prefix: Path, qat: Evaluation) -> None:
        summary, target = self.summary, self.session.task.target
        engine = target.engine
        int8 = self._evaluate_file(prefix, engine)
        summary.int8_engine = engine
        self._report("int8", summary.int8_title(engine), int8)
        summary.agreement_int8_qat = agreement(int8.choices, qat.choices)
        if self._writes_onnx:
            summary.int8_onnx_engine = target.onnx_engine
            file = onnx_forward(Path(f"{prefix}.onnx"), target.onnx_engine)
            onnx = evaluate(file, self.session.evaluation_batches(), with_loss=False)
            self._report("int8_onnx", summary.onnx_title, onnx)
            summary.agreement_onnx_qat = agreement(onnx.choices, qat.choices)
        if engine == "onednn" or "onednn" not in target.engines:
            return
        try:
            onednn = self._evaluate_file(prefix, "onednn")
        except VerifyError as error:
            self.log.warn(f"the int8 file was not evaluated with oneDNN: {error}")
            return
        self._report("int8_onednn", "int8 file, oneDNN", onednn)
        summary.agreement_onednn_qat = agreement(onednn.choices, qat.choices)

    # --- evaluation ------------------------------------------------------------------------

    def _evaluate(self, net: nn.Layer) -> Evaluation:
        return evaluate_network(net, self.session.evaluation_batches())

    def _evaluate_file(self, prefix: Path, engine: str) -> Evaluation:
        batches = self.session.evaluation_batches()
        return evaluate(file_forward(prefix, engine), batches, with_loss=False)

    def _report(self, stage: str, title: str, found: Evaluation) -> None:
        self.summary.add(stage, found)
        metrics = found.metrics
        self.log.line(f"{title}: top1 {metrics.top1:.4f}, top5 {metrics.top5:.4f}")


def load(net: nn.Layer, path: Path) -> None:
    """Set all parameters and buffers of a network from a checkpoint.

    Raises:
        EngineError: the file cannot be read, or belongs to another network.
    """
    load_into(net, load_network_state(path), path)
