"""Several fits of one model as chains: equal shapes, and factors or components aligned across the chains."""

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
    "one chain per run, each of independent draws from that run's guide: R-hat compares the runs and does not measure "
    "the convergence of a sampler. Near 1, all seeds have reached the same optimum and the same guide, whether or not "
    "it is close to the posterior: for that see khat in sample_stats, and zoo.evaluate. The effective sample size only "
    "counts draws"
)
Shape = list[tuple[Any, ...]]


def check(runs: Sequence[Pair], x: Sequence[Tensor]) -> None:
    """Refuse runs that cannot be chains of one model.

    Args:
        runs: the fits.
        x: the rows of each run, in the dtype and on the device of its model.

    Raises:
        ValueError: no runs, the same module in two of them, or models or guides of different class or shape.
    """
    if not runs:
        raise ValueError("runs is empty: pass one fit, or several of one model")
    for number, run in enumerate(runs):
        for earlier in range(number):
            for what, mine, other in _both(run, runs[earlier]):
                if mine is other and isinstance(unwrapped(mine), nn.Module):
                    raise ValueError(
                        f"runs {earlier} and {number} hold the same {what}, which the later fit has trained further: "
                        "build a new model and guide for every seed"
                    )
        for what, mine, other in _both(run, runs[0]):
            if name_of(mine) != name_of(other):
                raise ValueError(
                    f"run {number} has the {what} {name_of(mine)}, run 0 {name_of(other)}: chains are fits of one "
                    "model by one kind of guide. Export them one by one, and compare them by zoo.evaluate or az.compare"
                )
        if _shape(run, x[number]) != _shape(runs[0], x[0]):
            raise ValueError(
                f"run {number} and run 0 differ in the shapes of their latent sites or parameters: chains are fits of "
                "one model of one size"
            )


def _both(run: Pair, other: Pair) -> tuple[tuple[str, PyroCallable, PyroCallable], ...]:
    """The models and the guides of two runs, by the name of the part."""
    return ("model", run.model, other.model), ("guide", run.guide, other.guide)


def alignment(runs: Sequence[Pair], x: Tensor) -> tuple[list[PyroCallable], list[Transform], str]:
    """Models and draws in the coordinates of the first run.

    The rotation of factors and the numbering of components are those of :func:`zoo.alignment.align`. A model whose
    symmetries are unknown there (one with a network, or a user's own) is left unchanged.

    Returns:
        models with comparable parameters, the transform of each run's draws, and a description of the alignment.
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
            f"none: zoo.alignment does not know the symmetries of {name_of(runs[0].model)}, so the latent sites of two "
            "chains may differ even where the models are equivalent: R-hat is meaningful for predictions of the data, "
            "but not necessarily for the latent sites"
        )
        return [run.model for run in runs], [unchanged] * len(runs), words
    rotated = "rotation and sign of the factors" if change.rotation is not None else "numbers of the components"
    return models, transforms, f"{rotated} of every chain are aligned to chain 0 (zoo.alignment.align)"


def unchanged(site: Latent, value: Tensor) -> Tensor:
    """The identity: the draws of a single run keep their coordinates."""
    return value


def _transform(change: Alignment, found: Sequence[Latent]) -> Transform:
    """The alignment as a transform of draws: it acts on the one site concerned.

    Raises:
        TypeError: no site, or more than one, fits the alignment.
    """
    name = concerned_site(change, found)
    return lambda site, value: change.factors(value) if site.name == name else value


def _shape(run: Pair, x: Tensor) -> Shape:
    with reading(run, 0):
        source = reader(run, x)
        held = parameters(run.model, source)
    sites: Shape = [(own.name, own.shape, own.local, own.cardinality) for own in source.layout.latents]
    return sites + [(name, each.values.shape) for name, each in held.items()]
