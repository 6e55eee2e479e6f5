"""Why is a bound loose: because of the guide's family, or because of amortization."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars
import torch
from torch import Tensor

from zoo.base.callables import undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.latent_sites import Latent
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import ClosedConjugate, Conjugate, LocalFamily
from zoo.base.schedules import cosine
from zoo.base.tables import index_column, row_names
from zoo.base.threads import on_suited_threads
from zoo.posterior.annealing import AIS, Place, anneal
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.local_families import (
    GaussianFamily,
    Numbers,
    chosen,
    distribution,
    local_family,
    moved,
    place_of,
)
from zoo.posterior.psis import LEAST
from zoo.posterior.rowwise import log_joint, log_mean, real_site

RATE = 0.1  # initial learning rate of Adam, in standard deviations of the guide
NAMES = ("log_marginal", "best", "elbo", "approximation", "amortization")
COLUMNS = (*NAMES, *(f"{name}_se" for name in NAMES))
BETAS = (0.9, 0.99)  # of Adam: it forgets the steep slopes of the first steps
CHECKED = 64  # draws on which a search is compared with its start
SURE = 3.0  # standard errors by which the start must be better, to be kept
ROUNDS = 20  # of L-BFGS at most, each in coordinates whitened by the q of the last one


@dataclass(frozen=True, eq=False)
class Gaps:
    r"""The gap between log p(x) and a guide's bound in two parts, in nats: the result of :func:`gaps`.

    .. math:: \log p(x) - \mathrm{ELBO}(q) =
              \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation}} +
              \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortization}}

    with :math:`q^*` the best q of the row within the guide's family. For a guide with parameters for every row the
    second part is the error of its optimisation.

    Attributes:
        log_marginal: log p(x) (n,), exact or a lower bound.
        best: the bound of q* (n,).
        elbo: the bound of the guide's q (n,).
        approximation: the approximation gap (n,). Where log p(x) is a lower bound, so is this gap, in expectation, for
            the q* that was found.
        amortization: the amortization gap (n,). Without a closed form the q* found may be worse than the best one; this
            gap is then a lower bound, and the difference is part of the approximation gap.
        log_marginal_se: the Monte Carlo standard error (n,), 0 in closed form. Likewise for the others; those of the
            gaps are of differences over the same draws.
        family: ``"diag"`` or ``"full"`` for Gaussians, ``"flow"``, or the name of another distribution.
        estimator: of log p(x): ``"exact"``, ``"IWAE-K"`` from draws of q*, or ``"AIS"`` started from q*.
        closed: whether the bounds are in closed form.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    log_marginal: Tensor
    best: Tensor
    elbo: Tensor
    approximation: Tensor
    amortization: Tensor
    log_marginal_se: Tensor
    best_se: Tensor
    elbo_se: Tensor
    approximation_se: Tensor
    amortization_se: Tensor
    family: str
    estimator: str
    closed: bool
    index: np.ndarray | None = None

    @property
    def total(self) -> Tensor:
        """The total gap (n,), KL(q || p(z | x)) where log p(x) is exact."""
        return self.log_marginal - self.elbo

    def summary(self) -> dict[str, float]:
        """Means per row with their Monte Carlo standard errors."""
        n = len(self.elbo)
        table = {}
        for name in NAMES:
            table[name] = float(getattr(self, name).double().mean())
            table[f"{name}_se"] = float(getattr(self, f"{name}_se").double().square().sum().sqrt() / n)
        return table

    def frame(self) -> polars.DataFrame:
        """A row per row of the data: log p(x), the bounds, the gaps and their standard errors."""
        values = {name: getattr(self, name).detach().cpu().double().numpy() for name in COLUMNS}
        return polars.DataFrame(index_column(self.index) | values)

    def __repr__(self) -> str:
        s = self.summary()
        least = "" if self.estimator == "exact" else "at least "
        return (
            f"Gaps of {len(self.elbo)} rows, nats per row: log marginal {s['log_marginal']:.4f} ({self.estimator}) = "
            f"ELBO {s['elbo']:.4f} + amortization gap {s['amortization']:.4f} (se {s['amortization_se']:.1g}) + "
            f"approximation gap of the {self.family} family {least}{s['approximation']:.4f} "
            f"(se {s['approximation_se']:.1g})"
        )


