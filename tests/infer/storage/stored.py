"""Models, guides and damages that the tests of saved runs share."""

import hashlib
import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from safetensors.torch import load_file, save_file
from torch import nn

from guides import Amortized, Exact, FullRank, MeanField
from zoo import GMM, PPCA, VAE, FactorAnalysis, Fit, fit
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.infer.storage.files import PARAMETERS, SETTINGS, checksum

MODELS = {
    "ppca": lambda: PPCA(4, 2),
    "factor-analysis": lambda: FactorAnalysis(4, 2, floor=0.01),
    "gmm": lambda: GMM(4, 3, covariance="tied"),
    "vae": lambda: VAE(4, 2, hidden=(8,)),
}


GUIDES = {
    "mean-field": MeanField,
    "full-rank": FullRank,
    "amortized": lambda model, x: Amortized(model, x, hidden=(8,)),
    "exact": lambda model, x: Exact(model),
}


PAIRS = [(m, g) for m in MODELS for g in GUIDES if (m, g) not in {("gmm", "full-rank"), ("vae", "exact")}]


def trained(model, guide, x, **options) -> Fit:
    for module in (model, guide):
        if isinstance(module, nn.Module):
            module.zero_grad()  # what an earlier fit has left; gradients are no part of a run
    return fit(model, guide, x, **{"steps": 3, "progress": False} | options)


def same(a, b) -> None:
    """Two state dicts, tensor by tensor, to the bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def edit(folder: Path, change) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    settings = change(settings) or settings
    settings["checksum"] = checksum(settings)  # a forger's work; accidents are tested below
    (folder / SETTINGS).write_text(json.dumps(settings))


def forge(folder: Path, change) -> None:
    """Change the tensors and sign them anew."""
    tensors = load_file(folder / PARAMETERS)
    change(tensors)
    save_file(tensors, folder / PARAMETERS)
    sign(folder)


def sign(folder: Path) -> None:
    content = (folder / PARAMETERS).read_bytes()
    edit(folder, lambda s: s.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))


class Toy(Module):
    """A user's model, of a class that load may not import."""

    def __init__(self, data_dim: int, level: float = 1.0) -> None:
        super().__init__()
        self.data_dim, self.level = data_dim, level
        self.mean = PyroParam(torch.zeros(data_dim))

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.mean.new_zeros(1), self.level).to_event(1))
            return pyro.sample("x", dist.Normal(self.mean + z, 1.0).to_event(1), obs=x)


def by_hand(x=None, index=None, size=None):
    """A guide that keeps its parameters in Pyro's store alone."""
    loc = pyro.param("loc", lambda: torch.zeros(20, 2))
    scale = pyro.param("scale", lambda: torch.ones(20, 2), constraint=constraints.positive)
    with rows(x, index, size):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def other(x=None, index=None, size=None):
    """Not the guide that was saved."""
