"""AIC and BIC of models whose likelihood has a closed form, and the number of parameters that data can tell apart."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from zoo.alignment.canonical import canonical_transform
from zoo.alignment.symmetry import Alignment
from zoo.base.callables import PyroCallable
from zoo.base.checks import check_rows
from zoo.base.protocols import Placed

BUDGET = 2**22  # numbers per array and chunk
MATRICES = (constraints.lower_cholesky, constraints.lower_triangular, constraints.positive_definite)


@dataclass(frozen=True)
class InformationCriteria:
    r"""Likelihood against the number of parameters, in nats over all rows: less is better.

    .. math:: \mathrm{AIC} = 2\, df - 2 \log L, \qquad \mathrm{BIC} = df \log n - 2 \log L

    The ``BIC`` of R's mclust is the negative of this one.

    Attributes:
        log_likelihood: log L, in nats, the sum of log p(x) over the rows; of a row with missing entries, that of the
            observed ones.
        df: the number of free parameters, see :func:`free_parameters`.
        n: the number of rows in which something is observed.
    """

    log_likelihood: float
    df: int
    n: int

    @property
    def aic(self) -> float:
        """Akaike's criterion, in nats."""
        return 2 * self.df - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's criterion, in nats; mclust gives its negative."""
        return self.df * math.log(self.n) - 2 * self.log_likelihood

    def summary(self) -> dict[str, float]:
        """Log-likelihood, AIC and BIC in nats, the number of parameters and of rows."""
        names = ("log_likelihood", "df", "n", "aic", "bic")
        return {name: float(getattr(self, name)) for name in names}

    def frame(self) -> pl.DataFrame:
        """The summary as a table of one row."""
        return pl.DataFrame([self.summary()])

    def __repr__(self) -> str:
        return (
            f"InformationCriteria of {self.n} rows, in nats: log-likelihood {self.log_likelihood:.4f} with {self.df} "
            f"free parameters; AIC {self.aic:.4f}, BIC {self.bic:.4f}, less is better"
        )


def information_criteria(model: PyroCallable, x: Any) -> InformationCriteria:
    """AIC and BIC of a conjugate model at the parameters that it has.

    Both are made for the maximum of the likelihood: bring the model there by :func:`zoo.em` (a mixture from several
    starts, :func:`zoo.best_of`) or by a converged fit, on these very rows. They compare models of the same rows in
    the same units. BIC's argument holds for factors (whose rank may be in doubt) and components only roughly, as at
    the wrong number the information matrix is singular; in practice it finds the number of both.

    With missing entries the likelihood is that of the observed ones, and n still counts rows, as lavaan does under full
    information likelihood: the penalty per parameter is that of complete rows, a little more than the data are worth.
    Rows in which nothing is observed do not count.

    Args:
        model: PPCA, FactorAnalysis, GMM, or one of your own with a method ``log_marginal``.
        x: the rows (n, d) it was fitted to.

    Raises:
        TypeError: the model has no ``log_marginal``, as a VAE has none.
        ValueError: the model has not been fitted, it has no parameter to count, or the rows are not fit for it.

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
    _with_likelihood(model)
    if isinstance(model, Placed) and model.fresh:
        raise ValueError(
            f"this {type(model).__name__} holds the parameters it was built with, and AIC and BIC those of highest "
            "likelihood: fit it first, by zoo.em or zoo.fit"
        )
    x = check_rows(x, model)
    return InformationCriteria(
        float(log_density(model, x).sum()), free_parameters(model), int((~x.isnan()).any(1).sum())
    )


def free_parameters(model: PyroCallable) -> int:
    r"""The number of parameters that a fit adjusts and the likelihood can tell apart.

    Those of the model, each counted by what its constraint leaves free (K weights that add up to 1: K - 1; a
    triangular D x D matrix: D (D + 1) / 2), without those held fixed (``requires_grad=False``). From the D K loadings
    of a linear-Gaussian model a rotation of the factors goes off, K (K - 1) / 2. Where factor analysis then has more
    than its covariance matrix has entries, these are counted.

    - PPCA: D K - K (K - 1) / 2 + D + 1.
    - FactorAnalysis: D K - K (K - 1) / 2 + 2 D.
    - GMM: K - 1 + K D, and K D (D + 1) / 2 (full), D (D + 1) / 2 (tied), K D (diag) or K (spherical), as in mclust
      (VVV, EEE, VVI, VII).

    A parameter at the end of its range (a uniqueness at its floor) counts as any other.

    Args:
        model: a module with ``log_marginal``.

    Raises:
        TypeError: the model has no ``log_marginal``, as a VAE has none.
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
        raise ValueError(f"no parameter of this {type(model).__name__} is free (requires_grad): there is none to count")
    if "weight" not in free or _rotation(model) is None:
        return total
    d, k = module.weight.shape
    known = min(k, d)  # more factors than columns add nothing
    turned = d * known - known * (known - 1) // 2
    rest = {name: size for name, size in free.items() if name not in ("weight", "mean")}
    spread = min(turned + sum(rest.values()), d * (d + 1) // 2)
    return spread + free.get("mean", 0)


@torch.no_grad()
def log_density(model: PyroCallable, x: Tensor) -> Tensor:
    """log p(x) of the rows (n,), in float64 on the CPU, some rows at a time."""
    exact: Any = copy.deepcopy(model)
    exact = exact.double()
    parts = x.double().split(max(1, BUDGET // x.shape[1]))
    return torch.cat([exact.log_marginal(part) for part in parts]).cpu()


def _with_likelihood(model: PyroCallable) -> Any:
    """The model, where it is a module with a closed-form likelihood: a bound is no likelihood.

    Raises:
        TypeError: the model has no closed-form log p(x).
    """
    if isinstance(model, nn.Module) and callable(getattr(model, "log_marginal", None)):
        return model
    raise TypeError(
        f"{type(model).__name__} has no closed-form log p(x) (log_marginal), and a bound is no likelihood: its AIC or "
        "BIC would compare guides as much as models. Compare such models by log p(x) of held-out rows: "
        "zoo.select_size, or zoo.log_evidence_bounds on rows set apart"
    )


def _sizes(model: nn.Module) -> list[tuple[str, int]]:
    """Every parameter with the number of its free coordinates: 0 where it is held fixed."""
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
    """The number of real coordinates of a value that obeys the constraint."""
    base = constraint
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if isinstance(base, tuple(type(matrix) for matrix in MATRICES)):  # torch maps these from square matrices
        d = value.shape[-1]
        return value.numel() // (d * d) * (d * (d + 1) // 2)
    return torch.Size(biject_to(constraint).inverse_shape(value.shape)).numel()


def _rotation(model: PyroCallable) -> Tensor | None:
    """The rotation to the canonical gauge, where the model's factors can be turned; None for any other model."""
    try:
        gauge: Alignment = canonical_transform(model)
    except TypeError:
        return None
    return gauge.rotation