@on_suited_threads
def gaps(
    run: Trained,
    x: ArrayLike,
    *,
    steps: int = 500,
    particles: int = 8,
    draws: int = 1000,
    ais: AIS | None = None,
    seed: int = 0,
) -> Gaps:
    r"""Split the gap of a run on the rows ``x`` into approximation and amortization.

    For every row a q of its own is optimised with the model fixed, starting from the guide's q: a Gaussian with a
    diagonal covariance (``"diag"``) if the guide's q has one, as in MeanField, Amortized and AutoNormal, and with a
    full one (``"full"``) otherwise; a guide of low rank counts as full, so that its missing rank is part of the
    amortization gap. For :class:`guides.Flow` it is a flow with parameters of its own for every row, those of the
    transforms' networks included (``"flow"``); for a guide that factorises into another family with real and positive
    parameters, such as Student's t, that family.

    Where the model has the bound of a Gaussian in closed form (``model.elbo``), it is maximised by L-BFGS, without
    draws. Otherwise Adam maximises a Monte Carlo estimate, for a Gaussian in coordinates whitened by the guide's q and
    with path derivatives (Roeder et al. 2017), of antithetic pairs common to all rows, with a cosine schedule. Where
    the result is worse than the guide's q on fresh draws, by more than their noise, the guide's q is kept. Both are
    then evaluated on the same fresh draws.

    Args:
        run: a trained pair.
        x: rows (n, d); for a guide with parameters for every row, those it was fitted to, in the same order.
        steps: of Adam.
        particles: antithetic pairs per step.
        draws: draws per row of the evaluation, K of IWAE-K; at least 30.
        ais: estimate log p(x) by annealed importance sampling from q* instead of IWAE.
        seed: of all draws; the caller's random stream is left unchanged.

    Raises:
        NoLocalFamily: a guide whose q(z | x) is of none of these families (a ValueError).
        ValueError: a model without exactly one latent site with a real vector per row, too few steps or draws, or rows
            that do not suit model or guide.

    References:
        Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders, ICML; Roeder, Wu and
        Duvenaud (2017), Sticking the landing, NeurIPS.
    """
    run = pair_of(run)
    check_whole(steps, "steps")
    check_whole(particles, "particles")
    if check_whole(draws, "draws") < LEAST:
        raise ValueError(f"draws must be at least {LEAST} to judge a bound, got {draws}")
    model = undecorated(run.model)
    index, x = row_names(x), rows_of(run, x)
    d = x.shape[1]
    exact = isinstance(model, Conjugate)
    closed = model if isinstance(model, ClosedConjugate) else None
    parts: list[tuple[Tensor, ...]] = []
    with reading(run, seed):
        source = reader(run, x)
        latent = real_site(source, "gaps")
        for _, arguments in source.chunks(rows_at_once(4 * max(4 * particles * d, draws))):
            family = local_family(source, latent, arguments)
            if closed is not None and isinstance(family, GaussianFamily):
                parts.append(_in_closed_form(closed, arguments[0], family.start))
            else:
                found = _climb(source, latent, arguments, family, steps, particles)
                parts.append(_judge(source, latent, arguments, family, found, draws, ais))
    columns = {name: torch.cat(column) for name, column in zip(COLUMNS, zip(*parts, strict=True), strict=True)}
    estimator = "exact" if exact else f"IWAE-{draws}" if ais is None else "AIS"
    algebraic = closed is not None and isinstance(family, GaussianFamily)
    return Gaps(**columns, family=family.name, estimator=estimator, closed=algebraic, index=index)


def _in_closed_form(model: ClosedConjugate, x: Tensor, start: Place) -> tuple[Tensor, ...]:
    """The columns of :class:`Gaps` for some rows."""
    log_marginal = model.log_marginal(x)
    elbo = model.elbo(x, distribution(*start))
    best = model.elbo(x, distribution(*_climb_smoothly(lambda q: model.elbo(x, distribution(*q)), start)))
    zero = torch.zeros_like(elbo)
    return (log_marginal, best, elbo, log_marginal - best, best - elbo, *(zero,) * 5)


