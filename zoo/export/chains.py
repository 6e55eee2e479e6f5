"""Several fits of one model as chains: the same shapes, and factors or components that mean the same."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.alignment.matching import align
from zoo.alignment.symmetry import Alignment, concerned_site
from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.latent_sites import Latent
from zoo.base.protocols import Pair
from zoo.export.variables import parameters
from zoo.posterior.engine import reader, reading

Transform = Callable[[Latent, Tensor], Tensor]  # draws of a latent site to the same draws in other coordinates
INDEPENDENT = "independent draws from a guide, one chain: R-hat and effective sample size carry no information"
SEEDS = (
    "one chain per run, each of independent draws from that run's guide: R-hat compares the runs, not a sampler's "
    "progress. Near 1, all seeds have reached the same optimum and the same guide, be it right or wrong: the distance "
    "from the true posterior is in sample_stats (khat) and in zoo.evaluate. The effective sample size only counts draws"
)
Shape = list[tuple[Any, ...]]


def check(runs: Sequence[Pair], x: Sequence[Tensor]) -> None:
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
                if mine is other and isinstance(unwrapped(mine), nn.Module):
                    raise ValueError(
                        f"runs {earlier} and {number} hold the same {what}, which the later fit has trained further: "
                        "build a new model and guide for every seed"
                    )
        for what in ("model", "guide"):
            mine, other = name_of(getattr(run, what)), name_of(getattr(runs[0], what))
            if mine != other:
                raise ValueError(
                    f"run {number} has the {what} {mine}, run 0 {other}: chains are fits of one model by one kind of "
                    "guide. Export them one by one; zoo.evaluate and az.compare compare"
                )
        if _shape(run, x[number]) != _shape(runs[0], x[0]):
            raise ValueError(
                f"run {number} has other latent sites or parameters than run 0: chains are fits of models of one shape"
            )


def alignment(runs: Sequence[Pair], x: Tensor) -> tuple[list[PyroCallable], list[Transform], str]:
    """Models and draws in the coordinates of the first run.

    Rotations of factors are those of :func:`zoo.alignment.align`, and so are the numbers of components. A model whose
    symmetries are not known there (a network, a model of the user's) is left as it is.

    Returns:
        models whose parameters compare, what to apply to each run's draws, and what was done, in words.
    """
    models: list[PyroCallable] = [runs[0].model]
    transforms: list[Transform] = [unchanged]
    try:
        with reading(runs[0], 0):
            found = reader(runs[0], x).layout.latents
        for run in runs[1:]:
            model = undecorated(run.model)
            with run.scope():
                change = align(model, undecorated(runs[0].model))
                models.append(change.apply(model))
            transforms.append(_transform(change, found))
    except TypeError:
        words = (
            f"none: {name_of(runs[0].model)} has no rotation or numbering known to zoo.alignment, so the latent sites "
            "of two chains may differ where the models agree: R-hat is meaningful for the data's predictions, and not "
            "necessarily for the latent sites"
        )
        return [run.model for run in runs], [unchanged] * len(runs), words
    rotated = "rotation and sign of the factors" if change.rotation is not None else "numbers of the components"
    return models, transforms, f"{rotated} of every chain are aligned to chain 0 (zoo.alignment.align)"


def unchanged(site: Latent, value: Tensor) -> Tensor:
    """The coordinates of a run on its own."""
    return value


def _transform(change: Alignment, found: Sequence[Latent]) -> Transform:
    """The alignment on draws of the one site that it concerns.

    Raises:
        TypeError: no site, or several, could be meant.
    """
    name = concerned_site(change, found)
    return lambda site, value: change.factors(value) if site.name == name else value


def _shape(run: Pair, x: Tensor) -> Shape:
    with reading(run, 0):
        source = reader(run, x)
        held = parameters(run.model, source)
    sites: Shape = [(own.name, own.shape, own.local, own.cardinality) for own in source.layout.latents]
    return sites + [(name, each.values.shape) for name, each in held.items()]
