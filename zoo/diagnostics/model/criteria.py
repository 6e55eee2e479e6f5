"""AIC and BIC of models with a closed-form likelihood, and their number of identifiable parameters."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from zoo.algebra.linear_gaussian import log_likelihood
from zoo.alignment.canonical import canonical_transform
from zoo.alignment.symmetry import Alignment
from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.checks import ArrayLike, check_rows
from zoo.base.memory import rows_at_once
from zoo.base.moments import Moments
from zoo.base.protocols import ClosedLikelihood, Placed, linear_form
from zoo.base.weights import weighted_rows

MATRICES = (constraints.lower_cholesky, constraints.lower_triangular, constraints.positive_definite)


@dataclass(frozen=True)
class InformationCriteria:
    r"""AIC and BIC in nats over all rows; smaller is better. The result of :func:`information_criteria`.

    .. math:: \mathrm{AIC} = 2\, df - 2 \log L, \qquad \mathrm{BIC} = df \log n - 2 \log L

    R's mclust reports the negative of this BIC.

    Attributes:
        log_likelihood: log L, the sum of log p(x) over the rows in nats; for rows with missing entries, of the observed
            entries.
        df: the number of free parameters; see :func:`free_parameters`.
        n: the number of rows with an observed entry, or the sum of their weights.
    """

    log_likelihood: float
    df: int
    n: float

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return 2 * self.df - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's Bayesian information criterion; mclust reports its negative."""
        return self.df * math.log(self.n) - 2 * self.log_likelihood

    def summary(self) -> dict[str, float]:
        """Log-likelihood, AIC and BIC in nats, the numbers of parameters and of rows."""
        names = ("log_likelihood", "df", "n", "aic", "bic")
        return {name: float(getattr(self, name)) for name in names}

    def frame(self) -> pl.DataFrame:
        """The summary as a table of one row."""
        return pl.DataFrame([self.summary()])

    def __repr__(self) -> str:
        return (
            f"InformationCriteria of {self.n:g} rows, in nats: log-likelihood {self.log_likelihood:.4f} with {self.df} "
            f"free parameters; AIC {self.aic:.4f}, BIC {self.bic:.4f} (smaller is better)"
        )


def information_criteria(
    model: PyroCallable, x: ArrayLike | Moments, *, weights: ArrayLike | None = None
) -> InformationCriteria:
    """AIC and BIC of a model with a closed-form likelihood at its current parameters.

    Both are defined at the maximum of the likelihood: fit the model to the same rows first, by :func:`zoo.em` (a
    mixture from several starts, :func:`zoo.best_of`) or a converged :func:`zoo.fit`. They compare models of the same
    rows in the same units. For the number of factors or components the derivation of BIC holds only approximately,
    because the information matrix is singular at too large a number; in practice BIC finds both numbers.

    With missing entries the likelihood is that of the observed entries, and n still counts rows, as in lavaan under
    full-information maximum likelihood; the penalty per parameter is then slightly too large. Rows without an observed
    entry do not count.

    Args:
        model: PPCA, FactorAnalysis, GMM, or a module of your own with a method ``log_marginal``.
        x: the rows (n, d) that it was fitted to, or for PPCA and FactorAnalysis their moments.
        weights: how often every row counts (n,); None for once. Their sum is n.

    Raises:
        TypeError: the model has no ``log_marginal``, such as a VAE; or it needs rows and is given moments.
        ValueError: the model has not been fitted, or has no free parameter; or the weights are wrong.

    References:
        Akaike (1974), A new look at the statistical model identification, IEEE Trans. Automatic Control 19; Schwarz
        (1978), Estimating the dimension of a model, Annals of Statistics 6; for mixtures Keribin (2000), Consistent
        estimation of the order of mixture models, Sankhya A 62.

    >>> import torch, zoo
    >>> x = zoo.data.load("faithful", dtype=torch.float64).x
    >>> model = zoo.best_of(lambda: zoo.GMM(2, 2), x, seeds=2).best
    >>> found = information_criteria(model, x)
    >>> found.df, round(found.bic, 2)
    (11, 2322.19)
    """
    model = _with_likelihood(model)
    if isinstance(model, Placed) and model.fresh:
        raise ValueError(
            f"this {name_of(model)} has its initial parameters, and AIC and BIC require those of maximum "
            "likelihood: fit it first by zoo.em or zoo.fit"
        )
    if isinstance(x, Moments):
        return InformationCriteria(_of_moments(model, x, weights), free_parameters(model), x.count)
    x, own = weighted_rows(check_rows(x, model, exact=True), weights)
    seen, densities = (~x.isnan()).any(1), log_density(model, x)
    if own is None:
        return InformationCriteria(float(densities.sum()), free_parameters(model), int(seen.sum()))
    own = own.cpu()
    return InformationCriteria(float(own @ densities), free_parameters(model), float(own[seen.cpu()].sum()))


