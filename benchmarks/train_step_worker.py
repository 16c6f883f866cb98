"""One variant of train_step.py: takes a step for each line it reads, and answers with JSON."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 1000
Step = Callable[[], Any]


def main() -> None:
    """Builds the variant and answers until its input ends."""
    variant, model = sys.argv[1:3]
    batch_size, image_size, threads = map(int, sys.argv[3:6])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size, 3, image_size, image_size)).astype(np.float32)
    y = rng.integers(0, CLASSES, (batch_size, 1))
    importlib.import_module("torch" if variant.startswith("torch") else "paddle")
    before = peak()
    if variant.startswith("torch"):
        step = torch_step(variant, model, x, y, threads)
    else:
        step = paddle_step(variant, model, x, y)
    answer({"ready": variant})
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        answer({"seconds": seconds, "bytes": peak() - before})


def answer(content: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(content), flush=True)


def peak() -> int:
    """The most memory that the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def paddle_step(variant: str, model: str, x: np.ndarray, y: np.ndarray) -> Step:
    """A step of a network of ours."""
    import paddle

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from engine.memory import keep_freed_memory
    from models import build_model
    from quant import QAT, recomputing_inputs

    paddle.seed(0)
    net = build_model(model, CLASSES)
    if variant == "paddle":
        from paddle.quantization import ImperativeQuantAware

        ImperativeQuantAware(
            weight_quantize_type="channel_wise_abs_max",
            activation_quantize_type="moving_average_abs_max",
        ).quantize(net)
    elif variant not in ("float", "default", "evaluate_float"):
        pact = {"activation_preprocess_type": "PACT"} if variant == "pact" else {}
        QAT(pact).quantize(net)
    if variant not in ("paddle", "default"):
        keep_freed_memory()
    images, labels = paddle.to_tensor(x), paddle.to_tensor(y)
    optimizer = paddle.optimizer.Momentum(0.001, parameters=net.parameters())
    net.train()

    def train() -> None:
        with recomputing_inputs():  # as engine/step.py does; for other networks it does nothing
            loss = paddle.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        loss.item()

    def evaluate() -> None:
        with paddle.no_grad():
            net(images).sum().item()

    if not variant.startswith("evaluate"):
        return train
    net(images)  # scales
    net.eval()
    return evaluate


def torch_step(variant: str, model: str, x: np.ndarray, y: np.ndarray, threads: int) -> Step:
    """A step of the network of the same name in torchvision."""
    import torch
    import torchvision

    torch.set_num_threads(threads)
    names = {"mobilenet_v3": "mobilenet_v3_large"}
    net = torchvision.models.get_model(names.get(model, model), num_classes=CLASSES)
    images, labels = torch.from_numpy(x), torch.from_numpy(y[:, 0])
    if variant == "torch_fx":
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        net.train()
        net = prepare_qat_fx(net, get_default_qat_qconfig_mapping("x86"), (images,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    net.train()

    def train() -> None:
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return train


if __name__ == "__main__":
    main()
