"""Clustering: mixtures, mixtures on factors and k-means, chosen without labels, beside the classes of the rows.

Minutes: quick 1 on one core, cpu 20 on two, full 60 on a GPU.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

import guides
from guides.ascent import cavi
from zoo.base.latent_sites import layout
from zoo.base.module import Module
from zoo.base.protocols import ClosedLikelihood
from zoo.benchmark.labelled import TABLES, labelled_case
from zoo.benchmark.suite import Case, Cell, Claim, Data, Measure, Method, Own, Pair, Suite
from zoo.diagnostics.model.predictive_density import predictive_density
from zoo.factors.classification import classify
from zoo.factors.row_scores import posterior_scores
from zoo.infer.collapse import UnboundedLikelihood
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.run import Fit
from zoo.models.bayesian_gmm import BayesianGMM
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.ppca import PPCA
from zoo.models.vae import VAE

FULL, RIVAL = "GMM, full", "scikit-learn, full"
HIDDEN = (64, 64)
BOUNDED = ("iris", "wine")  # where the best likelihood is that of no collapsed component, and depends on no floor
SPACING = 1000  # between the first starts of two seeds


@dataclass(frozen=True)
class Effort:
    """What a budget spends.

    Attributes:
        cases: the first of the cases.
        seeds: their number, each a split of its own.
        starts: of every mixture and of k-means.
        bayesian: starts of the Bayesian mixture.
        steps: of the VAE.
    """

    cases: int
    seeds: int
    starts: int
    bayesian: int
    steps: int


EFFORTS = {
    "quick": Effort(2, 2, 3, 2, 300),
    "cpu": Effort(4, 5, 10, 3, 4000),
    "full": Effort(4, 10, 50, 10, 20_000),
}


def suite(budget: str) -> Suite:
    """The suite ``clustering``."""
    effort = EFFORTS[budget]
    return Suite(
        name="clustering",
        question="Do clusters that are found and chosen without labels agree with the classes of the rows?",
        cases=[labelled_case(table) for table in TABLES[: effort.cases]],
        methods=_methods(effort),
        measures=MEASURES,
        measure=measure,
        seeds=effort.seeds,
        budget=budget,
        own=partial(_own, effort),
        claims=claims,
        text=TEXT_OF_PAGE,
    )


MEASURES = (
    Measure(
        "ari", "", "higher", 3, "adjusted Rand index with the classes of the training rows: 1 equal, 0 as by chance"
    ),
    Measure("nmi", "", "higher", 3, "normalised mutual information with the classes of the training rows"),
    Measure("clusters", "", None, 0, "clusters that hold a training row"),
    Measure("log_density", "nats per row", "higher", 3, "log p(x) of held-out rows, for densities of x itself"),
    Measure("log_density_train", "nats per row", None, 3, "log p(x) of the training rows, by which starts are chosen"),
)


@dataclass(frozen=True, eq=False)
class Clusters:
    """What a method returns: the cluster of every training row (n,), and the log density of rows, if it has one."""

    labels: Any
    density: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture by EM: of several starts the one with the highest likelihood."""

    covariance: str
    starts: int

    def __call__(self, data: Data, cell: Cell) -> Clusters:
        classes, starts = data.extra["classes"], min(self.starts, data.extra["starts"])
        model = best_mixture(data.train, classes, self.covariance, starts, cell.seed, data.extra["floor"])
        return Clusters(model.log_joint(data.train).argmax(1).numpy(), model.log_marginal)


def best_mixture(x: Tensor, components: int, covariance: str, starts: int, seed: int, floor: float = 1e-6) -> GMM:
    """The mixture of the highest likelihood that several starts reach on rows (n, d).

    A mixture with a component that has collapsed has a likelihood that depends on the floor, and is kept only where
    every start ends in one; a warning then names the component of the one that is kept.

    Raises:
        FloatingPointError: EM broke down from every start.
    """
    found: list[tuple[bool, float, GMM, str]] = []
    why = ""
    for start in range(SPACING * seed, SPACING * seed + starts):
        model = GMM(x.shape[1], components, covariance, floor=floor).double()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UnboundedLikelihood)
            try:
                likelihood = float(em(model, x, seed=start)[-1])
            except FloatingPointError as error:
                why = str(error)
                continue
        collapsed = [str(one.message) for one in said if issubclass(one.category, UnboundedLikelihood)]
        found.append((not collapsed, likelihood, model.requires_grad_(False), "".join(collapsed[:1])))
    if not found:
        raise FloatingPointError(f"EM broke down from all {starts} starts, the last time: {why}")
    sound, _, best, message = max(found, key=lambda one: one[:2])
    if not sound:
        warnings.warn(f"from all {starts} starts a component collapsed; that of the best: {message}", stacklevel=2)
    return best


