"""One stage of training: epochs of momentum SGD, each with an evaluation and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn
from paddle.optimizer.lr import LRScheduler

from . import distributed
from .accumulation import parts_of_epoch
from .checkpoint import FP32, Latest, Progress, restore, save_weights
from .distillation import Distillation
from .ema import follow
from .errors import EngineError
from .evaluation import Evaluation, evaluate_network
from .finite import nonfinite_tensors
from .logging import RunLog
from .loss import Criterion, label_criterion
from .metrics import MetricSums
from .optimizer import build_optimizer
from .precision import Precision, build_precision
from .runtime import seed_everything
from .schedule import build_schedule, steps_in_epoch
from .session import Session
from .step import TrainStep
from .termination import Terminated, deferred

_ADVICE = "a smaller --lr (--fp32_lr in the float stage) usually helps"


@dataclass(frozen=True)
class Stage:
    """What differs between the float stage and the quantized one.

    Attributes:
        name: ``"fp32"`` or ``"qat"``.
        epochs: number of epochs.
        lr: learning rate of the first step.
        lr_strategy: as the flag.
        freeze_epoch: from this epoch on ``freeze`` is called before training; None for never.
        freeze: stops observers and BatchNorm statistics of a network.
        teacher: a network whose outputs are learned too (`Distillation`); None for labels alone.
    """

    name: str
    epochs: int
    lr: float
    lr_strategy: str
    freeze_epoch: int | None = None
    freeze: Callable[[nn.Layer], None] | None = None
    teacher: nn.Layer | None = None


class Trainer:
    """Trains a network through one stage.

    Args:
        session: the run.
        stage: the stage.
    """

    def __init__(self, session: Session, stage: Stage) -> None:
        self.session = session
        self.cfg = session.cfg
        self.log = session.log
        self.progress = session.progress
        self.stage = stage

    def run(self, net: nn.Layer, latest: Latest | None) -> None:
        """Train, evaluate after each epoch, save.

        Args:
            net: the network; afterwards it is that of the last step (the best one, with
                ``--ema_decay`` of averaged weights, is on disk).
            latest: where to go on from, or None to begin.

        Raises:
            EngineError: more steps than ``--max_nonfinite_steps`` had a loss or gradient that is
                not finite, or a file cannot be written.
            Terminated: SIGTERM came; what was trained is in ``latest``.
            DataError: an image cannot be read.
        """
        # Paddle numbers the optimizer's buffers by how many of the name there were in the process;
        # a name space of its own gives each stage the same names, resumed or not.
        with paddle.utils.unique_name.guard():
            self._run(net, latest)

    def _run(self, net: nn.Layer, latest: Latest | None) -> None:
        progress, stage = self.progress, self.stage
        step = self._build_step(net, latest)
        while True:
            if progress.unevaluated is None:
                if progress.epoch >= stage.epochs or self._is_stopped():
                    break
                epoch = progress.epoch
                if stage.freeze is not None and stage.freeze_epoch is not None:
                    if epoch >= stage.freeze_epoch:
                        stage.freeze(net)
                with deferred():
                    stops = self._train_epoch(net, step)
                    step.weights.agree()
                    progress.unevaluated = epoch
                    self._save_latest(net, step)
                if stops:
                    raise self._terminated()
            found = evaluate_network(step.weights.net, self.session.evaluation_batches())
            with deferred():
                self._finish_epoch(net, step, found)
        if progress.nonfinite_steps:
            self.log.warn(
                f"{progress.nonfinite_steps} of {progress.steps} steps of the {stage.name} stage "
                f"were left out, as their loss or gradients were not finite; {_ADVICE}"
            )

    def _build_step(self, net: nn.Layer, latest: Latest | None) -> TrainStep:
        cfg, progress = self.cfg, self.progress
        schedule = self._schedule()
        optimizer = build_optimizer(net, schedule, cfg.momentum_rate, cfg.l2_decay)
        precision = build_precision(self.session.amp_dtype)
        weights = follow(net, cfg.ema_decay)
        if latest is not None:
            restore(latest, net, optimizer, schedule, progress.steps)
            weights.restore(latest)
            precision.restore(progress.precision)
        criterion = self._criterion(precision)
        return TrainStep(
            distributed.data_parallel(net),
            criterion,
            precision,
            optimizer,
            schedule,
            weights,
        )

    def _criterion(self, precision: Precision) -> Criterion:
        cfg, teacher = self.cfg, self.stage.teacher
        labels = label_criterion(cfg.ls_epsilon)
        if teacher is None:
            return labels
        return Distillation(
            teacher, labels, cfg.distill_weight, cfg.distill_temperature, precision.autocast
        )

    def _schedule(self) -> LRScheduler:
        cfg, stage = self.cfg, self.stage
        images_per_batch = cfg.batch_size * distributed.world_size()
        batches = len(self.session.training_batches(epoch=0))
        length = steps_in_epoch(batches, cfg.total_images, images_per_batch, cfg.accumulate_steps)
        return build_schedule(
            stage.lr_strategy, stage.lr, length, stage.epochs, cfg.step_epochs, cfg.warmup_epochs
        )

    def _stream(self, epoch: int) -> int:
        """Number of the epoch over both stages, so that QAT sees another order than the floats."""
        return epoch if self.stage.name == FP32 else epoch + self.cfg.fp32_epochs

    def _is_stopped(self) -> bool:
        return self.cfg.max_steps is not None and self.progress.steps >= self.cfg.max_steps

    def _terminated(self) -> Terminated:
        return Terminated(f"after step {self.progress.steps} of the {self.stage.name} stage")

    def _train_epoch(self, net: nn.Layer, step: TrainStep) -> bool:
        """Returns whether a process was asked to end while the last step ran."""
        cfg, progress = self.cfg, self.progress
        step.network.train()
        epoch = self._stream(progress.epoch)
        loader = self.session.training_batches(epoch, progress.batch)
        batches_left = len(loader)
        parts = parts_of_epoch(
            self.session.images_per_process, cfg.batch_size, cfg.accumulate_steps, progress.batch
        )
        window = _Window(self.log, self.stage.name, step.precision, progress.window)
        progress.window = []
        stops = False
        batches = self.log.progress(
            loader, batches_left, f"{self.stage.name} epoch {progress.epoch}"
        )
        for (images, labels), part in zip(batches, parts):
            window.batch_arrived()
            seed_everything(cfg.seed, epoch, progress.batch, distributed.rank())
            logits, loss = step.add(images, labels, part)
            window.batch_done(logits, labels, loss)
            progress.batch += 1
            batches_left -= 1
            if not part.ends_step:
                continue
            done = step.finish(progress.steps)
            stops = done.stops
            self._judge(done.fault)
            window.step_done(counts=done.fault is None)
            progress.steps += 1
            at_end = batches_left == 0 or self._is_stopped()
            if at_end or progress.steps % cfg.log_period == 0:
                window.close(progress, done.lr)
            if at_end:
                break
            if stops or progress.steps % cfg.save_steps == 0:
                progress.window = window.sums()
                self._check_finite(net)
                step.weights.agree()
                self._save_latest(net, step)
                progress.window = []
            if stops:
                raise self._terminated()
        self._check_finite(net)
        if batches_left == 0:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        return stops

    def _judge(self, fault: str | None) -> None:
        """Count a step that was left out, or end the run.

        Raises:
            EngineError: there were as many as are allowed before this one.
        """
        if fault is None:
            return
        progress, allowed = self.progress, self.cfg.max_nonfinite_steps
        where = f"at step {progress.steps + 1} of the {self.stage.name} stage"
        what, _, origin = fault.partition(": ")
        line = f"{what} {where}" + (f": {origin}" if origin else "")
        if progress.nonfinite_steps >= allowed:
            spent = f"; --max_nonfinite_steps={allowed} were left out before it" if allowed else ""
            raise EngineError(f"{line}{spent}; {_ADVICE}")
        progress.nonfinite_steps += 1
        self.log.warn(f"{line}; the step is left out, {progress.nonfinite_steps} of {allowed}")

    def _check_finite(self, net: nn.Layer) -> None:
        """No checkpoint is written with weights that nothing can be done with.

        The loss alone does not tell: it is that of the weights before the step.
        """
        spoilt = nonfinite_tensors(net)
        if spoilt:
            raise EngineError(
                f"{spoilt[0]} is not finite after step {self.progress.steps} of the "
                f"{self.stage.name} stage; {_ADVICE}"
            )

    def _report(self, epoch: int, found: Evaluation) -> None:
        metrics = found.metrics
        self.log.record(
            {
                "epoch": epoch,
                "step": self.progress.steps,
                "stage": self.stage.name,
                "split": "val",
                "loss": metrics.loss,
                **metrics.accuracies(),
                "lr": None,
                "images_per_second": found.images_per_second,
            }
        )
        self.log.line(
            f"{self.stage.name} epoch {epoch} evaluation: loss {metrics.loss:.4f}, "
            f"top1 {metrics.top1:.4f}, top5 {metrics.top5:.4f}, {metrics.num_images} images"
        )

    def _finish_epoch(self, net: nn.Layer, step: TrainStep, found: Evaluation) -> None:
        """Report, and checkpoints of a finished (or stopped) epoch, of what was evaluated."""
        progress, top1 = self.progress, found.metrics.top1
        epoch = progress.unevaluated
        assert epoch is not None
        self._report(epoch, found)
        evaluated = step.weights.net
        is_best = progress.best_top1 is None or top1 > progress.best_top1
        if is_best:
            progress.best_top1, progress.best_epoch = top1, epoch
        if distributed.is_main():
            if self.stage.name == FP32:
                if is_best:
                    save_weights(evaluated, self.session.checkpoints.fp32_path)
            else:
                self.session.checkpoints.save_epoch(
                    epoch, evaluated, step.optimizer, progress.best_epoch
                )
                if is_best:
                    self.session.checkpoints.mark_best(epoch)
        progress.unevaluated = None
        self._save_latest(net, step)

    def _save_latest(self, net: nn.Layer, step: TrainStep) -> None:
        """What a resumed run needs; always between two steps, so no gradient is among it."""
        if distributed.is_main():
            self.progress.log_bytes = self.log.bytes_written()
            self.progress.precision = step.precision.state()
            self.session.checkpoints.save_latest(
                net, step.optimizer, self.progress, step.weights.state()
            )
        # Nobody runs ahead into what a crash now would make it do again; and best_model is there.
        distributed.barrier()


class _Window:
    """Figures between two lines of the log."""

    def __init__(
        self, log: RunLog, stage: str, precision: Precision, sums: Sequence[float] = ()
    ) -> None:
        self._log = log
        self._stage = stage
        self._precision = precision
        self._clear()
        if sums:
            self._sums.begin(list(sums))

    def _clear(self) -> None:
        self._sums = MetricSums()
        self._step: list[tuple[Tensor, Tensor, Tensor]] = []
        self._images = self._batches = 0
        self._waiting = 0.0
        self._start = self._last = time.perf_counter()

    def batch_arrived(self) -> None:
        """Count the time since the last batch was done as reading."""
        self._waiting += time.perf_counter() - self._last

    def batch_done(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count the time of one batch; the figures wait for the end of the step."""
        self._step.append((logits.detach(), labels, loss.detach()))
        self._images += int(logits.shape[0])
        self._batches += 1
        self._last = time.perf_counter()

    def step_done(self, counts: bool) -> None:
        """Count the figures of a step's batches, unless it was left out."""
        for logits, labels, loss in self._step if counts else []:
            self._sums.add(logits, labels, loss)
        self._step = []

    def sums(self) -> list[float]:
        """What a resumed run needs to write the same figures; no times (a collective call)."""
        return self._sums.take()

    def close(self, progress: Progress, lr: float) -> None:
        """Write the figures and begin anew (a collective call)."""
        metrics = self._sums.result()  # waits for the device
        seconds = time.perf_counter() - self._start
        speed = self._images * distributed.world_size() / seconds
        reader_cost, batch_cost = self._waiting / self._batches, seconds / self._batches
        self._clear()
        if metrics.num_images == 0:  # every step was left out
            return
        left_out = {"nonfinite_steps": progress.nonfinite_steps} if progress.nonfinite_steps else {}
        self._log.record(
            {
                "epoch": progress.epoch,
                "step": progress.steps,
                "stage": self._stage,
                "split": "train",
                "loss": metrics.loss,
                **metrics.accuracies(),
                "lr": lr,
                "reader_cost": reader_cost,
                "batch_cost": batch_cost,
                "images_per_second": speed,
                **left_out,
                **self._precision.state(),
            }
        )
        self._log.line(
            f"{self._stage} epoch {progress.epoch} step {progress.steps}: "
            f"loss {metrics.loss:.4f}, top1 {metrics.top1:.4f}, top5 {metrics.top5:.4f}, "
            f"lr {lr:.3g}, reader cost {reader_cost:.4f} s, batch cost {batch_cost:.4f} s, "
            f"{speed:.1f} images/s{self._precision.note()}"
        )