@torch.no_grad()
def _of_moments(model: PyroCallable, moments: Moments, weights: ArrayLike | None) -> float:
    """The log-likelihood of rows with these moments.

    Raises:
        TypeError: the model is not linear-Gaussian.
        ValueError: there are weights, or another number of columns.
    """
    found = linear_form(model)
    if found is None:
        raise TypeError(f"the log-likelihood of {name_of(model)} needs the rows: moments suffice for linear models")
    if weights is not None:
        raise ValueError("weights are of rows, and x is their moments: weight the rows by Moments.of(x, weights)")
    weight, mean, noise = (value.detach().double() for value in found)
    if len(mean) != len(moments.mean):
        raise ValueError(f"x has {len(moments.mean)} columns, the model {name_of(model)} has {len(mean)}")
    return float(log_likelihood(moments.to(mean), weight, mean, noise))


def free_parameters(model: PyroCallable) -> int:
    r"""The number of free, identifiable parameters of a model.

    Every parameter counts with its degrees of freedom under its constraint (K weights on the simplex: K - 1; a
    triangular D x D matrix: D (D + 1) / 2), without those held fixed (``requires_grad=False``). For a linear-Gaussian
    model the rotation of the factors is subtracted, K (K - 1) / 2, and loadings and noise together count at most as
    much as the covariance matrix, D (D + 1) / 2.

    - PPCA: D K - K (K - 1) / 2 + D + 1.
    - FactorAnalysis: D K - K (K - 1) / 2 + 2 D.
    - GMM: K - 1 + K D, and K D (D + 1) / 2 (full), D (D + 1) / 2 (tied), K D (diag), D (tied_diag), K (spherical) or 1
      (tied_spherical), as in mclust (VVV, EEE, VVI, EEI, VII, EII).

    A parameter at the boundary of its range (a uniqueness at its floor) counts as any other.

    Args:
        model: a module with ``log_marginal``.

    Raises:
        TypeError: the model has no ``log_marginal``, such as a VAE.
        ValueError: no parameter is free.

    References:
        Drton, Sturmfels and Sullivant (2007), Algebraic factor analysis: tetrads, pentads and beyond, Probability
        Theory and Related Fields 138, theorem 2.

    >>> import zoo
    >>> free_parameters(zoo.PPCA(4, 2)), free_parameters(zoo.FactorAnalysis(9, 2)), free_parameters(zoo.GMM(2, 2))
    (12, 35, 11)
    """
    module = _with_likelihood(model)
    free = {name: size for name, size in _sizes(module) if size}
    total = sum(free.values())
    if not total:
        raise ValueError(f"no parameter of this {name_of(model)} is free (requires_grad): nothing to count")
    if "weight" not in free or _rotation(model) is None:
        return total
    d, k = module.weight.shape
    known = min(k, d)  # factors beyond the number of columns add nothing
    turned = d * known - known * (known - 1) // 2
    rest = {name: size for name, size in free.items() if name not in ("weight", "mean")}
    spread = min(turned + sum(rest.values()), d * (d + 1) // 2)
    return spread + free.get("mean", 0)


@torch.no_grad()
def log_density(model: PyroCallable, x: Tensor) -> Tensor:
    """log p(x) of the rows (n,), in float64 on the CPU, in chunks."""
    exact: Any = copy.deepcopy(model)
    exact = exact.double()
    parts = x.double().split(rows_at_once(x.shape[1]))
    return torch.cat([exact.log_marginal(part) for part in parts]).cpu()


def _with_likelihood(model: PyroCallable) -> Any:
    """The model without handlers that leave its density unchanged, if it is a module with a closed-form likelihood.

    Raises:
        TypeError: it is not.
    """
    inner = undecorated(model)
    if isinstance(inner, nn.Module) and isinstance(inner, ClosedLikelihood):
        return inner
    changed = inner is not unwrapped(model)
    why = ", as a Pyro handler changes its density" if changed else " (log_marginal)"
    raise TypeError(
        f"{name_of(model)} has no closed-form log p(x){why}, and AIC or BIC of a bound would compare guides as much as "
        "models. Compare such models by log p(x) of held-out rows: zoo.select_size, or "
        "zoo.log_evidence_bounds"
    )


def _sizes(model: nn.Module) -> list[tuple[str, int]]:
    """The name of every trainable parameter with its degrees of freedom."""
    found = []
    for prefix, module in model.named_modules():
        limits = module._pyro_params if isinstance(module, PyroModule) else {}
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            plain = name.removesuffix("_unconstrained")
            size = parameter.numel()
            if plain in limits and plain != name:
                size = _coordinates(getattr(module, plain), limits[plain][0])
            found.append((f"{prefix}.{plain}" if prefix else plain, size))
    return found


def _coordinates(value: Tensor, constraint: constraints.Constraint) -> int:
    """The degrees of freedom of a value under its constraint."""
    base = constraint
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if isinstance(base, tuple(type(matrix) for matrix in MATRICES)):  # torch maps these from square matrices
        d = value.shape[-1]
        return value.numel() // (d * d) * (d * (d + 1) // 2)
    return torch.Size(biject_to(constraint).inverse_shape(value.shape)).numel()


def _rotation(model: PyroCallable) -> Tensor | None:
    """The canonical rotation of a linear-Gaussian model; None for any other model."""
    try:
        found: Alignment = canonical_transform(model)
    except TypeError:
        return None
    return found.rotation
