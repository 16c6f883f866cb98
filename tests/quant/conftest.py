from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest


def _load_networks():
    """tests/quant/networks.py; a plain import would depend on what else is called `tests`."""
    name = "quant_test_networks"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("networks.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_NETWORKS = _load_networks()


def pytest_generate_tests(metafunc):
    if "odd_network" in metafunc.fixturenames:
        metafunc.parametrize("odd_network", sorted(_NETWORKS.CASES))


@pytest.fixture(autouse=True)
def _seeded():
    paddle.seed(7)
    np.random.seed(7)


@pytest.fixture
def networks():
    """The module networks.py."""
    return _NETWORKS


@pytest.fixture
def images():
    """Makes float32 images [n, c, size, size] with a channel-dependent mean, always the same."""

    def make(n: int = 8, channels: int = 3, size: int = 16, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        means = np.linspace(-0.5, 1.0, channels).reshape([1, channels, 1, 1])
        return (rng.normal(size=(n, channels, size, size)) + means).astype(np.float32)

    return make
