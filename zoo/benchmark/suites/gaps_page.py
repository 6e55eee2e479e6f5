"""The page of the suite ``gaps``: its text, its claims and its figure."""

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from zoo.benchmark.suite import Claim
from zoo.plots.style import PALETTE, legend_above, new_axes
from zoo.plots.style import TEXT as SMALL

FACTORISED, FULL, FLOW, SEMI = "factorised Gaussian", "full Gaussian", "flow", "semi-amortized"
ERRORS, SEARCH = 4.0, 2e-3  # tolerated standard errors, and nats by which a search may stop short
SAME_SIZE = 3.0  # a ratio between its inverse and itself counts as the same size

TEXT = """\
The gap between log p(x) and a guide's bound has two parts (Cremer, Li and Duvenaud 2018): the approximation gap, from
log p(x) to the bound of the best q that the guide's family has for the row, and the amortization gap, from there to the
bound of the q that the network proposes. The best q is searched for every row with the model held, from the guide's q:
Gaussians by Adam on path derivatives, flows with all parameters of their own for every row. log p(x) is the highest of
two stochastic lower bounds, importance weighting from the guide and annealed importance sampling from the best q; the
approximation gap is therefore a lower bound in expectation.

On linear models, frozen at their maximum with rotated loadings so that the factors correlate a posteriori, both gaps
are known. (With free loadings the model would rotate until a factorised q is exact, and the gap would be 0.) Their
closed forms are hidden from the evaluation, which treats them as deep models; `closed_approximation` and
`closed_amortization` are the truth. The VAEs are trained with every guide anew, so that the model adapts to the guide.
The gaps are those of training rows, as in the paper; `held_out_amortization` is that of test rows, to which the network
must generalise.

The published figures are for MNIST with larger networks, longer training and other flows: compare sizes, not digits.
"""


def claims(table: pl.DataFrame, *, brief: bool) -> Sequence[Claim]:
    """Closed forms on linear models; the sizes of the gaps on MNIST. ``brief`` trainings of VAEs decide nothing."""
    done = table.filter(pl.col("status") == "done")
    linear = done.filter(pl.col("closed_approximation").is_not_nan())
    models = [case for case in done["case"].unique(maintain_order=True) if case in set(linear["case"])]
    return [
        _agreement(linear, "approximation"),
        _agreement(linear, "amortization"),
        *(_flow_below(done, case, f"On {case} the flow's approximation gap is the smaller one") for case in models),
        _same_size(done, brief),
        _flow_below(
            done, "mnist", "On MNIST the flow's approximation gap is below the factorised Gaussian's", undecided=brief
        ),
        _refined(done, brief),
    ]


def _agreement(rows: pl.DataFrame, gap: str) -> Claim:
    """Whether measured and closed gap agree within the Monte Carlo error in all rows of linear models."""
    text = f"On linear models the measured {gap} gap is that of the closed form"
    if not len(rows):
        return Claim(text, None, "no finished rows")
    apart = (pl.col(gap) - pl.col(f"closed_{gap}")).abs()
    found = rows.with_columns(apart=apart, allowed=ERRORS * pl.col(f"{gap}_se") + SEARCH)
    worst = found.sort(pl.col("apart") / pl.col("allowed")).tail(1).row(0, named=True)
    figures = (
        f"furthest of {len(rows)} runs: {worst[gap]:.4f} (se {worst[f'{gap}_se']:.1g}) against "
        f"{worst[f'closed_{gap}']:.4f}, {worst['case']}, {worst['method']}"
    )
    return Claim(text, bool((found["apart"] <= found["allowed"]).all()), figures)


def _mean(rows: pl.DataFrame, case: str, method: str, gap: str) -> float:
    found = rows.filter((pl.col("case") == case) & (pl.col("method") == method))[gap].drop_nans()
    return float(found.mean()) if len(found) else math.nan  # type: ignore[arg-type]


def _flow_below(rows: pl.DataFrame, case: str, text: str, undecided: bool = False) -> Claim:
    flow, other = (_mean(rows, case, method, "approximation") for method in (FLOW, FACTORISED))
    if math.isnan(flow + other):
        return Claim(text, None, "no finished rows of both")
    return Claim(
        text, None if undecided else flow < other, f"{flow:.3f} against {other:.3f} nats per row{_brief(undecided)}"
    )


def _same_size(rows: pl.DataFrame, brief: bool) -> Claim:
    text = "On MNIST the amortization gap is of the same size as the approximation gap (published: 1.34 and 1.43)"
    amortization, approximation = (_mean(rows, "mnist", FACTORISED, gap) for gap in ("amortization", "approximation"))
    if math.isnan(amortization + approximation):
        return Claim(text, None, "no finished rows")
    ratio = amortization / approximation if approximation > 0 else math.inf
    figures = f"{amortization:.2f} and {approximation:.2f} nats per row, ratio {ratio:.2f}{_brief(brief)}"
    return Claim(text, None if brief else 1 / SAME_SIZE < ratio < SAME_SIZE, figures)


def _refined(rows: pl.DataFrame, brief: bool) -> Claim:
    text = "Refinement leaves less amortization gap than the network alone, on every data set"
    pairs = {
        case: [_mean(rows, case, method, "amortization") for method in (SEMI, FACTORISED)]
        for case in rows["case"].unique(maintain_order=True)
    }
    pairs = {case: pair for case, pair in pairs.items() if not math.isnan(sum(pair))}
    if not pairs:
        return Claim(text, None, "no finished rows of both")
    figures = "; ".join(f"{case} {semi:.3f} against {plain:.3f}" for case, (semi, plain) in pairs.items())
    return Claim(text, None if brief else all(a < b for a, b in pairs.values()), figures + _brief(brief))


def _brief(brief: bool) -> str:
    return " (trained too briefly to decide)" if brief else ""


def draw(table: pl.DataFrame) -> Any:
    """Both gaps of every method as stacked bars, by case, with the closed forms as lines."""
    done = table.filter(pl.col("status") == "done")
    means = done.group_by("case", "method", maintain_order=True).agg(
        pl.col("approximation", "amortization", "closed_approximation").mean()
    )
    ax = new_axes(None, (5.0, 0.22 * len(means) + 1.2))
    names = []
    for place, row in enumerate(means.iter_rows(named=True)):
        first = max(row["approximation"], 0.0)
        labels = ("approximation gap", "amortization gap") if place == 0 else ("", "")
        ax.barh(place, first, color=PALETTE[0], label=labels[0])
        ax.barh(place, max(row["amortization"], 0.0), left=first, color=PALETTE[1], label=labels[1])
        if not math.isnan(row["closed_approximation"]):
            label = "closed form" if "closed form" not in ax.get_legend_handles_labels()[1] else ""
            ends = [row["closed_approximation"]] * 2
            ax.plot(ends, [place - 0.45, place + 0.45], color="black", linewidth=1.2, label=label)
        names.append(f"{row['case']}: {row['method']}")
    ax.set_yticks(range(len(names)), names, fontsize=SMALL - 1)
    ax.invert_yaxis()
    ax.set_xlabel("nats per row", fontsize=SMALL)
    legend_above(ax)
    return ax.get_figure()