def _climb_smoothly(bound: Callable[[Place], Tensor], start: Place) -> Place:
    """The best Gaussian for every row, by L-BFGS on the closed-form bound."""
    q = start
    precision = torch.finfo(start[0].dtype).eps ** 0.5
    for _ in range(ROUNDS):
        free = [torch.zeros_like(part, requires_grad=True) for part in q]
        optim = torch.optim.LBFGS(
            free, max_iter=100, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0
        )
        slopes: list[float] = []

        def loss(
            free: list[Tensor] = free, q: Place = q, slopes: list[float] = slopes, optim: torch.optim.Optimizer = optim
        ) -> Tensor:
            with torch.enable_grad():
                value = -bound(moved(q, free[0], free[1])).sum()
                gradients = torch.autograd.grad(value, free)  # without those of the model's parameters
            for parameter, gradient in zip(free, gradients, strict=True):
                parameter.grad = gradient
            slopes.append(max(float(gradient.abs().max()) for gradient in gradients))
            return value.detach()

        optim.step(loss)
        if slopes[0] < precision:  # the curvature is about 1 here, so the remaining gain is of the order of its square
            break
        tried = moved(q, free[0].detach(), free[1].detach())
        better = bound(tried) >= bound(q)  # also false where it is NaN
        if not better.any():
            break
        q = chosen(better, tried, q)
    return q


def _climb(
    source: Reader, latent: Latent, arguments: Arguments, family: LocalFamily, steps: int, particles: int
) -> Numbers:
    """The best q of the family for every row, by Adam on Monte Carlo estimates of the bound."""
    loc, free = family.start[0], family.free()
    optim = torch.optim.Adam(free, lr=RATE, betas=BETAS)
    fall = cosine(steps)
    for step in range(steps):
        noise = loc.new_empty(particles, 1, loc.shape[1]).normal_()  # the same for all rows
        noise = torch.cat([noise, -noise]).expand(-1, *loc.shape)
        with torch.enable_grad():
            weights = _log_weights(source, latent, arguments, family, family.moved(free), noise, path=True)
            gradients = torch.autograd.grad(-weights.mean(0).sum(), free)
        for parameter, gradient in zip(free, gradients, strict=True):
            parameter.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        for group in optim.param_groups:
            group["lr"] = RATE * fall(step)
        optim.step()
    found = family.moved([part.detach() for part in free])
    noise = loc.new_empty(CHECKED, *loc.shape).normal_()
    ours, theirs = (_log_weights(source, latent, arguments, family, q, noise) for q in (found, family.start))
    lost = theirs - ours  # NaN or infinite where the search has failed
    kept = lost.mean(0) <= SURE * lost.std(0) / CHECKED**0.5
    return chosen(kept, found, family.start)


def _log_weights(
    source: Reader,
    latent: Latent,
    arguments: Arguments,
    family: LocalFamily,
    numbers: Numbers,
    noise: Tensor,
    path: bool = False,
) -> Tensor:
    r""":math:`\log p(x, z) - \log q(z)` of draws of a q (draws, b)."""
    z, log_q = family.draw(numbers, noise, path)
    return sum(log_joint(source, latent, z, arguments).values(), -log_q)


def _judge(
    source: Reader,
    latent: Latent,
    arguments: Arguments,
    family: LocalFamily,
    found: Numbers,
    draws: int,
    ais: AIS | None,
) -> tuple[Tensor, ...]:
    """The columns of :class:`Gaps` for some rows: both bounds on the same fresh draws, log p(x) from those of q*."""
    loc = family.start[0]
    parts = []
    for piece in torch.arange(draws).split(rows_at_once(4 * arguments[0].numel())):
        noise = loc.new_empty(len(piece), *loc.shape).normal_()
        both = [_log_weights(source, latent, arguments, family, q, noise) for q in (found, family.start)]
        parts.append(torch.stack(both))
    ours, theirs = torch.cat(parts, 1)  # (draws, b)

    def error(values: Tensor) -> Tensor:
        return values.std(0) / draws**0.5

    best, elbo = ours.mean(0), theirs.mean(0)
    model = undecorated(source.pair.model)
    if isinstance(model, Conjugate):
        log_marginal, noise_of_it = model.log_marginal(arguments[0]), torch.zeros_like(best)
        apart = error(ours)
    elif ais is not None:
        weights, _ = anneal(source, latent, arguments, ais, place_of(family, found))
        log_marginal, noise_of_it = log_mean(weights)
        apart = (noise_of_it.square() + error(ours).square()).sqrt()
    else:
        log_marginal, noise_of_it = log_mean(ours)
        apart = error((ours - log_marginal).exp() - ours)  # by the delta method, of a difference over the same draws
    errors = (noise_of_it, error(ours), error(theirs), apart, error(ours - theirs))
    return (log_marginal, best, elbo, log_marginal - best, best - elbo, *errors)
