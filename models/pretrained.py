"""Where the published weights of a model are, or have to be put."""

from __future__ import annotations

from pathlib import Path

from paddle.utils import download

from .errors import ModelError
from .info import ModelInfo

# What the published weights may come as, in the order in which they are looked for; the first is
# the unpacked folder.
SUFFIXES = ("", ".pdparams", ".safetensors", ".tar")


def find_pretrained(info: ModelInfo, folder: str | Path = ".") -> Path:
    """Return the path of the default weights of a model; download them if Paddle offers that.

    Args:
        info: the model.
        folder: where to look for weights that nobody can download.

    Raises:
        ModelError: if the model has no published weights, or they are not here and cannot be
            fetched.
    """
    if info.weights_url is not None:
        return _download(info.name, *info.weights_url)
    if info.default_pretrained is None:
        raise ModelError(
            f"model {info.name} has no published weights; "
            "train it first with --fp32_epochs, or pass --pretrained_model PATH or none"
        )
    for suffix in SUFFIXES:
        path = Path(folder) / (info.default_pretrained + suffix)
        if path.is_file() if suffix else path.is_dir():
            return path
    raise ModelError(
        f"the default weights of {info.name} are not in {str(Path(folder).resolve())!r}: put "
        f"{info.default_pretrained}.tar (or .pdparams, .safetensors, or the unpacked folder) "
        "there (docs/models.md has its address), or pass --pretrained_model PATH or none"
    )


def _download(name: str, url: str, md5sum: str) -> Path:
    cache = download.WEIGHTS_HOME
    try:
        return Path(download.get_weights_path_from_url(url, md5sum))
    except (RuntimeError, OSError) as error:
        raise ModelError(
            f"the weights of {name} could not be downloaded; put {url.rsplit('/', 1)[-1]} "
            f"(from {url}) into {cache}, or pass --pretrained_model PATH or none"
        ) from error
