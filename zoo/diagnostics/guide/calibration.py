"""Simulation-based calibration: ranks of simulated truths among draws from the guide."""

from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from zoo.base.callables import name_of, undecorated
from zoo.base.checks import check_whole
from zoo.base.pairs import Trained
from zoo.base.protocols import HoldsRows
from zoo.base.threads import suited_to
from zoo.diagnostics.guide.ranking import Ranks, rank
from zoo.diagnostics.guide.simulation import Builder, refit, simulate
from zoo.diagnostics.guide.uniform import corrected, score_test, smooth_test, symmetry_test
from zoo.infer.run import run_of

LEAST = 20  # simulations; fewer have no power
SIMULATIONS = (500, 50)  # defaults: rows, and whole data sets with a fit each
LEVELS = (0.5, 0.8, 0.9, 0.95)  # nominal levels of the central intervals
SIGNIFICANCE = 0.01  # the p-value below which a unit is miscalibrated
ERRORS = 3.0  # standard errors above which a verdict names a bias or a wrong spread


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Probability integral transforms of simulated truths under the guide: the result of :func:`sbc`.

    For z ~ p(z), x ~ p(x | z) the values u = Q(z | x) of the distribution function of every unit's q are uniform if q
    is the posterior. For a model with shared sites, z are the shared sites and x is a whole data set.

    Attributes:
        units: ``"z[0]"``, ``"z[1]"``, ...; for a discrete site one per value, ``"component = 0"``, ...
        pit: u of every simulation and unit (S, k): exact for a Gaussian q, otherwise from ranks (see :func:`sbc`);
            for a discrete site the randomised transform of the indicators.
        p_values: of every unit (k,): Neyman's smooth test of uniformity; for a discrete site the score test of Cox's
            recalibration of the probabilities.
        symmetry: of every unit (k,): p-values of a q without bias, whatever its spread (the test of VSBC).
        likelihood_pit: u of log p(x | z) among its values at draws from the guide (S,).
        likelihood_p_value: of their uniformity. It has power where the units alone have none: against a q that ignores
            x, or wrong dependence between units.
        bias: the mean of the truth minus q's mean, in standard deviations of q (k,); for a discrete site the frequency
            of the value minus the one that q predicts.
        spread: the standard deviation of the truth about q's mean, in standard deviations of q (k,): above 1 if q is
            too narrow. For a discrete site the standardised score of the recalibration slope: far below 0 if q is
            overconfident, far above if it is underconfident.
        levels: nominal levels of the central intervals of q.
        coverage: the share of truths within them (levels, k); None for a discrete site.
        coverage_se: standard errors from S simulations (levels, k).
        simulations: their number S.
        draws: draws from q per simulation.
        exact: whether ``pit`` is in closed form rather than from ranks.
        refitted: whether a fresh guide was fitted to the simulated rows (VSBC).
        guide: the name of the guide's class.
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
        """The p-value of all units and the likelihood together, by Bonferroni's correction."""
        return corrected(torch.cat([self.p_values, self.p_values.new_tensor([self.likelihood_p_value])]))

    @property
    def verdicts(self) -> tuple[str, ...]:
        """For every unit, in words, whether q is calibrated, and how it errs if not."""
        return tuple(self._words(j) for j in range(len(self.units)))

    def _words(self, j: int) -> str:
        tests = len(self.units) + 1
        if not float(self.p_values[j]) * tests < SIGNIFICANCE:
            return f"calibrated, as far as {self.simulations} simulations show"
        bias, spread = float(self.bias[j]), float(self.spread[j])
        errors = []
        if self.coverage is None:
            if float(self.symmetry[j]) * tests < SIGNIFICANCE:
                errors.append(f"predicted too {'rarely' if bias > 0 else 'often'} (by {abs(bias):.2g} of the rows)")
            if abs(spread) > ERRORS:
                errors.append("overconfident" if spread < 0 else "underconfident")
            return " and ".join(errors) or "its probabilities are wrong"
        root = self.simulations**0.5
        if abs(bias) * root > ERRORS * spread:
            side = "above" if bias > 0 else "below"
            errors.append(f"biased (the truth lies {abs(bias):.2g} of q's standard deviations {side} q's mean)")
        if abs(spread - 1) * (2 * self.simulations) ** 0.5 > ERRORS * spread:
            kind = "narrow" if spread > 1 else "wide"
            errors.append(f"too {kind} (the truth has {spread:.2f} times the standard deviation of q)")
        return " and ".join(errors) or "not of the shape of the posterior"

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        wrong = [
            f"{unit} {words}"
            for unit, words, p in zip(self.units, self.verdicts, self.p_values.tolist(), strict=True)
            if p * (len(self.units) + 1) < SIGNIFICANCE
        ]
        if wrong:
            more = f"; and {len(wrong) - 3} more units" if len(wrong) > 3 else ""
            return f"{'; '.join(wrong[:3])}{more}"
        if self.likelihood_p_value * (len(self.units) + 1) < SIGNIFICANCE:
            return (
                "every unit is calibrated, but draws from the guide do not explain x as well as the truth does: q "
                "ignores part of the information in x, or has the wrong dependence between units"
            )
        return f"calibrated, as far as {self.simulations} simulations show"

    def summary(self) -> dict[str, float]:
        """P-values, and the coverage of central intervals averaged over the units."""
        table = {"p_value": self.p_value, "likelihood_p_value": self.likelihood_p_value}
        if self.coverage is not None:
            table |= {
                f"coverage_{level:g}": float(row.mean()) for level, row in zip(self.levels, self.coverage, strict=True)
            }
        return table | {"simulations": float(self.simulations)}

    def frame(self) -> pl.DataFrame:
        """One row per unit: p-values, bias, spread and the coverage of every interval."""
        columns = {"unit": list(self.units)}
        columns |= {name: getattr(self, name).tolist() for name in ("p_values", "symmetry", "bias", "spread")}
        if self.coverage is not None:
            pairs = zip(self.levels, self.coverage, strict=True)
            columns |= {f"coverage_{level:g}": row.tolist() for level, row in pairs}
        return pl.DataFrame(columns).rename({"p_values": "p_value"})

    def __repr__(self) -> str:
        how = f"each with a newly fitted {self.guide}" if self.refitted else self.guide
        covered = ""
        if self.coverage is not None and self.coverage_se is not None:
            at = self.levels.index(0.9)
            low, high = float(self.coverage[at].min()), float(self.coverage[at].max())
            found = f"{100 * low:.1f}" + (f" to {100 * high:.1f}" if high > low else "")
            covered = f"; 90% intervals cover {found}% (se {100 * float(self.coverage_se[at].max()):.1f})"
        return f"Calibration by {self.simulations} simulations, {how}: {self.verdict}; p = {self.p_value:.2g}{covered}"


