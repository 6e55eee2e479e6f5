"""Several starts, for bounds with several maxima: the best run is kept, and all are reported."""

import copy
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, modules, name_of, undecorated, unwrapped
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.latent_sites import layout
from zoo.base.protocols import Conjugate
from zoo.base.random import seeded
from zoo.base.weights import check_weights, weighted_rows
from zoo.infer.collapse import HeywoodCase, UnboundedLikelihood, collapse_of
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.pairing import default_loss
from zoo.infer.run import Fit
from zoo.infer.weighting import weighted_loss
from zoo.posterior.engine import reading
from zoo.posterior.evaluation import evaluate

T = TypeVar("T")

DRAWS = 50  # per row, of the bound that ranks runs


@dataclass(frozen=True)
class Attempt:
    """One row of the report. Missing values of a failed run are None.

    Attributes:
        seed: of the start, the batches and the draws.
        score: the criterion by which runs are ranked; higher is better.
        elbo: the bound per row at the end, in nats, whatever the loss: in closed form or by quadrature where that is
            exact, else by draws as in :func:`zoo.evaluate`; None where it is not available and ``score`` is given.
        log_marginal: log p(x) per row in nats, if it has a closed form.
        steps: the steps taken.
        seconds: wall-clock time of the run.
        converged: whether it had converged.
        error: why the run failed, or None.
    """

    seed: int
    seconds: float
    score: float | None = None
    elbo: float | None = None
    log_marginal: float | None = None
    steps: int | None = None
    converged: bool = False
    error: str | None = None


@dataclass(frozen=True, eq=False)
class BestOf(Generic[T]):
    """The result of several starts.

    Attributes:
        best: the run with the highest score, the first among equals: a :class:`zoo.Fit`, or the model after EM.
        seed: the seed of the best run.
        table: one :class:`Attempt` per seed, in the order of the seeds, failures included.
    """

    best: T = field(repr=False)
    seed: int
    table: tuple[Attempt, ...]

    def near(self, within: float = 0.01) -> tuple[int, ...]:
        """The seeds whose score is within ``within`` of the best (in nats, with the default score).

        If it is a single one of many, more seeds should be tried.
        """
        top = max(row.score for row in self.table if row.score is not None)
        return tuple(row.seed for row in self.table if row.score is not None and row.score >= top - within)

    def __repr__(self) -> str:
        failed = sum(row.error is not None for row in self.table)
        head = (
            f"BestOf: seed {self.seed} is best, {len(self.near())} of {len(self.table)} within 0.01 of it, "
            f"{failed} failed\n  seed         score        elbo  log_marginal   steps  seconds"
        )
        return "\n".join([head, *map(self._line, self.table)])

    def _line(self, row: Attempt) -> str:
        mark = "*" if row.seed == self.seed else " "
        if row.error is not None:
            return f"{mark} {row.seed:4d}  failed after {row.seconds:.2f} s: {row.error}"
        marginal = "" if row.log_marginal is None else f"{row.log_marginal:.6f}"
        bound = "" if row.elbo is None else f"{row.elbo:.6f}"
        note = "" if row.converged else "  not converged"
        return (
            f"{mark} {row.seed:4d} {row.score:13.5f} {bound:>11} {marginal:>13} {row.steps:7d} {row.seconds:8.2f}{note}"
        )


