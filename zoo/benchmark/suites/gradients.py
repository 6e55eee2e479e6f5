"""Gradients of the bound: how noisy each estimator is along training, and how far it trains.

About one minute of processor time at ``quick``, 20 minutes at ``cpu`` on two cores, an hour at ``full`` on a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import guides
from zoo import data
from zoo.base.module import Module
from zoo.benchmark.estimators import ESTIMATORS
from zoo.benchmark.gradient_cells import Estimated, Problem, Trajectory, noises
from zoo.benchmark.gradient_claims import claims
from zoo.benchmark.gradient_figure import draw
from zoo.benchmark.suite import Case, Cell, Data, Measure, Method, Own, Suite
from zoo.data.binarisation import binarised
from zoo.models.bayesian_pca import BayesianPCA
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.vae import VAE

SQUARED = "(nats per row)²"
ERRORS = "standard errors"
MEASURES = (
    Measure(
        "guide_factor",
        digits=1,
        scientific=True,
        text="guide_variance over that of the reparametrised estimator with one draw, or of the score function where a "
        "site is discrete",
    ),
    Measure("guide_variance", SQUARED, text="of the gradient of the guide's parameters", shown=False),
    Measure("guide_se", SQUARED, text="standard error of guide_variance", shown=False),
    Measure("guide_deviation", ERRORS, text="of the mean from the gradient that it estimates", shown=False),
    Measure("model_factor", digits=1, scientific=True, text="as guide_factor, for the model's parameters"),
    Measure("model_variance", SQUARED, digits=1, scientific=True, text="of the gradient of the model's parameters"),
    Measure("model_se", SQUARED, text="standard error of model_variance", shown=False),
    Measure("model_deviation", ERRORS, text="of the mean from the gradient that it estimates", shown=False),
    Measure("milliseconds", "ms", digits=1, text="wall-clock time of a gradient", shown=False),
    Measure("bound", "nats per row", "higher", 3, "the bound after the last step of training"),
    Measure("trained_seconds", "s", digits=1, text="wall-clock time of these steps"),
)
TEXT = """\
Every estimator below is a loss for `pyro.infer.SVI`, and all estimate the gradient of the same bound (those of IWAE
that of another). They are compared at the same parameters: those of one trajectory, at its start (a random start of the
model, the guide as it is built), half-way through a number of Adam's steps by a reference loss, and at the optimum, to
which a default fit goes on from there (for the VAE: at the end of training). The gradient is that of the bound per row,
in the unconstrained coordinates of the parameters, over a fixed set of rows, so that all noise is that of the draws.
`variance` is the trace of its covariance matrix, for the guide's and for the model's parameters; `factor` its ratio to
that of the reparametrised estimator with one draw, or to the score function's where a site is discrete; `deviation` the
distance of its mean from the exact gradient (or from the mean of the estimator with the least noise), in standard
errors: about 1 where it is unbiased. Where parameters are those of model and guide, as with `Exact`, they are counted
as the model's.

What theory says. The variance of K draws is 1/K of that of one. Where q is the posterior, log p(x, z) - log q(z) is
log p(x) for every draw: the path derivative of the guide is 0 (Roeder, Wu and Duvenaud 2017), and so is the score
function less a baseline of log p(x), while the reparametrised gradient keeps the variance of the score. The analytic KL
removes the noise of log q(z) - log p(z) only; that may have cancelled noise of log p(x | z), so that neither of the two
is always better. At a start where q is the prior, it is the path derivative. Far from the optimum the path derivative
may be the noisier. None of these matters to the model's parameters, whose gradient is that of log p(x, z), unless they
are the guide's too: under `Exact` the reparametrised gradient is that of log p(x) without noise, everywhere, and all
others have noise, the path derivative included, as it drops the term by which the noise cancels. Sums over discrete
values have none.

