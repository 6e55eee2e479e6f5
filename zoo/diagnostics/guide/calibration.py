"""Do intervals of q(z | x) hold the truth as often as they promise? Simulated truths among draws of the guide."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from zoo.base.callables import name_of, undecorated
from zoo.base.checks import check_whole
from zoo.base.protocols import HoldsRows
from zoo.diagnostics.guide.ranking import Ranks, rank
from zoo.diagnostics.guide.simulation import refit, simulate
from zoo.diagnostics.guide.uniform import corrected, score_test, smooth_test, symmetry_test
from zoo.infer.run import Fit

LEAST = 20  # simulations, below which nothing would show
SIMULATIONS = (500, 50)  # by default: of rows, and of whole data sets, each with a fit of its own
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the central intervals
DOUBT = 0.01  # the p-value below which a unit is called miscalibrated
PLAIN = 3.0  # standard errors from which on a bias or a spread is put into words


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""How simulated truths lie in the guide's posteriors: what :func:`sbc` returns.

    For z ~ p(z), x ~ p(x | z) the values u = Q(z | x), of the distribution function of every unit's q, are uniform if q
    is the posterior; where rows share sites, z are these and x a whole data set. In the model's own coordinates: the
    units are the model's factors as they are, not rotated.

    Attributes:
        units: what is judged: ``"z[0]"``, ``"z[1]"``, ...; of a discrete site every value, ``"component = 0"``, ...
        pit: u of every simulation and unit (S, k), exact where q is Gaussian, from ranks otherwise (see :func:`sbc`);
            of a discrete site of the indicators, randomised.
        p_values: of every unit (k,): Neyman's smooth test of uniformity; for a discrete site Cox's recalibration of
            the probabilities.
        symmetry: of every unit (k,): p-values for q without bias, be its spread right or not (the test of VSBC).
        likelihood_pit: u of log p(x | z) among that of the guide's draws (S,).
        likelihood_p_value: of their uniformity. It sees what units alone cannot: a q that ignores x, or wrong
            dependence between units.
        bias: the mean of the truth less q's mean, in standard deviations of q (k,); for a discrete site how much more
            often the value comes than q predicts (a share).
        spread: the standard deviation of the truth about q, in standard deviations of q (k,): above 1 where q is too
            narrow. For a discrete site the standardised score of the recalibration's slope: far below 0 where q is too
            sure, far above where it is not sure enough.
        levels: of the central intervals of q.
        coverage: how often they hold the truth (levels, k); None for a discrete site.
        coverage_se: the standard errors, from S simulations (levels, k).
        simulations: their number S.
        draws: draws of q per simulation.
        exact: whether ``pit`` is in closed form, not from ranks.
        refitted: whether a fresh guide was fitted to the simulated rows (VSBC).
        guide: the guide's class.
    """

    units: tuple[str, ...]
    pit: Tensor
    p_values: Tensor
    symmetry: Tensor
    likelihood_pit: Tensor
    likelihood_p_value: float
    bias: Tensor
    spread: Tensor
    levels: tuple[float, ...]
    coverage: Tensor | None
    coverage_se: Tensor | None
    simulations: int
    draws: int
    exact: bool
    refitted: bool
    guide: str

    @property
    def p_value(self) -> float:
        """Of all units and the likelihood together, by Bonferroni's correction."""
        return corrected(torch.cat([self.p_values, self.p_values.new_tensor([self.likelihood_p_value])]))

    @property
    def verdicts(self) -> tuple[str, ...]:
        """For every unit, in words, whether q is calibrated and what is wrong with it."""
        return tuple(self._words(j) for j in range(len(self.units)))

    def _words(self, j: int) -> str:
        tests = len(self.units) + 1
        if not float(self.p_values[j]) * tests < DOUBT:
            return f"calibrated, as far as {self.simulations} simulations show"
        bias, spread = float(self.bias[j]), float(self.spread[j])
        said = []
        if self.coverage is None:
            if float(self.symmetry[j]) * tests < DOUBT:
                said.append(f"taken too {'rarely' if bias > 0 else 'often'} (by {abs(bias):.2g} of the rows)")
            if abs(spread) > PLAIN:
                said.append("too sure" if spread < 0 else "not sure enough")
            return " and ".join(said) or "its probabilities are wrong"
        root = self.simulations**0.5
        if abs(bias) * root > PLAIN * spread:
            side = "above" if bias > 0 else "below"
            said.append(f"biased (the truth lies {abs(bias):.2g} of q's standard deviations {side} q's mean)")
        if abs(spread - 1) * (2 * self.simulations) ** 0.5 > PLAIN * spread:
            kind = "narrow" if spread > 1 else "wide"
            said.append(f"too {kind} (the truth spreads {spread:.2f} times as far as q says)")
        return " and ".join(said) or "of another shape than the posterior"

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        wrong = [
            f"{unit} {words}"
            for unit, words, p in zip(self.units, self.verdicts, self.p_values.tolist(), strict=True)
            if p * (len(self.units) + 1) < DOUBT
        ]
        if wrong:
            more = f"; and {len(wrong) - 3} more units" if len(wrong) > 3 else ""
            return f"{'; '.join(wrong[:3])}{more}"
        if self.likelihood_p_value * (len(self.units) + 1) < DOUBT:
            return (
                "every unit is calibrated, but the guide's draws do not explain x as the truth does: q ignores a part "
                "of what x tells, or the units depend on each other otherwise than in q"
            )
        return f"calibrated, as far as {self.simulations} simulations show"

    def summary(self) -> dict[str, float]:
        """P-values, and how often the central intervals hold the truth (mean over the units)."""
        table = {"p_value": self.p_value, "likelihood_p_value": self.likelihood_p_value}
        if self.coverage is not None:
            table |= {
                f"coverage_{level:g}": float(row.mean()) for level, row in zip(self.levels, self.coverage, strict=True)
            }
        return table | {"simulations": float(self.simulations)}

    def frame(self) -> pl.DataFrame:
        """A row per unit: p-values, bias, spread, and the coverage of every interval."""
        columns = {"unit": list(self.units)}
        columns |= {name: getattr(self, name).tolist() for name in ("p_values", "symmetry", "bias", "spread")}
        if self.coverage is not None:
            pairs = zip(self.levels, self.coverage, strict=True)
            columns |= {f"coverage_{level:g}": row.tolist() for level, row in pairs}
        return pl.DataFrame(columns).rename({"p_values": "p_value"})

    def __repr__(self) -> str:
        how = f"a fresh {self.guide} fitted to them" if self.refitted else self.guide
        covered = ""
        if self.coverage is not None and self.coverage_se is not None:
            at = self.levels.index(0.9)
            low, high = float(self.coverage[at].min()), float(self.coverage[at].max())
            found = f"{100 * low:.1f}" + (f" to {100 * high:.1f}" if high > low else "")
            covered = f"; 90% intervals hold {found}% (se {100 * float(self.coverage_se[at].max()):.1f})"
        return f"Calibration by {self.simulations} simulations, {how}: {self.verdict}; p = {self.p_value:.2g}{covered}"


