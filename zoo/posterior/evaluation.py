"""How tight is the bound: ELBO, log marginal likelihood and their gap, for every row and for the shared sites."""

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import polars
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from zoo.base.callables import undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import ClosedBound, Conjugate, ConjugateGivenShared, HasPosterior, Pair
from zoo.base.tables import index_column, named_rows, row_names
from zoo.base.threads import on_suited_threads
from zoo.base.weights import check_weights
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.psis import LEAST, psis_khat
from zoo.posterior.rowwise import gaussian, log_mean, row_weights

INNER = 100  # draws of the local sites for every draw of the shared ones
INNER_SINGLE = 30  # the same where every draw is a run of model and guide
SINGLE_RUNS = 5000  # of model and guide then, at most, to estimate log p(X): about ten seconds for a small model
SHOWN = 4  # draws of the shared sites at which the rows' k-hat is computed


@dataclass(frozen=True)
class SharedTerm:
    r"""The part of the bound due to sites :math:`\theta` shared by all rows, in nats over all rows.

    .. math:: \log p(X) = \mathrm{total} + \mathrm{KL}(q \| p(\theta, z \mid X)), \qquad
              \mathrm{total} = \sum_n \mathrm{rows}_n + E_q[\log p(\theta) - \log q(\theta)]

    Attributes:
        sites: the names of the shared sites.
        bound: :math:`E_q[\log p(\theta) - \log q(\theta)]`; for a guide that draws local and shared sites jointly, the
            total minus the rows' expected log joint densities.
        bound_se: its Monte Carlo standard error.
        total: the evidence lower bound of all rows.
        total_se: its Monte Carlo standard error.
        log_marginal: log p(X), estimated by importance sampling over theta; exact for a conjugate model without shared
            sites whose guide draws all rows jointly.
        log_marginal_se: its Monte Carlo standard error.
        khat: the Pareto shape of the importance weights of theta.
    """

    sites: tuple[str, ...]
    bound: float
    bound_se: float
    total: float
    total_se: float
    log_marginal: float
    log_marginal_se: float
    khat: float

    @property
    def gap(self) -> float:
        """A lower bound on KL(q || p(theta, z | X)), in expectation."""
        return self.log_marginal - self.total


