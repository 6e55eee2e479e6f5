"""Intervals for the loadings of a Bayesian linear-Gaussian model, from draws of its guide."""

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from zoo.algebra.parameter_draws import linear_log_marginal
from zoo.alignment.canonical import canonical_rotation
from zoo.alignment.loadings import Loadings, check_level, scaled
from zoo.alignment.orthomax import Rotation
from zoo.alignment.symmetry import Factors
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.pairs import Trained, known_columns, rows_of
from zoo.base.protocols import ConjugateGivenShared
from zoo.base.threads import on_suited_threads
from zoo.infer.run import Fit, run_of
from zoo.posterior.engine import reader, reading

ROUNDS = 50  # of generalized Procrustes analysis, at most
TURN = 1e-6  # change of the reference, relative to its size, at which it has converged


@on_suited_threads
def posterior_loadings(
    run: Trained,
    x: ArrayLike,
    *,
    draws: int = 1000,
    level: float = 0.95,
    factors: int | None = None,
    rotation: Rotation = "principal",
    standardised: bool = True,
    seed: int = 0,
) -> Loadings:
    r"""The posterior loadings of a Bayesian linear-Gaussian model, every draw aligned to one reference.

    The likelihood does not change when the factors are rotated, so that draws of W agree only up to a rotation. Every
    draw is rotated towards the mean of all by orthogonal Procrustes in units of the noise (:math:`\Psi^{-1/2} W`), the
    mean is taken anew, and so on until it settles (generalized Procrustes analysis). The aligned mean is then brought
    into its canonical rotation, and the draws with it: the intervals are of the loadings in these directions, taken as
    given.

    The intervals are those of the guide. A mean-field guide such as that of :func:`zoo.cavi` makes them too narrow;
    :func:`zoo.linear_response` corrects quantities that do not depend on the rotation, such as W W' + Psi.

    Args:
        run: a fitted pair whose model is a :class:`zoo.BayesianPCA` or :class:`zoo.BayesianFactorAnalysis`, or has the
            same shared sites, ``weight`` (d, k) and ``precision`` (d,) or (), and ``log_marginal_given``.
        x: the rows (n, d) it was fitted to, or a :class:`zoo.data.Dataset`, whose column names are then used.
        draws: from the guide, at least 2 / (1 - level).
        level: the level of the intervals, in (0, 1).
        factors: the number of leading principal factors that are returned, such as
            ``zoo.diagnostics.effective_size(run, x).kept``; None returns all. The others rotate only these.
        rotation: ``"principal"``, ``"varimax"`` or ``"quartimax"``, see :func:`zoo.to_canonical`.
        standardised: divide loadings by the standard deviations of the columns in each draw, which makes them
            correlations of columns and factors. False leaves them in the units of the columns.
        seed: of the draws; the caller's random stream is left unchanged.

    Returns:
        the loadings with ``source="posterior"``; ``estimate`` is the mean of the aligned draws.

    Raises:
        TypeError: the model is not linear-Gaussian with a prior on its weight.
        ValueError: too few draws, an argument out of range, or rows that do not fit model or guide.

    References:
        Gower (1975), Generalized Procrustes analysis, Psychometrika 40; Assmann, Boysen-Hogrefe and Pape (2016),
        Bayesian analysis of static and dynamic factor models: an ex-post approach towards the rotation problem,
        Journal of Econometrics 192.

    >>> import torch, zoo
    >>> x = zoo.data.load("iris", dtype=torch.float64)
    >>> run = zoo.cavi(zoo.BayesianPCA(4, 2).double(), x.x)
    >>> posterior_loadings(run, x, factors=1).sure.squeeze(1).tolist()
    [True, True, True, True]
    """
    run = run_of(run)
    check_level(level, draws)
    if rotation not in get_args(Rotation):
        raise ValueError(f"rotation must be one of {', '.join(get_args(Rotation))}; got {rotation!r}")
    columns, data = known_columns(run, x), rows_of(run, x)
    with reading(run, seed):
        source = reader(run, data)
        _, arguments = next(source.chunks(1))  # the shared sites do not need the other rows
        values = {name: value.double() for name, value in source.draw(arguments, draws, points=True).values.items()}
    weight, noise = _checked(run, data, values)
    d, k = weight.shape[1:]
    wanted = k if factors is None else check_whole(factors, "factors")
    if wanted > k:
        raise ValueError(f"factors={factors} must be at most the {k} factors of the model")
    mean_noise = noise.log().mean(0).exp()  # (d,)
    unit = mean_noise.sqrt().unsqueeze(-1)
    turned = _aligned(weight / unit) * unit
    turned = turned @ canonical_rotation(Factors(turned.mean(0), mean_noise), "principal")
    found = scaled(turned, noise, standardised)[..., :wanted]
    if rotation != "principal":
        # Among the returned factors alone; the variance of the others counts as noise.
        chosen = turned[..., :wanted].mean(0)
        rest = mean_noise + turned[..., wanted:].mean(0).square().sum(-1)
        found = found @ canonical_rotation(Factors(chosen, rest), rotation)
    return Loadings(
        estimate=found.mean(0),
        replicates=found,
        standardised=standardised,
        level=float(level),
        rotation=rotation,
        basis="fit",
        columns=columns or tuple(f"x{j}" for j in range(d)),
        source="posterior",
    )


def _checked(run: Fit, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Draws of the weight (draws, d, k) and the noise variances (draws, d).

    Raises:
        TypeError: the model is not linear-Gaussian given its shared sites.
    """
    model, d = undecorated(run.model), x.shape[1]
    weight, precision = values.get("weight"), values.get("precision")
    if isinstance(model, ConjugateGivenShared) and weight is not None and precision is not None:
        draws = len(weight)
        if weight.ndim == 3 and weight.shape[1] == d and precision.shape in ((draws,), (draws, d)):
            noise = (1 / precision).reshape(draws, -1).expand(draws, d)
            few = {name: value[:2] for name, value in values.items()}
            known = linear_log_marginal(x[:3].double(), weight[:2], few.get("mean", weight.new_zeros(2, d)), noise[:2])
            # Names alone do not imply z ~ N(0, I): the model's own density must be the one invariant under rotations.
            if torch.allclose(model.log_marginal_given(x[:3], few).to(known), known, rtol=1e-4, atol=1e-4):
                return weight, noise
    raise TypeError(
        f"{name_of(run.model)} is not linear-Gaussian with draws of weight (d, k) and precision: use BayesianPCA or "
        "BayesianFactorAnalysis. For point estimates (PPCA, FactorAnalysis) take zoo.alignment.bootstrap_loadings"
    )


def _aligned(weight: Tensor) -> Tensor:
    """Draws (draws, d, k), each rotated to the mean of all: generalized Procrustes analysis from the first draw."""
    reference, turned = weight[0], weight
    for _ in range(ROUNDS):
        left, _, right = torch.linalg.svd(weight.mT @ reference)
        turned = weight @ (left @ right)
        mean = turned.mean(0)
        moved = torch.linalg.matrix_norm(mean - reference)
        reference = mean
        if moved <= TURN * torch.linalg.matrix_norm(mean):
            break
    return turned