def sbc(
    run: Fit,
    *,
    simulations: int | None = None,
    draws: int = 99,
    rows: int | None = None,
    build: Callable[[Any, Tensor], Any] | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Calibration:
    r"""Simulation-based calibration of the guide, at the fitted parameters.

    Truths z are drawn from the prior and rows x given them, and the place of the truth in q(z | x) is computed. Where q
    is the posterior, each :math:`u = Q(z_j \mid x)` is uniform. Where q is Gaussian u is exact; otherwise from the rank
    r of the truth among the draws, spread evenly over its place: :math:`u = (r + v) / (\mathrm{draws} + 1)`, v uniform,
    so that u is uniform whatever the number of draws, and bins of a histogram need not divide it. Beside the units,
    u of the likelihood log p(x | z) is tested: units alone are also uniform where q is the prior.

    A guide with parameters of its own for every row (attribute ``count``) cannot be evaluated on other rows. A fresh
    one of its class is then fitted to the simulated rows, the model held fixed: VSBC, where every row is a replication.

    **Where rows share sites**, these are judged: every simulation draws the shared sites and a whole data set, to which
    a fresh guide is fitted. That costs ``simulations`` fits, so that their default number is small: 50 of them
    nearly always show a guide half as wide as the posterior, hardly ever one 10% too narrow.

    A discrete site is judged by its probabilities: whether each value comes as often as q says.

    Args:
        run: a trained pair: what :func:`zoo.fit` or :func:`zoo.load` returned, or ``zoo.Fit(model, guide)``.
        simulations: simulated rows S, or data sets where rows share sites; at least 20. None takes 500 rows or 50 data
            sets. Rows of a model with covariates are simulated by whole data sets, at most 5 unless more are asked for.
        draws: draws of q per simulation, for the ranks.
        rows: the number of rows of a simulated data set, where rows share sites or have covariates in the model; None
            takes the number that the run was fitted to.
        build: a function of model and rows that builds a fresh guide. None takes one of the same class with the same
            settings.
        steps: of every fit of a fresh guide; None lets it end by itself.
        seed: of everything drawn; the caller's random stream is left alone.

    Raises:
        ValueError: too few simulations or draws, an unknown number of rows, a discrete site beside others, a guide that
            can neither be evaluated on new rows nor built anew, or a model that simulates infinite numbers.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration, arXiv 1804.06788; Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?:
        Evaluating Variational Inference, ICML (VSBC); Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and
        Vehtari (2023), Simulation-based calibration checking for Bayesian computation: the choice of test quantities
        shapes sensitivity, Bayesian Analysis (the likelihood).
    """
    if simulations is not None:
        check_whole(simulations, "simulations", LEAST)
    check_whole(draws, "draws")
    found = simulate(run, simulations, SIMULATIONS, rows, seed)
    anew = bool(found.shared) or build is not None or isinstance(undecorated(run.guide), HoldsRows)
    parts = []
    for number, table in enumerate(found.tables):
        pair = refit(run, table.x, build, steps, (seed + 2 + number) % 2**32) if anew else run
        parts.append(rank(pair, found, table, draws, (seed + 1 + number) % 2**32, fresh=anew))
    return _tested(Ranks.joined(parts), found.simulations, draws, anew, name_of(run.guide))


def _tested(ranks: Ranks, simulations: int, draws: int, refitted: bool, guide: str) -> Calibration:
    """The tests of uniformity, and the coverage of intervals."""
    pit, first, coverage, coverage_se = ranks.pit, ranks.first, None, None
    if ranks.hit is not None:
        scores, p_values, symmetry = score_test(ranks.hit, first)
        bias, spread = (ranks.hit - first).mean(0), scores[1]
    else:
        p_values, symmetry = smooth_test(pit)[1], symmetry_test(pit)
        bias, spread = first.mean(0), first.std(0)
        held = torch.stack([((2 * pit - 1).abs() <= level).double().sum(0) for level in LEVELS])
        coverage, shrunk = held / simulations, (held + 2) / (simulations + 4)  # Agresti and Coull: never 0
        coverage_se = (shrunk * (1 - shrunk) / simulations).sqrt()
    return Calibration(
        units=ranks.units,
        pit=pit,
        p_values=p_values,
        symmetry=symmetry,
        likelihood_pit=ranks.likelihood,
        likelihood_p_value=float(smooth_test(ranks.likelihood.unsqueeze(1))[1]),
        bias=bias,
        spread=spread,
        levels=LEVELS,
        coverage=coverage,
        coverage_se=coverage_se,
        simulations=simulations,
        draws=draws,
        exact=ranks.exact,
        refitted=refitted,
        guide=guide,
    )