@dataclass(frozen=True, eq=False)
class Evaluation:
    r"""The identity :math:`\log p(x) = \mathrm{ELBO}(q) + \mathrm{KL}(q \| p(z \mid x))`, in nats, for every row.

    In a model with shared sites, ``elbo`` has the rows' terms of the bound and ``shared`` the rest, together with
    log p(X) and the gap of all rows.

    Attributes:
        elbo: the evidence lower bound (n,); with shared sites the rows' terms of it.
        elbo_se: its Monte Carlo standard error (n,); 0 where it is closed-form.
        log_marginal: log p(x) (n,), exact or by importance sampling; with shared sites
            :math:`E_q \log p(x \mid \theta)`.
        log_marginal_se: its Monte Carlo standard error (n,); 0 where it is exact.
        estimator: ``"exact"``, or ``"IWAE-K"``: the importance-weighted bound of K draws, which is below log p(x) in
            expectation, so that the gap is too.
        khat: the Pareto shape of the importance weights (n,), with shared sites given draws of these; above 0.7 the
            guide is too far from the posterior for importance sampling (Vehtari, Simpson, Gelman, Yao and Gabry 2024,
            JMLR 25). NaN for a model without local sites, or where the guide draws all rows jointly.
        draws: the number of draws per row.
        shared: the shared part; None for a model without shared sites whose guide is independent between rows.
        index: the names of the rows, numbers or text; None where they are merely counted.
        weights: how often every row counts in :attr:`total` and :meth:`summary` (n,); None for once.
    """

    elbo: Tensor
    elbo_se: Tensor
    log_marginal: Tensor
    log_marginal_se: Tensor
    estimator: str
    khat: Tensor
    draws: int
    shared: SharedTerm | None = None
    index: np.ndarray | None = None
    weights: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The rows' terms of the bound (n,)."""
        return self.elbo

    @property
    def total(self) -> float:
        """The evidence lower bound of all rows."""
        if self.shared is not None:
            return self.shared.total
        return float(self.elbo.double().sum() if self.weights is None else self.elbo.double() @ self.weights)

    @property
    def gap(self) -> Tensor:
        """KL(q || p(z | x)) of every row (n,), or a lower bound on it where log p(x) is estimated.

        Raises:
            ValueError: the gap is not a sum over rows, as the model has shared sites.
        """
        if self.shared is not None:
            raise ValueError(
                "the gap is not a sum over rows: that of all rows together is evaluation.shared.gap, in nats"
            )
        return self.log_marginal - self.elbo

    @property
    def gap_se(self) -> Tensor:
        """The Monte Carlo standard error of the gap (n,)."""
        return (self.elbo_se.square() + self.log_marginal_se.square()).sqrt()

    def summary(self) -> dict[str, float]:
        """Means per row, weighted, with their Monte Carlo standard errors; the share of rows with k-hat above 0.7.

        With shared sites the bound, log p(X) and the gap are those of all rows, divided by their number.
        """
        n, s = len(self.elbo), self.shared
        if s is not None:
            bounds = {
                "elbo": s.total / n,
                "elbo_se": s.total_se / n,
                "log_marginal": s.log_marginal / n,
                "log_marginal_se": s.log_marginal_se / n,
                "gap": s.gap / n,
                "gap_se": (s.total_se**2 + s.log_marginal_se**2) ** 0.5 / n,
                "khat_shared": s.khat,
            }
        else:
            bounds = {
                "elbo": _mean(self.elbo, self.weights),
                "elbo_se": _mean_error(self.elbo_se, self.weights),
                "log_marginal": _mean(self.log_marginal, self.weights),
                "log_marginal_se": _mean_error(self.log_marginal_se, self.weights),
                "gap": _mean(self.gap, self.weights),
                "gap_se": _mean_error(self.gap_se, self.weights),
            }
        return {**bounds, "khat_above_0.7": float((self.khat > 0.7).double().mean())}

    def frame(self) -> polars.DataFrame:
        """A row per row of the data: its name if it has one, its term of the bound, log p(x) and k-hat."""
        names = ("elbo", "elbo_se", "log_marginal", "log_marginal_se", "khat")
        values = {name: getattr(self, name).detach().cpu().double().numpy() for name in names}
        return polars.DataFrame(index_column(self.index) | values)

    def __repr__(self) -> str:
        s, n = self.summary(), len(self.elbo)
        share = "" if self.khat.isnan().all() else f", k-hat > 0.7 on {100 * s['khat_above_0.7']:.0f}% of the rows"
        text = (
            f"Evaluation of {n} rows, nats per row: ELBO {s['elbo']:.4f} (se {s['elbo_se']:.1g}), "
            f"log marginal {s['log_marginal']:.4f} ({self.estimator}), gap {s['gap']:.4f} (se {s['gap_se']:.1g})"
        )
        if self.shared is None:
            return text + share
        total = (
            f"; over all rows: bound {self.shared.total:.3f}, of which the shared sites "
            f"{', '.join(self.shared.sites) or '(none)'} {self.shared.bound:.3f}, log p(X) "
            f"{self.shared.log_marginal:.3f} (se {self.shared.log_marginal_se:.1g}), k-hat {self.shared.khat:.2f}"
        )
        return text + total + share


