"""The kinds of files that fuzz.py damages: how a whole one is made, and what reads it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        name: what to call it.
        ending: of the file's name.
        seeds: makes whole files in a folder; what belongs to them goes into `partners` beside it.
        reader: returns what reads a file, and the errors that it may raise.
        is_engine: whether a C++ engine works on it, in a process of its own outside of this test.
        one_line: whether its errors have to be one line.
    """

    name: str
    ending: str
    seeds: Callable[[Path, Path], None]
    reader: Callable[[], tuple[Read, tuple[type[BaseException], ...]]]
    is_engine: bool = False
    one_line: bool = True

    def make(self, folder: Path) -> None:
        """Make whole files."""
        (folder / "seeds").mkdir()
        (folder / "partners").mkdir()
        self.seeds(folder / "seeds", folder / "partners")

    def open(self) -> tuple[Read, tuple[type[BaseException], ...]]:
        """What reads a file, and the errors that it may raise."""
        return self.reader()

    def read_whole(self, read: Read, folder: Path, place: Path, path: Path) -> None:
        """Read each whole file once; the partners then stand where the damaged ones will."""
        for file in (folder / "partners").iterdir():
            shutil.copy(file, place)
        for file in sorted((folder / "seeds").iterdir()):
            shutil.copy(file, path)
            read(path)


# --- settings and lists --------------------------------------------------------------------


def _yaml_seeds(seeds: Path, partners: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    for file in (root / "configs").glob("*.yaml"):
        shutil.copy(file, seeds)


def _yaml_reader() -> Any:
    from engine.config import TrainConfig, load_config
    from engine.errors import EngineError
    from models import ModelError

    return (lambda path: load_config(TrainConfig, ["--config", str(path)])), (
        EngineError,
        ModelError,
    )


def _list_seeds(seeds: Path, partners: Path) -> None:
    (seeds / "a.txt").write_text("".join(f"train/n{i:04}/x {i}.JPEG {i % 7}\n" for i in range(50)))
    (seeds / "b.txt").write_bytes("ein/bä r.png 3\r\n\n\tx 1\n".encode("latin-1"))


def _list_reader() -> Any:
    from data import DataError
    from data.imagenet import read_image_list

    def read(path: Path) -> None:
        names, labels, lines = read_image_list(path)
        assert len(names) == len(labels) == len(lines) > 0
        assert labels.min() >= 0 and not any(".." in name.split("/") for name in names)

    return read, (DataError,)


def _run_seeds(seeds: Path, partners: Path) -> None:
    run = {
        "model": "lenet",
        "num_classes": 10,
        "data": "fashion_mnist",
        "input": {"image_size": 28, "channels": 1, "mean": [0.5], "std": [0.25]},
        "quantization": {"weight_bits": 8, "deploy_target": "onednn"},
        "class_names": ["a", "b"],
    }
    (seeds / "run.json").write_text(json.dumps(run, indent=1))


def _run_reader() -> Any:
    from data import DataError
    from engine.config import EvalConfig
    from engine.errors import EngineError
    from engine.files import read_json
    from engine.run_file import check_known
    from engine.task import task_of_file
    from models import ModelError
    from quant import QuantError

    def read(path: Path) -> None:
        known = check_known(str(path), read_json(path))
        task_of_file(EvalConfig(path="x"), path, needs_network=True, known=known)

    return read, (DataError, EngineError, ModelError, QuantError)


# --- images --------------------------------------------------------------------------------


def _idx_seeds(seeds: Path, partners: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 9, 9), dtype=np.uint8)
    (seeds / "a").write_bytes(
        bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()
    )


def _gzip_seeds(seeds: Path, partners: Path) -> None:
    _idx_seeds(seeds, partners)
    content = (seeds / "a").read_bytes()
    (seeds / "a").write_bytes(gzip.compress(content))


def _idx_reader() -> Any:
    from data import DataError
    from data.idx import read_idx

    return (lambda path: read_idx(path, 3)), (DataError,)


