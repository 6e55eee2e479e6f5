"""Random streams that leave the caller's unchanged."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

from zoo.base.checks import check_whole


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """A block with its own random stream; torch's, numpy's and Python's generators are restored afterwards.

    ``None`` continues the current stream, for calls inside another ``seeded`` block.
    """
    if seed is None:
        yield
        return
    if check_whole(seed, "seed", 0) >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}")
    before = pyro.util.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        _seed(seed)
        yield
    finally:
        pyro.util.set_rng_state(before)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def _seed(seed: int) -> None:
    """Seed torch's, numpy's and Python's generators.

    ``torch.manual_seed`` keeps the seed, with a formatted stack, for every accelerator that has not been used yet: on a
    machine without one that is a millisecond per call for nothing.
    """
    if torch.accelerator.is_available():
        pyro.set_rng_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that others draw from


def running_generator() -> torch.Generator:
    """A generator of its own whose seed is drawn from the running random stream."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))


def streams() -> dict[str, Any]:
    """The states of torch's, numpy's and Python's generators, as numbers, text and tensors."""
    state = pyro.util.get_rng_state()
    kind, keys, position, *normal = state["numpy"]
    version, numbers, gauss = state["random"]
    return {
        "torch": state["torch"],
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, *normal),
        "random": (version, torch.tensor(numbers), gauss),
    }


def set_streams(state: dict[str, Any]) -> None:
    """Put the generators into states that :func:`streams` gave."""
    kind, keys, *rest = state["numpy"]
    version, numbers, gauss = state["random"]
    pyro.util.set_rng_state(
        {
            "torch": state["torch"],
            "numpy": (kind, keys.numpy().astype(np.uint32), *rest),
            "random": (version, tuple(numbers.tolist()), gauss),
        }
    )
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
