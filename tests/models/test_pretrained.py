from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from paddle.utils import download

from models import ModelError, find_pretrained, list_models, model_info

WITH_DOWNLOAD = [
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg16",
    "vgg19",
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(download, "WEIGHTS_HOME", str(folder))
    return folder


@pytest.fixture
def offline(cache, monkeypatch):
    """Downloads that fail as they do without a network, at once."""
    monkeypatch.setattr(download, "_download_methods", {"get": lambda url, name: False})
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return cache


def test_models_with_weights_of_paddle_are_known():
    auto = [name for name in list_models() if model_info(name).default_pretrained == "auto"]
    assert sorted(auto) == sorted(WITH_DOWNLOAD)


@pytest.mark.parametrize("name", WITH_DOWNLOAD)
def test_offline_the_error_says_which_file_to_put_where(name, offline):
    with pytest.raises(ModelError) as caught:
        find_pretrained(model_info(name))
    message = str(caught.value)
    url = model_info(name).weights_url[0]
    assert url.endswith(".pdparams") and url.rsplit("/", 1)[1] in message
    assert str(offline) in message
    assert "\n" not in message


def test_file_in_the_cache_is_taken_without_a_network(offline):
    info = model_info("resnet18")
    url, _ = info.weights_url
    offline.mkdir()
    file = offline / url.rsplit("/", 1)[1]
    file.write_bytes(b"weights")
    by_content = type(info)(
        info.name, info.build, weights_url=(url, hashlib.md5(b"weights").hexdigest())
    )
    assert find_pretrained(by_content) == file


def test_damaged_file_in_the_cache_is_not_taken(offline):
    info = model_info("resnet18")
    offline.mkdir()
    (offline / info.weights_url[0].rsplit("/", 1)[1]).write_bytes(b"half a file")
    with pytest.raises(ModelError, match="could not be downloaded"):
        find_pretrained(info)


def test_cache_that_cannot_be_made_gives_the_same_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setattr(download, "WEIGHTS_HOME", str(tmp_path / "file" / "weights"))
    with pytest.raises(ModelError, match="could not be downloaded"):
        find_pretrained(model_info("resnet18"))


@pytest.mark.parametrize("name", ["lenet", "vgg11", "vgg13", "mobilenet_v3_small_x1_0"])
def test_model_without_published_weights_says_what_to_do(name):
    with pytest.raises(ModelError, match="no published weights.*--fp32_epochs"):
        find_pretrained(model_info(name))


NAME = "MobileNetV3_large_x1_0_ssld_pretrained"
KINDS = ["", ".pdparams", ".safetensors", ".tar"]


def put(folder: Path, suffix: str) -> Path:
    path = folder / f"{NAME}{suffix}"
    if suffix:
        path.write_bytes(b"")
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("suffix", KINDS)
def test_mobilenet_v3_weights_are_found_beside_the_user(tmp_path, suffix):
    path = put(tmp_path, suffix)
    assert find_pretrained(model_info("mobilenet_v3"), tmp_path) == path


@pytest.mark.parametrize("suffix", KINDS)
def test_by_default_that_is_the_current_folder(tmp_path, suffix, monkeypatch):
    path = put(tmp_path, suffix)
    monkeypatch.chdir(tmp_path)
    assert find_pretrained(model_info("mobilenet_v3")).resolve() == path.resolve()


def test_folder_that_was_unpacked_comes_before_its_tar(tmp_path):
    for suffix in KINDS:
        put(tmp_path, suffix)
    assert find_pretrained(model_info("mobilenet_v3"), tmp_path) == tmp_path / NAME


def test_folder_of_a_name_for_files_is_not_taken(tmp_path):
    (tmp_path / f"{NAME}.tar").mkdir()
    with pytest.raises(ModelError):
        find_pretrained(model_info("mobilenet_v3"), tmp_path)


def test_missing_mobilenet_v3_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        find_pretrained(model_info("mobilenet_v3"))
    message = str(caught.value)
    assert f"{NAME}.tar (or .pdparams, .safetensors, or the unpacked folder)" in message
    assert str(tmp_path.resolve()) in message and "docs/models.md" in message
    assert "\n" not in message
