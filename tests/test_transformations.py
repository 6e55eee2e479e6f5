"""Scale, offset, order, dtype and container of a table change no likelihood, and of loadings the units alone."""

import functools

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch

import zoo

TABLES = ("iris", "faithful", "holzinger", "wine", "made")
MODELS = {"PPCA": zoo.PPCA, "FactorAnalysis": zoo.FactorAnalysis, "GMM": zoo.GMM}
LIKELIHOOD = 1e-8  # relative, and nats per entry of the table where it is close to 0
LOADINGS = 1e-4  # relative to the largest: the likelihood is flat around its maximum
FAR = 1e8  # deviations from the origin, beyond which float64 itself loses half of its digits


def pandas(x):
    return pytest.importorskip("pandas").DataFrame(x)


CONTAINERS = (
    np.asarray,
    np.asfortranarray,
    np.ma.masked_array,
    np.ndarray.tolist,
    torch.tensor,
    pl.DataFrame,
    scipy.sparse.csr_array,
    pandas,
    lambda x: np.ascontiguousarray(x[::-1])[::-1],
    lambda x: x.astype(object),
    lambda x: x.astype(">f8"),
)


@functools.cache
def table(name):
    """One of five tables (n, d)."""
    if name != "made":
        return zoo.data.load(name, dtype=torch.float64).x.numpy()
    rng = np.random.default_rng(0)
    return rng.normal(size=(120, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(120, 6))


def maximum(kind, x, dtype):
    """The model (one factor or component) at its maximum, and the log-likelihood."""
    torch.manual_seed(0)
    model = MODELS[kind](len(x[0]) if isinstance(x, list) else x.shape[1], 1).to(dtype)
    return model, float(zoo.em(model, x)[-1])


@functools.cache
def known(name, kind):
    """The same on the table itself."""
    return maximum(kind, table(name), torch.float64)


def transformation(rng, kind, x):
    """Scales and offsets of the columns, and the order of rows and columns; PPCA has one scale for all columns."""
    d = x.shape[1]
    scale = np.full(d, 10.0 ** rng.uniform(-6, 6)) if kind == "PPCA" else 10.0 ** rng.uniform(-6, 6, d)
    offset = rng.choice([0, 1]) * rng.uniform(-1, 1, d) * 10.0 ** rng.uniform(0, 8)
    if (np.abs(offset) > FAR * x.std(0) * scale).any():
        offset[:] = 0
    return scale, offset, rng.permutation(len(x)), rng.permutation(d)


@pytest.mark.parametrize("count", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_em_is_equivariant(count):
    rng = np.random.default_rng(count)
    refused = 0
    for number in range(count):
        name, kind = rng.choice(TABLES), rng.choice(list(MODELS))
        if (name, kind) == ("faithful", "FactorAnalysis"):
            continue  # two columns do not determine a factor
        x = table(name)
        scale, offset, rows, columns = transformation(rng, kind, x)
        container = CONTAINERS[rng.integers(len(CONTAINERS))]
        dtype = torch.float64 if rng.random() < 0.7 else torch.float32
        case = number, name, kind, dtype
        try:
            model, found = maximum(kind, container((x * scale + offset)[rows][:, columns]), dtype)
        except ValueError as error:
            assert dtype == torch.float32, case
            assert "precision of float32" in str(error), case
            refused += 1
            continue
        own, best = known(name, kind)
        wanted = best - len(x) * np.log(scale).sum()
        assert found == pytest.approx(wanted, rel=LIKELIHOOD, abs=LIKELIHOOD * x.size), case
        if kind != "GMM":
            weight = own.weight.detach().abs() * torch.tensor(scale).unsqueeze(1)
            unit = torch.tensor(x.std(0) * scale).unsqueeze(1)
            apart = ((model.weight.detach().abs().double() - weight[columns]) / unit[columns]).abs().max()
            assert float(apart) < LOADINGS, case
    assert refused < count / 5