@on_suited_threads
def evaluate(
    run: Trained,
    x: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    draws: int = 500,
    inner: int | None = None,
    seed: int = 0,
) -> Evaluation:
    r"""Bound, log marginal likelihood and gap of a trained pair on the rows ``x``.

    Closed forms are used where model and guide have them; the other terms are estimated from ``draws`` draws of the
    guide per row, in chunks of rows, so that memory stays bounded.

    In a model with shared sites :math:`\theta`, log p(X) is estimated by importance sampling over theta,

    .. math:: \log p(X) \approx \log \frac{1}{S} \sum_s \frac{p(\theta_s)}{q(\theta_s)} \prod_n \hat p(x_n \mid
              \theta_s), \qquad \theta_s \sim q,

    where :math:`p(x_n \mid \theta)` is exact if the model has ``log_marginal_given`` or no local sites, and otherwise
    an unbiased estimate from ``inner`` draws of the local sites.

    Args:
        run: a trained pair: what :func:`zoo.fit`, :func:`zoo.em`, :func:`zoo.cavi` or :func:`zoo.load` returned, or
            ``zoo.Fit(model, guide)``; or a fitted conjugate model, with its own posterior as the guide.
        x: rows (n, d); for a guide with parameters for every row, those it was fitted to, in the same order.
        weights: how often every row counts (n,), in the total and the means; None for once. For a model with shared
            sites log p(X) is not a sum over rows, and the bound of weighted rows is that of :func:`zoo.cavi`.
        draws: draws per row, K of IWAE-K, and of the shared sites; at least 30.
        inner: draws of the local sites for every draw of the shared ones; at least 30. None takes 100; for a model or
            guide that does not broadcast over draws, so that each is a run of its own, it takes 30, and estimates
            log p(X) from fewer draws of the shared sites.
        seed: of the draws; the caller's random stream is left unchanged.

    Raises:
        ValueError: too few draws, rows that do not suit model or guide, or a guide without a density (a point mass, as
            in AutoDelta and AutoLaplaceApproximation).
    """
    run = pair_of(run)
    check_draws(draws, inner)
    index, rows = row_names(x), rows_of(run, x)
    own = None if weights is None else check_weights(weights, rows).to(rows.device)
    with reading(run, seed):
        source = reader(run, rows)
        _, first = next(source.chunks(rows_at_once(draws * rows.shape[1])))
        joint = source.draw(first, 2).joint
        if source.layout.shared or joint is not None:
            if own is not None:
                raise ValueError(
                    "the bound of a model with shared sites is not a sum over rows: leave weights out, or take the "
                    "bound that zoo.cavi(model, x, weights=...) reports"
                )
            return replace(_of_all_rows(source, draws, inner), index=index)
        return replace(_unrounded(_of_rows(source, draws), run, x, rows), index=index, weights=own)


def _unrounded(found: Evaluation, run: Pair, x: ArrayLike, rows: Tensor) -> Evaluation:
    """The evaluation on float64 rows as they were given, where the model has another dtype and an exact log p(x).

    The bound moves with log p(x), and the gap stays that of the rows in the model's dtype: rounding changes both alike.
    """
    model = undecorated(run.model)
    if rows.dtype == torch.float64 or not (isinstance(model, Conjugate) and isinstance(model, nn.Module)):
        return found
    given = named_rows(x).values
    if given.dtype != torch.float64:
        return found
    exact = copy.deepcopy(model).double().log_marginal(given.to(rows.device))
    return replace(found, log_marginal=exact, elbo=found.elbo + (exact - found.log_marginal))


def check_draws(draws: int, inner: int | None = None) -> None:
    """Refuse too few draws.

    Raises:
        ValueError: ``draws`` or ``inner`` is below 30.
    """
    for name, number in (("draws", draws), ("inner", inner)):
        if number is not None and check_whole(number, name) < LEAST:
            raise ValueError(f"{name} must be at least {LEAST} to judge the importance weights, got {number}")


def inner_draws(source: Reader, inner: int | None) -> int:
    """``inner``, or its default: by the cost of a draw, known once the source has been drawn from and scored."""
    if inner is not None:
        return inner
    return INNER_SINGLE if source.single else INNER


def log_weights(run: Trained, x: Tensor, draws: int, *, seed: int = 0) -> Tensor:
    r""":math:`\log p(x_n, z) - \log q(z \mid x_n)` for draws of z from the guide, shape (draws, n).

    Raises:
        ValueError: a latent site is shared by all rows.
    """
    run = pair_of(run)
    with reading(run, seed):
        return _weights(reader(run, x), draws)