In the cases named `training`, every estimator trains the pair from the same start, with the same steps of Adam; no step
is recorded as a graph, so that seconds compare. In minibatches (the VAE's) the decaying mean is over other rows, and a
poor baseline; elsewhere it is each row's own.

"""


def suite(budget: str) -> Suite:
    """The benchmark of gradient estimators."""
    listed = "\n".join(f"- {one.name}: {one.text}" for one in ESTIMATORS)
    return Suite(
        name="gradients",
        question="How noisy are the gradients of the bound by each estimator, and how well do they train?",
        cases=_cases(budget),
        methods=METHODS,
        measures=MEASURES,
        measure=measure,
        along=("at", "estimator", "steps"),
        seeds=1 if budget == "quick" else 2,
        budget=budget,
        own=own,
        claims=claims,
        text=TEXT + listed + "\n",
        draw=draw,
    )


def measure(found: Any, rows: Data, cell: Cell) -> Any:
    """The noise along a trajectory, or the curves of training."""
    return noises(found, rows, cell) if isinstance(found, Trajectory) else found


def own(own: Own) -> Method:
    """A user's model or guide, or both, under all estimators that serve them, on the rows of every case.

    A guide alone takes the models of the cases, a model alone a factorised guide.

    Raises:
        ValueError: neither is given.
    """
    if own.model is None and own.guide is None:
        raise ValueError(f"{own.name} has neither model nor guide: give at least one")
    return Method(own.name, Estimated(own.guide or guides.MeanField, own.model))


def _method(name: str, guide: Callable[[Module, Tensor], Module]) -> Method:
    cite = (name, "PathELBO", "LeaveOneOutELBO", "IWAE")
    return Method(name, Estimated(guide), {"guide": name}, lambda case: name in case.protocol["guides"], cite)


METHODS = (
    _method("MeanField", lambda model, x: guides.MeanField(model, x, closed_form=False if _discrete(model) else None)),
    _method("FullRank", guides.FullRank),
    _method("Amortized", guides.Amortized),
    _method("Exact", lambda model, x: guides.Exact(model)),
)


def _discrete(model: Module) -> bool:
    """Whether MeanField would compute its E-step in closed form unless told otherwise."""
    return isinstance(model, GMM)


def _cases(budget: str) -> list[Case]:
    """Small ones everywhere; digits in grey, a Bayesian model and MNIST with more time."""
    quick = budget == "quick"
    draws, steps = (40, 150) if quick else (400, 2000)
    normal = ("MeanField", "FullRank", "Exact")
    some = ("MeanField",) if quick else ("MeanField", "Exact")
    iris = Problem(lambda d: FactorAnalysis(d, 2), 200, 0.05, draws)
    mixture = Problem(lambda d: GMM(d, 2), 100, 0.05, draws)
    vae = _vae(4, 64, 300 if quick else 3000, draws // 2)
    first, words = (500, "the first 500 rows") if quick else (None, "all rows")
    digits = _binary("digits", first, words)
    found = [
        _case("FA iris", Rows("iris"), iris, normal),
        _case("GMM faithful", Rows("faithful"), mixture, ("MeanField", "Exact")),
        _case("VAE digits", digits, vae, ("Amortized",)),
        _training("FA iris, training", Rows("iris"), iris, steps, some),
        _training("GMM faithful, training", Rows("faithful"), mixture, steps, some),
        _training("VAE digits, training", digits, vae, steps, ("Amortized",)),
    ]
    return found if quick else found + _more_cases(draws, steps, full=budget == "full")


def _more_cases(draws: int, steps: int, *, full: bool) -> list[Case]:
    """Cases that take longer; with the whole of MNIST and longer training on a GPU."""
    grey = Rows("digits", "without constant columns", _without_constants)
    count, words = (None, "all training rows") if full else (5000, "the first 5,000 training rows")
    pixels = _binary("mnist", count, words)
    large = _vae(20, 200, 60_000 if full else 3000, 60)

    bayesian = Problem(lambda d: BayesianPCA(d, 2), 200, 0.05, draws)

    def factors(k: int, count: int) -> Problem:
        return Problem(lambda d: FactorAnalysis(d, k), 200, 0.05, count)

    return [
        _case("FA holzinger", Rows("holzinger"), factors(3, draws), ("MeanField", "FullRank", "Exact")),
        _case("FA digits", grey, factors(10, 100), ("MeanField", "FullRank", "Exact")),
        _case("Bayesian PCA iris", Rows("iris"), bayesian, ("MeanField",)),
        _case("VAE MNIST", pixels, large, ("Amortized",)),
        _training("VAE MNIST, training", pixels, large, 20_000 if full else steps // 2, ("Amortized",)),
    ]


@dataclass(frozen=True, eq=False)
class Rows:
    """A data set of the package, what is done to it, and how."""

    name: str
    preparation: str = "as they are"
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    dtype: torch.dtype = torch.float64

    def __call__(self) -> Tensor:
        return self.prepare(data.load(self.name, dtype=self.dtype).x)


def _without_constants(x: Tensor) -> Tensor:
    return x[:, x.amax(0) > x.amin(0)]


def _binary(name: str, count: int | None, words: str) -> Rows:
    """Zeros and ones, from pixels of which the brightest is 16 (digits) or 1 (MNIST)."""
    top = 16.0 if name == "digits" else 1.0
    return Rows(name, f"{words}, binarised at 1/2", lambda x: binarised(x[:count] / top, "threshold"), torch.float32)


def _vae(latent: int, hidden: int, steps: int, draws: int) -> Problem:
    """A Bernoulli VAE, trained on minibatches of 100; gradients are measured on the first 100 rows."""
    return Problem(
        lambda d: VAE(d, latent, (hidden,), likelihood="bernoulli"),
        steps,
        0.003,
        draws,
        batch=100,
        rows=100,
        finish={"steps": steps},
    )


def _case(name: str, rows: Rows, problem: Problem, served: tuple[str, ...], training: bool = False) -> Case:
    """A case whose rows are all fitted; the seed of a run decides the start and the draws."""

    def load(seed: int) -> Data:
        x = rows()
        return Data(x, x, extra={"problem": problem, "training": training})

    protocol = {"rows": rows.name, "preparation": rows.preparation, "guides": list(served), **problem.protocol}
    return Case(name, load, protocol, data=(rows.name,))


def _training(name: str, rows: Rows, problem: Problem, steps: int, served: tuple[str, ...]) -> Case:
    """The same rows and the same problem, trained for so many steps by every estimator."""
    return _case(name, rows, replace(problem, steps=steps), served, training=True)