def _picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.repeat(np.repeat(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), 9, 0), 9, 1)


def _image_seeds(ending: str) -> Callable[[Path, Path], None]:
    def make(seeds: Path, partners: Path) -> None:
        import cv2

        for i, image in enumerate((_picture(), _picture()[:, :, 0])):
            cv2.imwrite(str(seeds / f"{i}{ending}"), image)
        if ending == ".jpg":
            options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
            cv2.imwrite(str(seeds / "progressive.jpg"), _picture(), options)

    return make


def _image_reader() -> Any:
    from data import DataError, InputConfig
    from data.image_file import ImageFile
    from data.transforms import random_resized_crop

    config = InputConfig(image_size=16)

    def read(path: Path) -> None:
        image = ImageFile(str(path))
        pixels = image.decode(3)
        assert pixels.shape == (image.height, image.width, 3), pixels.shape
        random_resized_crop(ImageFile(str(path)), config, np.random.default_rng(0))

    return read, (DataError,)


def _cifar_seeds(seeds: Path, partners: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(seeds / "a", "w") as archive:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            data = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
            content = pickle.dumps({b"data": data, b"labels": [1, 2]}, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _cifar_reader() -> Any:
    from data import DataError, InputConfig
    from data.cifar10 import ARCHIVE, load_cifar10

    config = InputConfig(image_size=32)

    def read(path: Path) -> None:
        # Damaged inside, as its checksum would tell a damaged gzip file.
        packed = path.with_name(ARCHIVE)
        packed.write_bytes(gzip.compress(path.read_bytes(), 1))
        load_cifar10("train", config, str(path.parent))

    return read, (DataError,)


# --- weights -------------------------------------------------------------------------------


def _network() -> Any:
    from paddle import nn

    return nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU())


def _weight_seeds(seeds: Path, partners: Path) -> None:
    import paddle

    for protocol in (2, 4):
        paddle.save(_network().state_dict(), str(seeds / f"{protocol}"), protocol=protocol)


def _latest_seeds(seeds: Path, partners: Path) -> None:
    import paddle

    from engine.checkpoint import CheckpointFolder, Progress

    net = _network()
    optimizer = paddle.optimizer.Momentum(0.1, parameters=net.parameters())
    folder = CheckpointFolder(partners)
    folder.save_latest(net, optimizer, Progress())
    folder.latest_path.rename(seeds / "a")


def _safetensors_seeds(seeds: Path, partners: Path) -> None:
    import safetensors.numpy

    state = {name: value.numpy() for name, value in _network().state_dict().items()}
    safetensors.numpy.save_file(state, str(seeds / "a"))


def _tar_seeds(seeds: Path, partners: Path) -> None:
    import struct

    def stream(array: np.ndarray) -> bytes:
        described = b"\x08\x05" + b"".join(b"\x10" + bytes([n]) for n in array.shape)
        head = struct.pack("<IQ", 0, 0) + struct.pack("<Ii", 0, len(described))
        return head + described + array.tobytes()

    with tarfile.open(seeds / "a", "w") as archive:
        for name, shape in (("conv_w", (4, 3, 3, 3)), ("fc_b", (7,))):
            content = stream(np.ones(shape, np.float32))
            info = tarfile.TarInfo(f"weights/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _weights_reader() -> Any:
    from engine.errors import EngineError
    from engine.weights import load_weights

    return load_weights, (EngineError,)


def _latest_reader() -> Any:
    from engine.checkpoint import load_latest
    from engine.errors import EngineError

    return load_latest, (EngineError,)


# --- exported models -----------------------------------------------------------------------


def _exported(folder: Path, onnx: bool) -> None:
    import paddle

    from quant import QAT

    paddle.seed(0)
    spec = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]
    for name, net in (("a", _network()), ("b", paddle.nn.Linear(8, 4))):
        quanter = QAT({"deploy_target": "onnxruntime" if onnx else "generic"})
        quanter.quantize(net, input_spec=spec)
        quanter.calibrate(net, [paddle.rand([2, 3, 8, 8])])
        if onnx:
            quanter.export_onnx(net, str(folder / f"{name}.onnx"), spec)
            continue
        quanter.save_quantized_model(net, str(folder / name), spec)
        if name == "b":  # one pair is enough, as the weights of both would need their own model
            for ending in (".pdmodel", ".pdiparams"):
                (folder / f"b{ending}").unlink()


def _model_seeds(seeds: Path, partners: Path) -> None:
    _exported(seeds, onnx=False)
    (seeds / "a.pdiparams").rename(partners / "file.pdiparams")


def _params_seeds(seeds: Path, partners: Path) -> None:
    _exported(seeds, onnx=False)
    (seeds / "a.pdmodel").rename(partners / "file.pdmodel")


def _onnx_seeds(seeds: Path, partners: Path) -> None:
    _exported(seeds, onnx=True)


def _model_reader() -> Any:
    from quant import QuantError, inspect_file
    from quant.paddle_format import check_complete, read_graph

    def read(path: Path) -> None:
        prefix = str(path.with_suffix(""))
        check_complete(prefix)
        read_graph(prefix)
        inspect_file(prefix)

    return read, (QuantError,)


def _engine_reader(engine: str) -> Callable[[], Any]:
    def reader() -> Any:
        from quant import Predictor, VerifyError

        x = np.ones([2, 3, 8, 8], np.float32)
        return (lambda path: Predictor(str(path.with_suffix("")), engine)(x)), (VerifyError,)

    return reader


def _onnxruntime_reader() -> Any:
    import paddle

    from engine.errors import EngineError
    from engine.onnx_file import OnnxFile

    x = paddle.ones([2, 3, 8, 8])
    return (lambda path: OnnxFile(path, 1)(x)), (EngineError,)


def _openvino_reader() -> Any:
    from quant import VerifyError
    from quant.onnx_predictor import OnnxPredictor

    x = np.ones([2, 3, 8, 8], np.float32)
    return (lambda path: OnnxPredictor(str(path), "openvino")(x)), (VerifyError,)


TARGETS = {
    target.name: target
    for target in (
        Target("config", ".yaml", _yaml_seeds, _yaml_reader),
        Target("list", ".txt", _list_seeds, _list_reader),
        Target("run.json", ".json", _run_seeds, _run_reader),
        Target("idx", "-idx3-ubyte", _idx_seeds, _idx_reader),
        Target("idx.gz", "-idx3-ubyte.gz", _gzip_seeds, _idx_reader),
        Target("jpeg", ".jpg", _image_seeds(".jpg"), _image_reader),
        Target("png", ".png", _image_seeds(".png"), _image_reader),
        Target("webp", ".webp", _image_seeds(".webp"), _image_reader),
        Target("bmp", ".bmp", _image_seeds(".bmp"), _image_reader),
        Target("cifar-10", ".tar", _cifar_seeds, _cifar_reader),
        Target("pdparams", ".pdparams", _weight_seeds, _weights_reader),
        Target("latest", ".pdparams", _latest_seeds, _latest_reader),
        Target("safetensors", ".safetensors", _safetensors_seeds, _weights_reader),
        Target("tar of Paddle 1.x", ".tar", _tar_seeds, _weights_reader),
        Target("pdmodel", ".pdmodel", _model_seeds, _model_reader),
        Target("pdiparams", ".pdiparams", _params_seeds, _model_reader),
        Target("pdmodel, engine", ".pdmodel", _model_seeds, _engine_reader("paddle"), True),
        Target("pdmodel, oneDNN", ".pdmodel", _model_seeds, _engine_reader("onednn"), True),
        Target("onnx, ONNX Runtime", ".onnx", _onnx_seeds, _onnxruntime_reader, True),
        Target("onnx, OpenVINO", ".onnx", _onnx_seeds, _openvino_reader, True),
    )
}