def _weights(source: Reader, draws: int) -> Tensor:
    count = rows_at_once(draws * source.x.shape[1])
    return torch.cat([row_weights(source, arguments, draws) for _, arguments in source.chunks(count)], 1)


def _of_rows(source: Reader, draws: int) -> Evaluation:
    """The evaluation of a model with local sites only."""
    model, x = undecorated(source.pair.model), source.x
    weights = _weights(source, draws)  # (draws, n)
    zero = weights.new_zeros(len(x))
    if isinstance(model, Conjugate):
        log_marginal, log_marginal_se, estimator = model.log_marginal(x), zero, "exact"
    else:
        log_marginal, log_marginal_se = log_mean(weights)
        estimator = f"IWAE-{draws}"
    elbo, elbo_se = weights.mean(0), weights.std(0) / draws**0.5
    guide = undecorated(source.pair.guide)
    if isinstance(model, ClosedBound) and isinstance(guide, HasPosterior):
        q = guide.posterior(x)
        if gaussian(q) is not None or isinstance(q, Categorical):
            elbo, elbo_se = model.elbo(x, q), zero
    return Evaluation(elbo, elbo_se, log_marginal, log_marginal_se, estimator, psis_khat(weights), draws)


@dataclass
class AllRows:
    """The terms of every draw of the shared sites, summed over the rows, and the moments of the rows' terms.

    Attributes:
        shared: log p(theta) - log q(theta) (draws,).
        bound: the rows' log p(x, z | theta) - log q(z), summed (draws,).
        given: the rows' log p(x | theta), summed, of the first draws (kept,), all of them unless that costs too much.
        columns: for every chunk of rows, mean and standard error of both terms and k-hat, (b,) each.
    """

    shared: Tensor | float = 0.0
    bound: Tensor | float = 0.0
    given: Tensor | float = 0.0
    columns: list[tuple[Tensor, ...]] = field(default_factory=list)

    @property
    def elbo(self) -> Tensor:
        """The draws whose mean is the evidence lower bound of all rows (draws,)."""
        return torch.as_tensor(self.shared + self.bound).double()

    @property
    def weights(self) -> Tensor:
        """The log importance weights of theta (kept,), whose mean, on the scale of densities, is p(X)."""
        given = torch.as_tensor(self.given)
        return torch.as_tensor(torch.as_tensor(self.shared).expand(len(self.elbo))[: len(given)] + given).double()


