"""What a run ends with: ``summary.json`` and a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quant.verify import NAMES

from .evaluation import Evaluation
from .files import write_json

SUMMARY_FILE = "summary.json"

Accuracies = dict[str, float]


@dataclass
class Summary:
    """The content of ``summary.json``. Fractions of 1; None where a stage was not run.

    Attributes:
        model: name of the network.
        fp32: Top1 and Top5 of the float network that QAT started from.
        qat: the same of the best fake-quant network.
        int8: of the exported int8 file, run by the engine that it is for.
        int8_engine: that engine: ``"paddle"`` (its plain CPU kernels) or ``"onednn"``.
        int8_onednn: of the same file, run by oneDNN's int8 kernels, where that is another engine.
        int8_onnx: of the int8 ONNX file, where one was written, run by `int8_onnx_engine`.
        fp32_exported: of the exported float file.
        sizes_bytes: size of the ``.pdiparams`` of the exported float and int8 model, and of the
            ``.onnx`` file.
        agreement_int8_qat: fraction of images for which the file and the fake-quant network chose
            the same class.
        agreement_onednn_qat: the same with oneDNN.
        agreement_onnx_qat: the same with the ONNX file.
        images_per_second: speed of each stage, reading left out.
        num_images: images that each figure stands for.
        best_epoch: QAT epoch of the best model, from 0.
        reestimated_bn: with ``--reestimate_bn_batches``: the ``batches`` of each process,
            ``top1_before`` and ``top1_after``, and whether the new statistics were ``kept``.
        verified: whether each exported file computes what the network computes.
        verification: the figures behind that.
        verification_onnx: those of the ONNX file.
    """

    model: str
    fp32: Accuracies | None = None
    qat: Accuracies | None = None
    int8: Accuracies | None = None
    int8_engine: str | None = None
    int8_onednn: Accuracies | None = None
    int8_onnx: Accuracies | None = None
    int8_onnx_engine: str | None = None
    fp32_exported: Accuracies | None = None
    sizes_bytes: dict[str, int | None] = field(default_factory=lambda: {"fp32": None, "int8": None})
    agreement_int8_qat: float | None = None
    agreement_onednn_qat: float | None = None
    agreement_onnx_qat: float | None = None
    images_per_second: dict[str, float] = field(default_factory=dict)
    num_images: int | None = None
    best_epoch: int | None = None
    reestimated_bn: dict[str, Any] | None = None
    verified: bool | None = None
    verification: dict[str, Any] | None = None
    verification_onnx: dict[str, Any] | None = None

    def add(self, stage: str, found: Evaluation) -> None:
        """Take over the figures of one stage, named like the attribute."""
        setattr(self, stage, found.metrics.accuracies())
        self.images_per_second[stage] = found.images_per_second
        self.num_images = found.metrics.num_images

    @staticmethod
    def int8_title(engine: str | None) -> str:
        """What the table calls the int8 file where `engine` runs it."""
        return "int8 file, oneDNN" if engine == "onednn" else "int8 file"

    @property
    def onnx_title(self) -> str:
        """What the table calls the ONNX file."""
        return f"ONNX file, {NAMES[self.int8_onnx_engine or 'onnxruntime']}"

    def write(self, folder: Path) -> None:
        """Write ``summary.json``."""
        write_json(folder / SUMMARY_FILE, asdict(self))

    def table(self) -> str:
        """The figures of each stage that was run, one line a stage."""
        rows = [
            ("float network", "fp32", None, None),
            ("float file", "fp32_exported", self.sizes_bytes["fp32"], None),
            ("fake-quant network", "qat", None, None),
            (
                self.int8_title(self.int8_engine),
                "int8",
                self.sizes_bytes["int8"],
                self.agreement_int8_qat,
            ),
            (
                "int8 file, oneDNN",
                "int8_onednn",
                self.sizes_bytes["int8"],
                self.agreement_onednn_qat,
            ),
            (
                self.onnx_title,
                "int8_onnx",
                self.sizes_bytes.get("onnx"),
                self.agreement_onnx_qat,
            ),
        ]
        head = ("stage", "Top1", "Top5", "size", "images/s", "same Top1 as the network")
        lines: list[tuple[str, ...]] = [head]
        for title, stage, size, agreement in rows:
            accuracies: Accuracies | None = getattr(self, stage)
            if accuracies is None:
                continue
            speed = self.images_per_second.get(stage)
            lines.append(
                (
                    title,
                    f"{accuracies['top1']:.2%}",
                    f"{accuracies['top5']:.2%}",
                    "" if size is None else format_bytes(size),
                    "" if speed is None else f"{speed:.0f}",
                    "" if agreement is None else f"{agreement:.2%}",
                )
            )
        return format_table(lines)


def format_bytes(size: int) -> str:
    """A size in units of 1000 bytes."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} GB"


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Rows of text, the first being the head: the first column flush left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)
