"""A run, saved; and nobody's random stream or parameter store is touched."""

import random

import numpy as np
import pyro
import pytest
import torch
from stored import trained

from guides import MeanField
from zoo import PPCA
from zoo.base.random import seeded
from zoo.infer.storage.checkpoint import save


@pytest.fixture(autouse=True)
def no_trace():
    """Pyro's store stays empty, and nothing here moves the caller's random streams."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert not dict(pyro.get_param_store())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(20, 2, generator=generator) @ torch.randn(2, 4, generator=generator) + 0.3 * torch.randn(
        20, 4, generator=generator
    )


@pytest.fixture(scope="module")
def run(x):
    with seeded(1):
        model = PPCA(4, 2)
        return trained(model, MeanField(model, x), x, validation=x.flip(0), seed=3)


@pytest.fixture
def saved(run, tmp_path):
    return save(run, tmp_path / "run")