def best_of(
    build: Callable[[], Any],
    x: ArrayLike,
    *,
    seeds: int | Iterable[int] = 10,
    score: Callable[[Any], float] | None = None,
    **options: Any,
) -> BestOf[Any]:
    """Fit from several seeds, keep the best run, and report all of them.

    Where ``build`` returns a (model, guide) pair, every run is one of :func:`zoo.fit`; where it returns a conjugate
    model, one of :func:`zoo.em`.

    A run whose bound becomes NaN or infinite, or whose model collapses, is reported with its error, and the others
    continue. Only the best run so far is kept in memory. The caller's random streams and Pyro's store are unchanged.

    A likelihood without a floor may have its highest score where a component has nearly collapsed onto a few rows:
    inspect the table and the model before trusting a single winner.

    Args:
        build: returns a fresh (model, guide) pair, or a fresh conjugate model, at every call; called once per seed,
            under that seed.
        x: the data (n, d).
        seeds: their number (then 0, 1, ...), or the seeds themselves.
        score: the criterion for a run (a :class:`zoo.Fit`, or the model after EM); higher is better. None uses the
            total log marginal likelihood if it has a closed form, and otherwise the total bound at the end in
            evaluation mode: exact for pairs whose bound has no noise (a conditionally conjugate model under factors of
            its families, a linear-Gaussian one under a Gaussian guide), estimated with fresh draws for the others.
        options: for :func:`zoo.fit` or :func:`zoo.em`; every fit gets its own copies of ``loss`` and ``optim``.

    Returns:
        the best run and one :class:`Attempt` per seed. After EM, ``elbo`` and ``log_marginal`` are one number: the
        bound under the exact posterior is the log marginal likelihood.

    Raises:
        ValueError: there are no seeds, or one occurs twice; ``build`` returns a model or guide that it has returned
            before; or the guide has no density (a point mass) and there is no ``score``.
        FloatingPointError: every run failed; the message lists them.

    >>> import guides, torch, zoo
    >>> x = zoo.data.load("faithful", dtype=torch.float64).x
    >>> def build():
    ...     model = zoo.GMM(2, 2).double()
    ...     return model, guides.Exact(model)
    >>> report = best_of(build, x, seeds=2)
    >>> round(report.best.model.log_marginal(x).sum().item(), 2)
    -1130.26
    """
    if "seed" in options:
        raise ValueError("pass seeds, the seeds of all the runs, in place of seed")
    if "callbacks" in options:
        options["callbacks"] = tuple(options["callbacks"])  # for every run
    chosen = each_seed(seeds)
    built: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    best: tuple[float, int, Any] | None = None
    table = []
    for seed in chosen:
        with seeded(seed):
            made = build()
        _refuse_used(made, built)
        started = time.perf_counter()
        done: Any = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnboundedLikelihood)  # an error here
                done, row = (_fit if isinstance(made, tuple) else _climb)(made, x, seed, score, options)
            refuse_collapse(made, x)
            if row.score is None or math.isnan(row.score):
                raise FloatingPointError(f"the score is {row.score}")
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            row = Attempt(seed, 0.0, error=str(error))
        row = Attempt(**{**vars(row), "seconds": time.perf_counter() - started})
        table.append(row)
        if done is not None and row.score is not None and (best is None or row.score > best[0]):
            best = row.score, seed, done
        del made, done  # free the memory before the next run
    if best is None:
        listed = "\n".join(f"  seed {row.seed}: {row.error}" for row in table)
        raise FloatingPointError(f"all {len(table)} runs failed:\n{listed}")
    return BestOf(best[2], best[1], tuple(table))


def _fit(
    pair: Any, x: ArrayLike, seed: int, score: Callable[[Any], float] | None, options: dict[str, Any]
) -> tuple[Fit, Attempt]:
    """One run of :func:`zoo.fit`."""
    model, guide = pair
    own = {key: copy.deepcopy(value) if key in ("loss", "optim") else value for key, value in options.items()}
    done = fit(model, guide, x, **own, seed=seed)
    rows, inner = check_rows(x, unwrapped(model)), undecorated(model)
    counted, weights = weighted_rows(rows, options.get("weights"))
    size = len(rows) if weights is None else float(weights.sum())
    marginal = None
    if isinstance(inner, Conjugate):
        with torch.no_grad():
            each = inner.log_marginal(counted).double()
        marginal = float(each.mean() if weights is None else each @ weights / size)
    weights = None if weights is None else check_weights(options["weights"], rows)  # of all rows, as the guide has them
    elbo = _bound(done, rows, weights, seed, needed=score is None and marginal is None)
    best = elbo if marginal is None else marginal
    rank = size * best if score is None and best is not None else score(done)  # type: ignore[misc]
    return done, Attempt(seed, 0.0, float(rank), elbo, marginal, len(done.losses), done.converged)


