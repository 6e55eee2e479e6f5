"""Does q(z | x) hold the truth as often as it says? Simulated truths among the guide's answers."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import Categorical

from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import Latent, latents
from zoo.diagnostics.guide.uniform import corrected, normal_score, score_test, smooth_test, symmetry_test
from zoo.infer.fitting import Fit, fit
from zoo.infer.guard import UnboundedLikelihood
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.rowwise import conditional, gaussian

BUDGET = 2**22  # numbers per array and chunk
LEAST = 20  # simulations, below which nothing would show
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the central intervals
DOUBT = 0.01  # the p-value below which a unit is called miscalibrated
PLAIN = 3.0  # standard errors from which on a bias or a spread is put into words
SAMPLE = 50  # rows that show whether a guide reads its rows


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""How simulated truths lie in the guide's posteriors: what :func:`sbc` returns.

    For z ~ p(z), x ~ p(x | z) the values u = Q(z | x), of the distribution function of every unit's q, are uniform if q
    is the posterior. In the model's own gauge: the units are the model's factors as they are, not turned.

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
            often the value comes than q says (a share).
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
                "of what x says, or the units depend on each other otherwise than in q"
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

    def __repr__(self) -> str:
        how = f"a fresh {self.guide} fitted to them" if self.refitted else self.guide
        covered = ""
        if self.coverage is not None and self.coverage_se is not None:
            at = self.levels.index(0.9)
            low, high = float(self.coverage[at].min()), float(self.coverage[at].max())
            found = f"{100 * low:.1f}" + (f" to {100 * high:.1f}" if high > low else "")
            covered = f"; 90% intervals hold {found}% (se {100 * float(self.coverage_se[at].max()):.1f})"
        return f"Calibration by {self.simulations} simulations, {how}: {self.verdict}; p = {self.p_value:.2g}{covered}"


def sbc(run: Fit, simulations: int = 500, draws: int = 99, *, seed: int = 0, steps: int | None = None) -> Calibration:
    r"""Simulation-based calibration of the guide, at the fitted parameters.

    Truths z are drawn from the prior, rows x given them, and q(z | x) is asked where the truth lies. Where it is the
    posterior, each :math:`u = Q(z_j \mid x)` is uniform. Where q is Gaussian u is exact; otherwise from the rank r
    of the truth among the draws, spread evenly over its place: :math:`u = (r + v) / (\mathrm{draws} + 1)`, v uniform,
    so that u is uniform whatever the number of draws, and bins of a histogram need not divide it. Beside the units,
    u of the likelihood log p(x | z) is tested: units alone are also uniform where q is the prior.

    A guide with parameters of its own for every row (attribute ``count``) cannot be asked about other rows. A fresh one
    of its class is then fitted to the simulated rows, the model held fast: VSBC, in which every row is a replication.

    A discrete site is judged by its probabilities: whether each value comes as often as q says where it says so.

    Args:
        run: what :func:`zoo.fit` or :func:`zoo.load` returned.
        simulations: simulated rows S, at least 20.
        draws: draws of q per row, for the ranks.
        seed: of everything drawn; the caller's random stream is left alone.
        steps: of the fit of a fresh guide; None lets it end by itself.

    Raises:
        ValueError: too few simulations or draws, latent sites that all rows share, a discrete site beside others, a
            guide that cannot be asked about new rows, or a model that simulates something infinite.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration, arXiv 1804.06788; Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?:
        Evaluating Variational Inference, ICML (VSBC); Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and
        Vehtari (2023), Simulation-based calibration checking for Bayesian computation: the choice of test quantities
        shapes sensitivity, Bayesian Analysis (the likelihood).
    """
    check_whole(simulations, "simulations", LEAST)
    check_whole(draws, "draws")
    with reading(run, seed):
        found = _sites(run)
        truth, x = _simulate(run, found, simulations)
    refitted = isinstance(getattr(run.guide, "count", None), int)
    asked = _refit(run, x, seed, steps) if refitted else run
    if not refitted:
        _check_reads_rows(run, found, x)
    with reading(asked, (seed + 1) % 2**32):  # not the stream that the truths came from
        source = reader(asked, x)
        parts = [
            _of_rows(source, found, {name: value[index] for name, value in truth.items()}, arguments, draws)
            for index, arguments in source.chunks(BUDGET // (draws * (x.shape[1] + sum(_widths(found)))))
        ]
        likelihood = torch.cat([part.likelihood for part in parts])
        first, pit = torch.cat([part.first for part in parts]), torch.cat([part.pit for part in parts])
        discrete, exact = found[0].cardinality is not None, parts[0].exact
        if discrete:
            hit = torch.nn.functional.one_hot(truth[found[0].name].long(), pit.shape[1]).double()
            scores, p_values, symmetry = score_test(hit, first)
            bias, spread = (hit - first).mean(0), scores[1]
        else:
            p_values, symmetry = smooth_test(pit)[1], symmetry_test(pit)
            bias, spread = first.mean(0), first.std(0)
    coverage = coverage_se = None
    if not discrete:
        held = torch.stack([((2 * pit - 1).abs() <= level).double().sum(0) for level in LEVELS])
        coverage, shrunk = held / simulations, (held + 2) / (simulations + 4)  # Agresti and Coull: never 0
        coverage_se = (shrunk * (1 - shrunk) / simulations).sqrt()
    return Calibration(
        units=_units(found),
        pit=pit,
        p_values=p_values,
        symmetry=symmetry,
        likelihood_pit=likelihood,
        likelihood_p_value=float(smooth_test(likelihood.unsqueeze(1))[1]),
        bias=bias,
        spread=spread,
        levels=LEVELS,
        coverage=coverage,
        coverage_se=coverage_se,
        simulations=simulations,
        draws=draws,
        exact=exact,
        refitted=refitted,
        guide=type(run.guide).__name__,
    )


def _sites(run: Fit) -> tuple[Latent, ...]:
    """The latent sites that are judged.

    Raises:
        ValueError: one is shared by all rows, or discrete beside others.
    """
    found = latents(run.model)
    for latent in found:
        if not latent.local:
            raise ValueError(
                f"latent site '{latent.name}' is shared by all rows: sbc simulates rows, not whole data sets. Use "
                "zoo.nuts to compare the guide with"
            )
        if latent.cardinality is not None and (len(found) > 1 or latent.shape):
            raise ValueError(f"latent site '{latent.name}' is discrete and not alone: sum it out of the model first")
    if not found:
        raise ValueError(f"{type(run.model).__name__} has no latent site: nothing to calibrate")
    return found


def _widths(found: tuple[Latent, ...]) -> list[int]:
    """The number of units of every site."""
    return [latent.cardinality or latent.shape.numel() for latent in found]


def _units(found: tuple[Latent, ...]) -> tuple[str, ...]:
    if found[0].cardinality is not None:
        return tuple(f"{found[0].name} = {j}" for j in range(found[0].cardinality))
    pairs = zip(found, _widths(found), strict=True)
    return tuple(f"{latent.name}[{j}]" for latent, width in pairs for j in range(width))


def _simulate(run: Fit, found: tuple[Latent, ...], simulations: int) -> tuple[dict[str, Tensor], Tensor]:
    """Truths by site (S, ...), and the rows (S, d) that the model makes of them."""
    nodes = poutine.trace(run.model).get_trace(size=simulations).nodes
    if "x" not in nodes:
        raise ValueError(f"{type(run.model).__name__} has no site 'x': sbc cannot tell what its rows are")
    x = check_rows(nodes["x"]["value"].detach(), run.model, name="what the model simulates")
    truth = {latent.name: nodes[latent.name]["value"].detach() for latent in found}
    return {latent.name: truth[latent.name].expand(simulations, *latent.shape) for latent in found}, x


def _refit(run: Fit, x: Tensor, seed: int, steps: int | None) -> Fit:
    """A fresh guide of the same class and settings, fitted to other rows, with a copy of the model held fast.

    Raises:
        ValueError: the model is no module, so that nothing can hold it fast.
    """
    name = type(run.guide).__name__
    if not isinstance(run.model, nn.Module):
        raise ValueError(
            f"{name} has parameters of its own for every row, so that sbc fits a fresh one with the model held fast, "
            "and this model is no torch module: make it a zoo.base.Module, or use Amortized"
        )
    model = copy.deepcopy(run.model).requires_grad_(False)
    options = {key: value for key, value in getattr(run.guide, "settings", {}).items() if key not in ("model", "x")}
    guide = type(run.guide)(model, x, **options)
    moves = any(p.requires_grad for p in guide.parameters())  # not where its E-step is in closed form
    still = {} if moves else {"steps": 1, "optim": Adam({"lr": 0.0})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboundedLikelihood)  # of the model, which stays as it is
        return fit(model, guide, x, **{"steps": steps, "seed": (seed + 2) % 2**32, "progress": False, **still})


def _check_reads_rows(run: Fit, found: tuple[Latent, ...], x: Tensor) -> None:
    """Refuse a guide whose answer belongs to the place of a row, and not to its content.

    Raises:
        ValueError: it is one of Pyro's autoguides, it fails on new rows, or rows in reverse do not reverse its answer.
    """
    name = getattr(run.guide, "__name__", type(run.guide).__name__)
    refusal = (
        f"the guide {name} holds parameters of the rows it was fitted to and cannot be asked about new ones: use "
        "MeanField or FullRank, of which sbc fits a fresh one, or Amortized"
    )
    if isinstance(run.guide, AutoGuide):
        raise ValueError(refusal)
    rows = x[:SAMPLE]
    try:
        with reading(run, 0):
            there, back = (poutine.trace(run.guide).get_trace(part).nodes for part in (rows, rows.flip(0)))
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(f"{refusal} ({str(error).splitlines()[0]})") from error
    for latent in found:
        if latent.name not in there:
            continue  # said later, by what needs its density
        answers = []
        for nodes in (there, back):
            q: Any = nodes[latent.name]["fn"]
            known = (q.probs,) if isinstance(q, Categorical) else gaussian(q)
            if known is None:
                return
            answers.append(known)
        for one, other in zip(*answers, strict=True):
            if one.ndim < 2 or len(one) != len(rows) or len(found) > 1:
                return  # not of single rows, or drawn given other sites
            if not torch.allclose(one, other.flip(0), rtol=1e-3, atol=1e-5):
                raise ValueError(refusal)


@dataclass(frozen=True, eq=False)
class _Part:
    """What a chunk of rows gives."""

    pit: Tensor  # (b, k)
    first: Tensor  # (b, k): normal scores of the truth, or probabilities
    likelihood: Tensor  # (b,)
    exact: bool


def _of_rows(
    source: Reader, found: tuple[Latent, ...], truth: dict[str, Tensor], arguments: Arguments, draws: int
) -> _Part:
    values = source.draw(arguments, draws).values
    terms = source.score(arguments, values).rows
    ours = torch.stack([term for name, term in terms.items() if name not in values]).sum(0)  # (draws, b)
    at_truth = source.score(arguments, {name: value.unsqueeze(0) for name, value in truth.items()}).rows
    theirs = torch.stack([at_truth[name] for name in terms if name not in values]).sum(0)  # (1, b)
    discrete = found[0].cardinality is not None
    # one value in two places of a discrete site gives one likelihood up to rounding
    rounding = 1e3 * torch.finfo(ours.dtype).eps * theirs.abs().clamp_min(1.0) if discrete else 0.0
    ties = ((ours - theirs).abs() <= rounding).sum(0)
    likelihood = _spread((ours < theirs - rounding).sum(0), draws, ties)
    if discrete:
        return _of_discrete(source, found[0], truth[found[0].name], arguments, likelihood)
    if len(found) == 1 and found[0].transform is None:
        known = gaussian(conditional(source, found[0], arguments))
        if known is not None:
            loc, root = (part.double() for part in known)
            scale = root if root.ndim == 2 else root.square().sum(-1).sqrt()
            score = (truth[found[0].name].reshape(loc.shape).double() - loc) / scale
            return _Part(torch.special.ndtr(score), score, likelihood, True)
    ranks = [(values[latent.name] < truth[latent.name]).sum(0).reshape(len(arguments[0]), -1) for latent in found]
    pit = _spread(torch.cat(ranks, 1), draws)
    return _Part(pit, normal_score(pit, 0.5 / (draws + 1)), likelihood, False)


def _of_discrete(source: Reader, latent: Latent, truth: Tensor, arguments: Arguments, likelihood: Tensor) -> _Part:
    """Of a discrete site: u of every indicator, :math:`F(y^-) + v P(y)` with v uniform.

    Raises:
        ValueError: q of the guide is not categorical.
    """
    q: Any = conditional(source, latent, arguments)
    if not isinstance(q, Categorical):
        raise ValueError(f"q of the discrete site '{latent.name}' is a {type(q).__name__}: sbc needs a Categorical")
    share = q.probs.double()
    hit = torch.nn.functional.one_hot(truth.long(), share.shape[1]).bool()
    v = torch.rand_like(share)
    return _Part(torch.where(hit, 1 - share + v * share, v * (1 - share)), share, likelihood, True)


def _spread(rank: Tensor, draws: int, ties: Tensor | int = 0) -> Tensor:
    """Ranks among draws, spread evenly over their place, or the places of what ties with them: in float64 on [0, 1]."""
    v = torch.rand(rank.shape, dtype=torch.float64, device=rank.device)
    return (rank + v * (ties + 1)) / (draws + 1)
