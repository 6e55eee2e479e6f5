"""Several fits of one model as chains: the same shapes, and factors or components that mean the same."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.alignment.matching import align
from zoo.alignment.symmetry import Alignment
from zoo.base.latent_sites import Latent, latents
from zoo.export.variables import parameters
from zoo.infer.fitting import Fit
from zoo.posterior.engine import reading

Turn = Callable[[Latent, Tensor], Tensor]  # draws of a latent site to the same draws in other coordinates
INDEPENDENT = "independent draws from a guide, one chain: R-hat and effective sample size say nothing here"
SEEDS = (
    "one chain per run, each of independent draws from that run's guide: R-hat compares the runs, not a sampler's "
    "progress. Near 1, all seeds have come to the same optimum and the same guide, be it right or wrong: the distance "
    "from the true posterior is in sample_stats (khat) and in zoo.evaluate. The effective sample size only counts draws"
)
Shape = list[tuple[Any, ...]]


def check(runs: Sequence[Fit], x: Sequence[Tensor]) -> None:
    """Refuse runs that are no chains of one model.

    Args:
        runs: the fits.
        x: the rows, as each run's model takes them.

    Raises:
        ValueError: no runs, the same module in two of them, or models or guides of different class or shape.
    """
    if not runs:
        raise ValueError("runs is empty: pass one fit, or several of one model")
    for number, run in enumerate(runs):
        for earlier in range(number):
            for what in ("model", "guide"):
                mine, other = getattr(run, what), getattr(runs[earlier], what)
                if mine is other and isinstance(mine, nn.Module):
                    raise ValueError(
                        f"runs {earlier} and {number} hold the same {what}, which the later fit has trained further: "
                        "build a new model and guide for every seed"
                    )
        for what in ("model", "guide"):
            mine, other = title(getattr(run, what)), title(getattr(runs[0], what))
            if mine != other:
                raise ValueError(
                    f"run {number} has the {what} {mine}, run 0 {other}: chains are fits of one model by one kind of "
                    "guide. Export them one by one; zoo.evaluate and az.compare compare"
                )
        if _shape(run, x[number]) != _shape(runs[0], x[0]):
            raise ValueError(
                f"run {number} has other latent sites or parameters than run 0: chains are fits of models of one shape"
            )


def alignment(runs: Sequence[Fit], x: Tensor) -> tuple[list[Any], list[Turn], str]:
    """Models and draws in the coordinates of the first run.

    Rotations of factors are those of :func:`zoo.alignment.align`, and so are numbers of components. A model that
    has no gauge known there (a network, a model of the user's) is taken as it is.

    Returns:
        models whose parameters compare, what to apply to each run's draws, and what was done, in words.
    """
    models: list[Any] = [runs[0].model]
    turns: list[Turn] = [unchanged]
    try:
        with reading(runs[0], 0):
            found = latents(runs[0].model, x)
        for run in runs[1:]:
            with run.scope():
                gauge = align(run.model, runs[0].model)
                models.append(gauge.apply(run.model))
            turns.append(_turn(gauge, found))
    except TypeError:
        words = (
            f"none: {title(runs[0].model)} has no gauge that is known (zoo.alignment), so the latent sites of two "
            "chains may differ where the models agree: R-hat of the data's predictions means something, that of the "
            "latent sites need not"
        )
        return [run.model for run in runs], [unchanged] * len(runs), words
    rotated = "rotation and sign of the factors" if gauge.rotation is not None else "numbers of the components"
    return models, turns, f"{rotated} of every chain are aligned to chain 0 (zoo.alignment.align)"


def unchanged(site: Latent, value: Tensor) -> Tensor:
    """The coordinates of a run on its own."""
    return value


def title(thing: Any) -> str:
    """The name of a function, or of an object's class."""
    return str(getattr(thing, "__name__", type(thing).__name__))


def _turn(gauge: Alignment, found: Sequence[Latent]) -> Turn:
    """The gauge on draws of the one site that it concerns.

    Raises:
        TypeError: no site, or several, could be meant.
    """
    local = [site for site in found if site.local]
    if gauge.rotation is not None:
        meant = [s.name for s in local if s.cardinality is None and s.shape == gauge.rotation.shape[:1]]
    else:
        assert gauge.order is not None
        meant = [s.name for s in local if s.cardinality == len(gauge.order)]
    if len(meant) != 1:
        raise TypeError("a gauge concerns one latent site")
    return lambda site, value: gauge.factors(value) if site.name == meant[0] else value


def _shape(run: Fit, x: Tensor) -> Shape:
    with reading(run, 0):
        found = latents(run.model, x)
        held = parameters(run.model, x[:1], found)
    sites: Shape = [(site.name, site.shape, site.local, site.cardinality) for site in found]
    return sites + [(name, each.values.shape) for name, each in held.items()]