@dataclass(frozen=True)
class Bayesian:
    """A Bayesian mixture by coordinate ascent: of several starts the one with the highest bound."""

    starts: int

    def __call__(self, data: Data, cell: Cell) -> Clusters:
        x = data.train
        model = BayesianGMM(x.shape[1], data.extra["classes"], means="coupled").double()
        run = cavi(model, x, restarts=self.starts, seed=SPACING * cell.seed, tol=1e-6)
        return Clusters(classify(run, x).labels.numpy(), lambda rows: predictive_density(run, rows).log_density)


@dataclass(frozen=True)
class OnFactors:
    """A full mixture on the posterior means of a model's factors: its density is of these, and not of the rows."""

    train: Callable[[Data, Cell], Fit]
    starts: int

    def __call__(self, data: Data, cell: Cell) -> Clusters:
        return on_factors(self.train(data, cell), data, self.starts, cell.seed)


def on_factors(run: Fit, data: Data, starts: int, seed: int) -> Clusters:
    """The clusters of a full mixture on the posterior means."""
    z = posterior_scores(run, data.train, seed=seed).mean.double()
    model = best_mixture(z, data.extra["classes"], "full", starts, seed)
    return Clusters(model.log_joint(z).argmax(1).numpy())


@dataclass(frozen=True)
class Linear:
    """A linear factor model at its maximum likelihood."""

    model: Callable[[int, int], Any]

    def __call__(self, data: Data, cell: Cell) -> Fit:
        return em(self.model(data.train.shape[1], data.extra["factors"]).double(), data.train, seed=cell.seed)


@dataclass(frozen=True)
class Deep:
    """A VAE with an inference network, in single precision."""

    steps: int

    def __call__(self, data: Data, cell: Cell) -> Fit:
        torch.manual_seed(cell.seed)
        x = data.train.float()
        model = VAE(x.shape[1], data.extra["factors"], HIDDEN, noise="constant")
        guide = guides.Amortized(model, x, HIDDEN)
        device = None if cell.device == "cpu" else cell.device
        return fit(model, guide, x, steps=self.steps, seed=cell.seed, device=device, progress=False)


@dataclass(frozen=True)
class Rival:
    """An estimator of scikit-learn with ``predict``; its ``score_samples``, if any, is a density of the rows."""

    build: Callable[[int, int], Any]

    def __call__(self, data: Data, cell: Cell) -> Clusters:
        estimator = self.build(data.extra["classes"], cell.seed)
        labels = estimator.fit(data.train.numpy()).predict(data.train.numpy())
        if not hasattr(estimator, "score_samples"):
            return Clusters(labels)
        return Clusters(labels, lambda rows: torch.from_numpy(estimator.score_samples(rows.numpy())))


@dataclass(frozen=True)
class Users:
    """A user's pair: its discrete ``component`` if it has one, else a full mixture on its factors."""

    pair: Pair
    starts: int

    def __call__(self, data: Data, cell: Cell) -> Clusters:
        run = self.pair(data, cell)
        with run.scope():
            sites = {site.name: site for site in layout(run.model, data.train).local}
        if "component" not in sites or sites["component"].cardinality is None:
            return on_factors(run, data, self.starts, cell.seed)
        model = run.model
        density = model.log_marginal if isinstance(model, ClosedLikelihood) else None
        return Clusters(classify(run, data.train, seed=cell.seed).labels.numpy(), density)


def narrow(case: Case) -> bool:
    """Whether a case has few enough columns for a covariance matrix in every component."""
    return not next(table for table in TABLES if table.name == case.name).wide