def _bound(run: Fit, x: Tensor, weights: Tensor | None, seed: int, *, needed: bool) -> float | None:
    """The bound per row, or per unit of weight (n,), without noise where it has a closed form or a rule.

    None where the guide has no density, or where it has shared sites and the rows have weights.

    Raises:
        ValueError: that is so, and the bound is needed.
    """
    with reading(run, seed):
        sites = layout(run.model, x)
        loss = default_loss(run.model, run.guide, sites)
        if isinstance(loss, ClosedFormELBO | QuadratureELBO):
            if weights is None:
                return -loss.loss(run.model, run.guide, x) / len(x)
            return -weighted_loss(loss, run.model, run.guide, x, weights, sites.plate) / float(weights.sum())
    try:
        found = evaluate(run, x, draws=DRAWS, seed=seed)
    except ValueError as error:
        if not needed:
            return None
        way = "pass score=, such as lambda run: -float(run.losses[-1])"
        raise ValueError(f"best_of has no bound by which to rank the runs: {error}; {way}") from None
    if weights is not None and found.shared is not None:
        if not needed:
            return None
        raise ValueError(f"best_of has no bound of {name_of(run.guide)} on weighted rows by which to rank: pass score=")
    if weights is not None:
        return float(found.elbo.double() @ weights.cpu() / weights.sum())
    return float(found.elbo.mean()) if found.shared is None else found.shared.total / len(x)


def _climb(
    model: PyroCallable, x: ArrayLike, seed: int, score: Callable[[Any], float] | None, options: dict[str, Any]
) -> tuple[Any, Attempt]:
    """One run of :func:`zoo.em`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeywoodCase)  # of every start and size: that of the result is diagnosed
        climb = em(model, x, **options, seed=seed)
    total = float(climb[-1])
    mean = -float(climb.losses[-1])
    rank = total if score is None else float(score(model))
    return model, Attempt(seed, 0.0, rank, mean, mean, len(climb), climb.converged)


def refuse_collapse(made: Any, x: ArrayLike) -> None:
    """Refuse a run whose model has collapsed, and would beat all others by that.

    Raises:
        FloatingPointError: what has collapsed.
    """
    model = made[0] if isinstance(made, tuple) else made
    if (reason := collapse_of(model, check_rows(x, unwrapped(model)))) is not None:
        raise FloatingPointError(reason)


def each_seed(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """The seeds one by one.

    Raises:
        ValueError: there are none, one occurs twice, or one is not a whole number of at least 0.
    """
    if isinstance(seeds, Iterable):
        chosen = tuple(int(check_whole(seed, "seeds", least=0)) for seed in seeds)
    else:
        chosen = tuple(range(check_whole(seeds, "seeds")))
    if not chosen:
        raise ValueError("seeds is empty: pass a number of seeds, or at least one seed")
    if twice := [seed for i, seed in enumerate(chosen) if seed in chosen[:i]]:
        raise ValueError(f"seed {twice[0]} is given twice: the same run would count as two")
    return chosen


def _refuse_used(made: Any, built: "weakref.WeakSet[nn.Module]") -> None:
    """Refuse a module that an earlier run has trained, which would continue from there whatever the seed.

    Raises:
        ValueError: names the module.
    """
    for module in modules(*made) if isinstance(made, tuple) else modules(made):
        if any(p.requires_grad for p in module.parameters()):
            if module in built:
                raise ValueError(
                    f"build returned the same {name_of(module)} twice: build a new one at every call, as a trained "
                    "one would continue from its current parameters"
                )
            built.add(module)
