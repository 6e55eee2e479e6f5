"""What every test finds: small data, a seeded start, and a check that nothing is left behind."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy comes: as many workers as cores, one thread in each and below it
    os.environ["OMP_NUM_THREADS"] = "1"

import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

import zoo.data

torch.set_num_threads(1)  # small tables: more threads only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="write the listings of models and guides, if they differ")


def _flags() -> dict[str, object]:
    """The switches of Pyro and torch that a careless function leaves flipped."""
    return {
        "pyro.infer validation": pyro.infer.util.is_validation_enabled(),
        "pyro.poutine validation": pyro.poutine.util.is_validation_enabled(),
        "pyro.distributions validation": pyro.distributions.is_validation_enabled(),
        "torch.distributions validation": torch.distributions.Distribution._validate_args,
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
    }


def _streams() -> dict[str, object]:
    """The state of the global random generators, as something that compares with ==."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global generator is what is watched)
    return {
        "torch": tuple(torch.get_rng_state().tolist()),
        "numpy": (name, tuple(keys.tolist()), *rest),
        "python": random.getstate(),
    }


def _store() -> dict[str, tuple[float, ...]]:
    """The content of Pyro's current parameter store."""
    return {key: tuple(value.detach().flatten().tolist()) for key, value in pyro.get_param_store().items()}


@pytest.fixture(autouse=True)
def leave_no_trace():
    """Seeds torch; afterwards the parameter store must be empty and every switch as it was."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    before = _flags()
    yield
    left = list(pyro.get_param_store())
    pyro.clear_param_store()
    assert not left, f"left in Pyro's parameter store: {left}"
    assert _flags() == before


@pytest.fixture
def own_store(leave_no_trace):
    """A parameter store for the test: a model or guide that is merely called registers its parameters."""
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def untouched():
    """A context manager: the block changes no global generator, no parameter store and no switch.

    Put it outside ``pytest.raises`` to watch a call that raises.
    """

    @contextmanager
    def watch():
        before = _streams(), _store(), _flags()
        yield
        streams, store, flags = _streams(), _store(), _flags()
        changed = [name for name, state in streams.items() if state != before[0][name]]
        assert not changed, f"the global generator of {', '.join(changed)} has moved"
        assert store == before[1]
        assert flags == before[2]

    return watch


@pytest.fixture(scope="session")
def iris() -> torch.Tensor:
    """Fisher's irises (150, 4), float64."""
    return zoo.data.load("iris").x.double()


@pytest.fixture(scope="session")
def some(iris) -> torch.Tensor:
    """60 irises of all three species (60, 4), float64."""
    return iris[torch.arange(60) * 5 // 2]


@pytest.fixture(scope="session")
def faithful() -> torch.Tensor:
    """Eruptions of Old Faithful (272, 2), float64."""
    return zoo.data.load("faithful").x.double()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds the MNIST files, directly or under mnist/."""
    folder = os.environ.get("LATENT_ZOO_DATA")
    path = Path(folder) if folder else Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no MNIST files: set LATENT_ZOO_DATA to the folder that holds them")
    return path