def _methods(effort: Effort) -> list[Method]:
    def mixture(kind: str, cases: Callable[[Case], bool] = lambda case: True) -> Method:
        protocol = {"covariance": kind, "starts": effort.starts, "chosen by": "likelihood", "fit": "EM from k-means"}
        return Method(f"GMM, {kind}", Mixture(kind, effort.starts), protocol, cases, cite=("GMM",))

    def factors(name: str, train: Callable[[Data, Cell], Fit], *cite: str, **protocol: Any) -> Method:
        settings = {"then": "GMM, full, on posterior means", "starts": effort.starts, **protocol}
        return Method(f"{name}, then GMM", OnFactors(train, effort.starts), settings, cite=(*cite, "GMM"))

    bayes = {"covariance": "full", "starts": effort.bayesian, "chosen by": "bound", "means": "coupled"}
    deep = {"hidden": HIDDEN, "steps": effort.steps, "noise": "constant"}
    starts = effort.starts
    return [
        Method(
            "k-means",
            Rival(lambda k, seed: KMeans(k, n_init=starts, random_state=seed)),
            {"estimator": "sklearn KMeans", "starts": starts, "chosen by": "inertia"},
            cite=("scikit-learn",),
            baseline=True,
        ),
        Method(
            RIVAL,
            Rival(lambda k, seed: GaussianMixture(k, n_init=starts, random_state=seed, max_iter=1000, tol=1e-6)),
            {"estimator": "sklearn GaussianMixture, max_iter 1000, tol 1e-6", "starts": starts, "chosen by": "bound"},
            narrow,
            cite=("scikit-learn", "GaussianMixture"),
            baseline=True,
        ),
        mixture("full", narrow),
        mixture("tied", narrow),
        mixture("diag"),
        mixture("spherical"),
        Method("Bayesian GMM, full", Bayesian(effort.bayesian), bayes, narrow, cite=("BayesianGMM",)),
        factors("PPCA", Linear(PPCA), "PPCA", fit="EM"),
        factors("FA", Linear(FactorAnalysis), "FactorAnalysis", fit="EM"),
        factors("VAE", Deep(effort.steps), "VAE", "Amortized", **deep),
    ]


def measure(found: Clusters, data: Data, cell: Cell) -> dict[str, float]:
    """Agreement with the classes of the training rows, and the log density of held-out and training rows."""
    labels = data.extra["labels"]
    held, train = math.nan, math.nan
    if found.density is not None:
        with torch.no_grad():
            held, train = (float(found.density(rows).double().mean()) for rows in (data.test, data.train))
    return {
        "ari": float(adjusted_rand_score(labels, found.labels)),
        "nmi": float(normalized_mutual_info_score(labels, found.labels)),
        "clusters": float(len(set(torch.as_tensor(found.labels).tolist()))),
        "log_density": held,
        "log_density_train": train,
    }


def _own(effort: Effort, own: Own) -> Method:
    """A user's mixture, or a model with factors; a guide alone is that of a VAE."""

    def model(d: int) -> Module:
        return own.model(d) if own.model is not None else VAE(d, min(10, max(1, d // 2)), HIDDEN, noise="constant")

    def guide(model: Module, x: Tensor) -> Module:
        return own.guide(model, x) if own.guide is not None else guides.Amortized(model, x)

    settings = {"steps": effort.steps} if effort.steps < 1000 else {}
    return Method(own.name, Users(Pair(model, guide, settings), effort.starts), {"fit": settings or "defaults"})


def claims(table: pl.DataFrame) -> list[Claim]:
    """The likelihood that our mixtures reach beside scikit-learn's, from as many starts on the same rows."""
    done = table.filter((pl.col("status") == "done") & pl.col("case").is_in(BOUNDED))
    ours, theirs = (done.filter(pl.col("method") == name) for name in (FULL, RIVAL))
    both = ours.join(theirs, on=["case", "seed"], suffix="_theirs")
    behind = (both["log_density_train_theirs"] - both["log_density_train"]).to_list()
    return [
        Claim(
            "on iris and wine the full mixture reaches scikit-learn's likelihood from as many starts, to 0.01 nats/row",
            max(behind) <= 0.01 if behind else None,
            f"most behind: {max(behind):.4f} nats per row, in {len(behind)} runs" if behind else "no rows",
        )
    ]


TEXT_OF_PAGE = """\
Every method finds as many clusters as there are classes, without seeing a label: of several starts the one with the
highest likelihood (mixtures), bound (Bayesian mixture) or the lowest inertia (k-means) is kept. Means and standard
errors are over random splits, each with 20% of the rows held out.

- **ari**, **nmi**: agreement of the clusters of the training rows with their classes, which no method has seen.
- **log_density**: log p(x) of held-out rows, comparable within a case. It is a density of the rows themselves; k-means
  has none, and mixtures on factors have one of the factors only.
- **log_density_train**: the same on the training rows. For mixtures it is what is maximised.
- Pixels are made continuous by uniform noise within their level of grey. Without it a pixel that is constant within a
  component has a likelihood without bound, and the highest likelihood is that of the smallest floor.
- A component of fewer rows than columns has a singular covariance (full, on digits), which a floor bounds: 0.001 of the
  columns' variances on digits, 1e-6 elsewhere; scikit-learn adds 1e-6 to every variance instead, so that its likelihood
  there is another. A start that ends with a component at the floor counts only where all do, and the row then has a
  warning.
- MNIST: the first 10,000 rows of the training file. Covariance matrices of 784 columns are left out there; mixtures on
  factors take the place. Mixtures of the pixels have two starts.
"""
