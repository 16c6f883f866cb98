"""One variant of reader.py: reads all images once for each line it is sent, answers with JSON."""

from __future__ import annotations

import json
import sys
import time
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
# Loaders start threads or processes for each pass, so a pass of theirs is longer.
PASSES = 4
# Reads the images of the given files, float32 [N, 3, 224, 224].
Read = Callable[[list[str]], Any]
# One pass over the images; returns how many there were.
Pass = Callable[[], int]


def main() -> None:
    """Builds the variant and answers until its input ends."""
    variant, phase, folder, workers = sys.argv[1:5]
    root = Path(folder).resolve()
    files = [str(file) for file in (*sorted(root.rglob("*.jp*g")), *sorted(root.rglob("*.JP*G")))]
    train = phase == "train"
    if variant.endswith("_loader"):
        files = PASSES * files
        one_pass = LOADERS[variant](files, train, int(workers))
    elif variant.startswith("ours"):
        one_pass = our_thread(files, train, variant == "ours_antialias")
    else:
        one_pass = thread(READERS[variant](train), files)
    answer({"ready": variant})
    for _ in sys.stdin:
        start = time.perf_counter()
        seen = one_pass()
        seconds = time.perf_counter() - start
        if seen != len(files):
            raise SystemExit(f"{variant} read {seen} of {len(files)} images")
        answer({"images_per_second": len(files) / seconds})


def answer(content: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(content), flush=True)


def counted(batches: Iterable[Any]) -> int:
    """How many images there are, after a look at their shape."""
    seen = 0
    for batch in batches:
        if tuple(batch.shape[1:]) != (3, 224, 224):
            raise SystemExit(f"a batch of shape {tuple(batch.shape)}")
        seen += len(batch)
    return seen


def thread(read: Read, files: list[str]) -> Pass:
    """All batches in the calling thread."""
    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    return lambda: counted(read(batch) for batch in batches)


def our_dataset(files: list[str], train: bool, antialias: bool) -> Any:
    """Our data set of these files."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import cv2

    from data import InputConfig
    from data.imagenet import ImageListDataset
    from engine.memory import keep_freed_memory

    cv2.setNumThreads(0)
    keep_freed_memory()  # as train.py and eval.py do
    labels = np.zeros(len(files), np.int64)
    config = InputConfig(antialias=antialias)
    return ImageListDataset(
        Path("/"), files, labels, train=train, input_config=config, seed=0, num_classes=1
    )


def our_thread(files: list[str], train: bool, antialias: bool) -> Pass:
    """All batches in the calling thread, as a thread of our loader reads them."""
    dataset = our_dataset(files, train, antialias)

    def read(start: int) -> Any:
        indices = range(start, min(start + BATCH, len(files)))
        return dataset.normalizer.array(np.stack([dataset.pixels(i)[0] for i in indices]))

    def one_pass() -> int:
        dataset.set_epoch(dataset.epoch + 1)  # other crops
        return counted(read(start) for start in range(0, len(files), BATCH))

    return one_pass


def our_loader(files: list[str], train: bool, workers: int) -> Pass:
    """Our loader."""
    dataset = our_dataset(files, train, False)
    from data.loader import BatchLoader
    from data.sampler import BatchIndices

    batches = BatchIndices(len(files), BATCH, shuffle=False, pad=False)
    return lambda: counted(x for x, _ in BatchLoader(dataset, batches, 0, workers, None))


def decode(train: bool) -> Read:
    """The whole image, as OpenCV decodes it, in place of a batch: a floor."""
    import cv2

    cv2.setNumThreads(0)
    blank = np.zeros((3, 224, 224), np.float32)

    def one(file: str) -> Any:
        assert cv2.imread(file) is not None
        return blank

    return lambda files: np.stack([one(file) for file in files])


def paddle_cv2(train: bool) -> Read:
    """paddle.vision on arrays of OpenCV."""
    one = paddle_cv2_image(train)
    return lambda files: np.stack([one(file) for file in files])


def paddle_cv2_image(train: bool) -> Callable[[str], np.ndarray]:
    """One image of ``paddle_cv2``."""
    import cv2
    from paddle.vision import transforms as T

    cv2.setNumThreads(0)
    first = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()]
    if not train:
        first = [T.Resize(256), T.CenterCrop(224)]
    scaled = [[255 * value for value in values] for values in (MEAN, STD)]
    transform = T.Compose([*first, T.Transpose(), T.Normalize(*scaled)])
    return lambda file: transform(cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB))


def paddle_pil(train: bool) -> Read:
    """paddle.vision on images of Pillow."""
    from paddle.vision import transforms as T
    from PIL import Image

    first = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()]
    if not train:
        first = [T.Resize(256), T.CenterCrop(224)]
    scaled = [[255 * value for value in values] for values in (MEAN, STD)]
    transform = T.Compose([*first, T.Transpose(), T.Normalize(*scaled)])

    def one(file: str) -> Any:
        return transform(Image.open(file).convert("RGB"))

    return lambda files: np.stack([one(file) for file in files])


def torch_image(train: bool, antialias: bool) -> Callable[[str], Any]:
    """One image of torchvision's fastest road."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    first = [v2.RandomResizedCrop(224, antialias=antialias), v2.RandomHorizontalFlip()]
    if not train:
        first = [v2.Resize(256, antialias=antialias), v2.CenterCrop(224)]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*first, *last])
    return lambda file: transform(decode_jpeg(read_file(file), mode=ImageReadMode.RGB))


def torch_reader(antialias: bool) -> Callable[[bool], Read]:
    """Torchvision in the calling thread."""

    def build(train: bool) -> Read:
        import torch

        one = torch_image(train, antialias)
        return lambda files: torch.stack([one(file) for file in files])

    return build


class Files:
    """A data set for the loaders of others."""

    def __init__(self, files: list[str], one: Callable[[str], Any]) -> None:
        self.files, self.one = files, one

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.one(self.files[index])


def torch_loader(files: list[str], train: bool, workers: int) -> Pass:
    """Torch's loader; its processes live on from pass to pass."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Files(files, torch_image(train, False)), BATCH, num_workers=workers, persistent_workers=True
    )
    return lambda: counted(loader)


def paddle_loader(files: list[str], train: bool, workers: int) -> Pass:
    """Paddle's loader; its processes live on from pass to pass."""
    import paddle

    class Images(Files, paddle.io.Dataset):
        """What Paddle's loader takes."""

    loader = paddle.io.DataLoader(
        Images(files, paddle_cv2_image(train)), batch_size=BATCH, num_workers=workers,
        persistent_workers=True,
    )  # fmt: skip
    return lambda: counted(batch[0] if isinstance(batch, list) else batch for batch in loader)


READERS: dict[str, Callable[[bool], Read]] = {
    "paddle_cv2": paddle_cv2,
    "paddle_pil": paddle_pil,
    "torch": torch_reader(True),
    "torch_plain": torch_reader(False),
    "decode": decode,
}
LOADERS: dict[str, Callable[[list[str], bool, int], Pass]] = {
    "ours_loader": our_loader,
    "paddle_loader": paddle_loader,
    "torch_loader": torch_loader,
}


if __name__ == "__main__":
    main()