def sbc(
    run: Trained,
    *,
    simulations: int | None = None,
    draws: int = 99,
    rows: int | None = None,
    build: Builder | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Calibration:
    r"""Simulation-based calibration of the guide at the fitted parameters.

    Truths z are drawn from the prior and rows x from p(x | z). If q is the posterior, :math:`u = Q(z_j \mid x)` is
    uniform for every unit j. For a Gaussian q, u is computed exactly; otherwise from the rank r of the truth among the
    draws, :math:`u = (r + v) / (\mathrm{draws} + 1)` with v uniform on (0, 1), so that u is uniform for any number of
    draws. The likelihood log p(x | z) is ranked as well, because the units alone are also uniform if q is the prior.

    A guide with parameters for every row (attribute ``count``) cannot be evaluated on new rows. In that case a fresh
    guide of its class is fitted to the simulated rows with the model held fixed, and every row is a replication (VSBC).

    For a model with shared sites, every simulation draws the shared sites and a whole data set, and fits a fresh guide
    to it; the shared sites are ranked. Because of these fits the default number of simulations is small: 50 nearly
    always detect a guide half as wide as the posterior, and hardly ever one that is 10% too narrow.

    For a discrete site the test is whether every value occurs as often as q predicts.

    Args:
        run: a trained pair.
        simulations: the number S of simulated rows, or of data sets for a model with shared sites; at least 20. None
            takes 500 rows or 50 data sets. A model with covariates simulates whole data sets, by default at most 5.
        draws: draws from q per simulation, for the ranks.
        rows: the number of rows of a simulated data set, for a model with shared sites or covariates; None takes the
            number that the run was fitted to.
        build: a function of model and rows that returns a fresh guide; None builds one of the same class with the same
            settings.
        steps: steps of every fit of a fresh guide; None fits until convergence.
        seed: of all draws and fits.

    Raises:
        ValueError: too few simulations or draws, an unknown number of rows, a discrete site beside others, a guide that
            can neither be evaluated on new rows nor be built anew, or a model that simulates infinite values.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration, arXiv 1804.06788; Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?:
        Evaluating Variational Inference, ICML (VSBC); Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and
        Vehtari (2023), Simulation-based calibration checking for Bayesian computation: the choice of test quantities
        shapes sensitivity, Bayesian Analysis (the likelihood).
    """
    run = run_of(run)
    if simulations is not None:
        check_whole(simulations, "simulations", LEAST)
    check_whole(draws, "draws")
    n = max(simulations or SIMULATIONS[0], rows or run.settings.get("rows") or 0)  # about the rows of a data set
    with suited_to((n, 1), run.model, passes=draws):
        found = simulate(run, simulations, SIMULATIONS, rows, seed)
        anew = bool(found.shared) or build is not None or isinstance(undecorated(run.guide), HoldsRows)
        parts = []
        for number, table in enumerate(found.tables):
            pair = refit(run, table.x, build, steps, (seed + 2 + number) % 2**32) if anew else run
            parts.append(rank(pair, found, table, draws, (seed + 1 + number) % 2**32, fresh=anew))
        return _tested(Ranks.joined(parts), found.simulations, draws, anew, name_of(run.guide))


def _tested(ranks: Ranks, simulations: int, draws: int, refitted: bool, guide: str) -> Calibration:
    """Tests of uniformity, and the coverage of intervals."""
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