def all_rows(source: Reader, draws: int, inner: int | None, most: int | None = None) -> AllRows:
    """Draws of the bound and of log p(X) of a model with shared sites, or of a guide that draws all rows jointly.

    Call it inside :func:`zoo.posterior.engine.reading`.

    Args:
        source: the pair and its rows.
        draws: draws of the shared sites, the same for all rows.
        inner: draws of the local sites for every one of them; None chooses by the cost of a draw.
        most: the most runs to estimate log p(X), where every draw is one: fewer shared draws are then kept.
    """
    names = {latent.name for latent in source.layout.shared}
    count = rows_at_once(draws * source.x.shape[1])
    sums, joint = AllRows(), None
    held: dict[str, Tensor] = {}
    for _, arguments in source.chunks(count):
        drawn = source.draw(arguments, draws, held)
        log_p = source.score(arguments, drawn.values, draws)
        terms = (log_p.by_row - drawn.log_q.by_row).expand(draws, len(arguments[0]))
        if not sums.columns:
            joint = drawn.joint
            held = {name: value for name, value in drawn.values.items() if name in names}
            sums.shared = log_p.of_shared - drawn.log_q.of_shared
        if joint:
            given, khat = terms, _unknown(terms)
        else:
            each = inner_draws(source, inner)
            costly = source.single and not isinstance(undecorated(source.pair.model), ConjugateGivenShared)
            kept = max(LEAST, most // each) if most is not None and costly and source.layout.local else draws
            first = {name: value[:kept] for name, value in held.items()}
            given, khat = given_shared(source, arguments, first, terms[:kept], each)
        sums.bound = sums.bound + terms.sum(1)
        sums.given = sums.given + given.sum(1)
        sums.columns.append((*_moments(terms), *_moments(given), khat))
    return sums


def _of_all_rows(source: Reader, draws: int, inner: int | None) -> Evaluation:
    """The evaluation of a model with shared sites, or of a guide that draws all rows jointly."""
    sums = all_rows(source, draws, inner, SINGLE_RUNS if inner is None else None)
    elbo, elbo_se, log_marginal, log_marginal_se, khat = (torch.cat(parts) for parts in zip(*sums.columns, strict=True))
    bound, weights = torch.as_tensor(sums.shared).expand(draws), sums.weights
    evidence, error = log_mean(weights.unsqueeze(1))
    khat_shared = psis_khat(weights.unsqueeze(1))
    model, estimator = undecorated(source.pair.model), f"IS-{len(weights)}"
    if not source.layout.shared and isinstance(model, Conjugate):
        log_marginal, log_marginal_se = model.log_marginal(source.x), torch.zeros_like(elbo)
        evidence, error, estimator = log_marginal.double().sum(), evidence.new_zeros(()), "exact"
    numbers = (*_moments(bound), *_moments(sums.elbo), evidence, error, khat_shared)
    shared = SharedTerm(tuple(own.name for own in source.layout.shared), *(float(value) for value in numbers))
    return Evaluation(elbo, elbo_se, log_marginal, log_marginal_se, estimator, khat, draws, shared)


def given_shared(
    source: Reader, arguments: Arguments, held: dict[str, Tensor], terms: Tensor, inner: int
) -> tuple[Tensor, Tensor]:
    """log p(x | theta) of some rows at every draw of the shared sites (draws, b), and the rows' k-hat (b,).

    Args:
        source: the pair and its rows.
        arguments: of model and guide, for some rows.
        held: draws of the shared sites by name, (draws, ...).
        terms: log p(x, z | theta) - log q(z) at these draws (draws, b): the result if there are no local sites.
        inner: draws of the local sites for every draw of the shared ones, where there is no closed form.
    """
    model, x = undecorated(source.pair.model), arguments[0]
    draws = len(terms)
    if not source.layout.local:
        return terms, _unknown(terms)
    exact = model.log_marginal_given(x, held) if isinstance(model, ConjugateGivenShared) else None
    parts: list[Tensor] = []
    khats: list[Tensor] = []
    each = rows_at_once(inner * x.numel())
    for group in torch.arange(draws if exact is None else min(SHOWN, draws)).split(each):
        repeated = {name: value[group].repeat_interleave(inner, 0) for name, value in held.items()}
        drawn = source.draw(arguments, len(group) * inner, repeated)
        log_p = source.score(arguments, drawn.values).by_row
        weights = (log_p - drawn.log_q.by_row).unflatten(0, (len(group), inner))  # (group, inner, b)
        parts.append(log_mean(weights.movedim(1, 0))[0])
        khats += [psis_khat(own) for own in weights[: max(0, SHOWN - len(khats))]]
    return (torch.cat(parts) if exact is None else exact), torch.stack(khats).median(0).values


def _unknown(terms: Tensor) -> Tensor:
    return terms.new_full(terms.shape[1:], float("nan"))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the draws and its standard error."""
    return values.mean(0), values.std(0) / len(values) ** 0.5


def _mean(values: Tensor, weights: Tensor | None) -> float:
    """The mean over the rows (n,), weighted."""
    return float(values.mean() if weights is None else values.double() @ weights / weights.sum())


def _mean_error(se: Tensor, weights: Tensor | None) -> float:
    """The standard error of the mean over the rows."""
    if weights is not None:
        return float((se.double() * weights).square().sum().sqrt() / weights.sum())
    return float(se.square().sum().sqrt() / len(se))
