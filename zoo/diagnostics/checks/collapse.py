"""Have latent units or components collapsed?"""

from collections.abc import Iterator
from typing import Any

import polars as pl
import torch
from torch import Tensor

from zoo.base.callables import name_of, undecorated
from zoo.base.protocols import Collapsing, Conjugate, Mixture
from zoo.diagnostics.checks.check import Case, Check, Finding, Level
from zoo.diagnostics.guide.relevance import EffectiveSize, effective_size, has_effective_size
from zoo.posterior.engine import reader, reading
from zoo.posterior.rates import RateDistortion, rate_distortion


class Collapse(Check):
    """Units whose posterior mean does not vary over the rows; for a mixture, components with less than one row.

    Where priors switch factors off or empty components, that is no fault: the number in use is reported.
    """

    name = "collapse"

    def measure(self, case: Case) -> RateDistortion | Tensor | EffectiveSize | str:
        """Rate and distortion by unit; for a mixture the expected number of rows of every component (k,).

        For a model whose priors decide how many factors or components are in use, their number. For one with a
        covariance at its floor, that in words.
        """
        model = undecorated(case.run.model)
        with reading(case.run, case.seed):
            sized = has_effective_size(reader(case.run, case.x).layout)
        if sized:
            return effective_size(case.run, case.x, seed=case.seed)
        if isinstance(model, Collapsing):
            with reading(case.run, case.seed):
                reason = model.collapse(case.x)
            if reason is not None:
                return reason
        if not isinstance(model, Mixture):
            return rate_distortion(case.run, case.x, seed=case.seed)
        if not isinstance(model, Conjugate):
            raise ValueError(f"{name_of(case.run.model)} has no closed-form responsibilities")
        with reading(case.run, case.seed):
            posterior: Any = model.posterior(case.x)
            return torch.as_tensor(posterior.probs).sum(0)

    def judge(self, measured: RateDistortion | Tensor | EffectiveSize | str) -> Finding:
        """Careful if one has collapsed, bad if all have or a covariance has; with priors, bad if none is in use."""
        if isinstance(measured, str):
            reason, advice = measured.split(". ", 1)
            return Finding(self.name, "bad", 1.0, 1.0, reason, advice)
        if isinstance(measured, EffectiveSize):
            return self._sized(measured)
        if isinstance(measured, Tensor):
            empty, k = int((measured < 1).sum()), len(measured)
            reason = f"{empty} of {k} components have less than one row; the smallest has {float(measured.min()):.3g}"
            level: Level = "careful" if empty else "good"
            return Finding(self.name, level, empty / k, 1.0, reason, "Take fewer components" if empty else "")
        gone, k = len(measured.collapsed), len(measured.variance)
        level = "bad" if gone == k else "careful" if gone else "good"
        advice = "Take fewer factors; to prevent collapse in training, use AnnealedELBO with linear_warmup or free_bits"
        return Finding(self.name, level, gone / k, 1.0, measured.verdict, advice if gone else "")

    def _sized(self, measured: EffectiveSize) -> Finding:
        k, kept = len(measured.values), measured.kept
        if measured.unit == "factors":
            reason = f"{kept} of {k} factors are kept (relevance below {measured.threshold:.3g})"
            off = "the prior has switched off the others"
        else:
            reason = f"{kept} of {k} components are in use (at least {measured.threshold:g} expected rows)"
            off = "the others are empty"
        reason += f"; {off}" if kept < k else ": all of them, so that a larger model may use more"
        advice = "" if kept else "The model explains nothing: look at the units of the columns, and at other starts"
        return Finding(self.name, "good" if kept else "bad", 1 - kept / k, 1.0, reason, advice)

    def tables(self, measured: RateDistortion | Tensor | EffectiveSize | str) -> Iterator[tuple[str, pl.DataFrame]]:
        """A row per unit."""
        if isinstance(measured, EffectiveSize):
            words = pl.when(pl.col("in_use")).then(pl.lit("yes")).otherwise(pl.lit("no"))
            yield f"{measured.unit.capitalize()} in use", measured.frame().with_columns(words.alias("in_use"))
            return
        if isinstance(measured, Tensor | str):
            return
        k = len(measured.variance)
        kl = [None] * k if measured.unit_kl is None else measured.unit_kl.tolist()
        columns = {
            "unit": list(range(k)),
            "KL from the prior, nats": kl,
            "variance of the means": measured.variance.tolist(),
            "active": ["yes" if own else "no" for own in measured.active.tolist()],
        }
        yield "Units", pl.DataFrame(columns, schema_overrides={"KL from the prior, nats": pl.Float64})
