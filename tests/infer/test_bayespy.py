"""zoo.cavi beside BayesPy, under identical priors; skipped where it is not installed (the extra ``oracle``)."""

import time

import numpy as np
import pytest
import torch
from bayesian_models import with_holes
from sklearn.datasets import load_digits, load_wine

import zoo

pytest.importorskip("bayespy.nodes")
pytestmark = pytest.mark.filterwarnings("ignore")  # BayesPy's own


def wine():
    x = torch.as_tensor(load_wine().data)
    return (x - x.mean(0)) / x.std(0, correction=0)


def digits(rows):
    x = torch.as_tensor(load_digits().data)[:rows]
    return (x - x.mean(0))[:, x.std(0) > 0]


def bayespy(x, k, *, plain=20, near=None):
    """The bound of Bayesian PCA after every sweep, and the time after it; until settled, or ``near`` a bound."""
    from bayespy.inference.vmp.transformations import RotateGaussianARD, RotationOptimizer
    from bayespy.nodes import Gamma, GaussianARD, SumMultiply

    np.random.seed(0)  # noqa: NPY002 (the generator that BayesPy draws from)
    n, d = x.shape
    z = GaussianARD(0, 1, shape=(k,), plates=(1, n))
    alpha = Gamma(1e-3, 1e-3, plates=(k,))
    w = GaussianARD(0, alpha, shape=(k,), plates=(d, 1))
    tau = Gamma(1e-3, 1e-3)
    y = GaussianARD(SumMultiply("d,d->", z, w), tau)
    y.observe(np.nan_to_num(x.mT.numpy()), mask=~np.isnan(x.mT.numpy()))
    w.initialize_from_random()
    rotation = RotationOptimizer(RotateGaussianARD(z), RotateGaussianARD(w, alpha), k)
    started, bounds = time.perf_counter(), [-np.inf]
    for sweep in range(1000):
        for node in (z, w, alpha, tau):
            node.update()
        if sweep >= plain:
            rotation.rotate(check_bound=False, check_gradient=False)
        bounds.append(sum(float(node.lower_bound_contribution()) for node in (y, z, w, alpha, tau)))
        settled = sweep > plain + 3 and bounds[-1] - bounds[-2] < 1e-11 * abs(bounds[-1])
        if settled if near is None else bounds[-1] > near - 1e-6 * abs(near):
            break
    return bounds[-1], time.perf_counter() - started


def ours(x, k, **options):
    return zoo.cavi(zoo.BayesianPCA(x.shape[1], k, mean=False).double(), x, **options)


@pytest.mark.slow
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "missing"])
@pytest.mark.parametrize(("build", "k"), [(wine, 4), (lambda: digits(300), 10)], ids=["wine", "digits"])
def test_bounds_agree(build, k, holes):
    x = with_holes(build()) if holes else build()
    assert float(ours(x, k, restarts=2)[-1]) == pytest.approx(bayespy(x, k)[0], rel=1e-5)


@pytest.mark.benchmarks
def test_takes_a_tenth_of_the_time():
    x = digits(1797)
    reached = ours(x, 10, restarts=1)
    theirs = bayespy(x, 10, near=float(reached[-1]))[1]
    print(f"cavi {reached.attempts[0].seconds:.3f} s, BayesPy {theirs:.3f} s")
    assert reached.attempts[0].seconds < theirs / 10
