"""Draws of the latent sites without rows, and p(x | latents) given draws, on top of :mod:`zoo.posterior.engine`."""

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike
from zoo.base.latent_sites import data_sites, layout
from zoo.base.pairs import rows_of
from zoo.base.protocols import HoldsRows, Pair
from zoo.infer.run import Fit
from zoo.posterior.engine import Arguments, Reader, Values


def stand_in(run: Pair, x: ArrayLike | None = None) -> Reader:
    """A reader for tasks that need no rows; its rows are ``x``, or two generated ones in place of the data.

    To be called inside :func:`zoo.posterior.engine.reading`.

    Raises:
        ValueError: the model generates no rows that can be distinguished from its latent sites.
    """
    if x is not None:
        data = rows_of(run, x)
        return Reader(run, data, layout(run.model, data))
    found = layout(run.model)
    index = torch.zeros(1, dtype=torch.long)
    rows = []
    for _ in range(2):
        with poutine.block():
            trace = poutine.trace(run.model).get_trace(None, index, 1)
        names = data_sites(trace)
        rows.append([trace.nodes[name]["value"].reshape(1, -1) for name in names])
    if not names:
        raise ValueError(
            f"the model {name_of(run.model)} returns none of its sites when called without x, and has no site 'x': end "
            "it with return pyro.sample(...) of the rows (for several data sites, return a tuple of them)"
        )
    return Reader(run, torch.cat([torch.cat(row, 1) for row in rows]), found)


def shared_draws(source: Reader, draws: int, *, given: bool) -> dict[str, Tensor]:
    """Draws of the shared sites from the guide, by name (draws, ...).

    Args:
        source: from :func:`stand_in`.
        draws: the number of draws.
        given: whether its rows are the data; if not, the guide's draws must not depend on them.

    Raises:
        ValueError: the guide needs the rows to draw the shared sites, and they are not given.
    """
    if not source.layout.shared:
        return {}
    if given:
        return _shared(source, (source.x,), draws)
    sites = ", ".join(f"'{latent.name}'" for latent in source.layout.shared)
    guide = name_of(source.pair.guide)
    way_out = "pass x, the rows that the pair was fitted to, or prior=True where the function has this argument"
    try:
        values = _shared(source, _arguments(source, 0), draws)
        stream = pyro.util.get_rng_state()
        again = [_from(stream, source, row, draws) for row in range(2)]
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the guide {guide} cannot draw {sites} without rows ({why}): {way_out}") from error
    if any(not torch.equal(again[0][name], again[1][name]) for name in values):
        raise ValueError(f"the guide {guide} draws {sites} depending on the rows: {way_out}")
    return values


def _from(stream: Any, source: Reader, row: int, draws: int) -> dict[str, Tensor]:
    """The draws from a given random stream, with one row in place of the data."""
    pyro.util.set_rng_state(stream)
    return _shared(source, _arguments(source, row), draws)


def _shared(source: Reader, arguments: Arguments, draws: int) -> dict[str, Tensor]:
    """Draws of the shared sites from the guide.

    Raises:
        ValueError: the guide has no site for one of them.
    """
    values = source.draw(arguments, draws, points=True).values
    for latent in source.layout.shared:
        if latent.name not in values:
            raise ValueError(
                f"the guide {name_of(source.pair.guide)} has no site '{latent.name}', which all rows share: add it"
            )
    return {latent.name: values[latent.name] for latent in source.layout.shared}


def _arguments(source: Reader, row: int) -> Arguments:
    """The guide's arguments for one row in place of the data."""
    x, known = source.x[row : row + 1], _known_rows(source.pair, source.layout.plate)
    if source.joint_only:
        return (x.expand(known, -1),)
    return x, torch.zeros(1, dtype=torch.long, device=x.device), known


def _known_rows(run: Pair, plate: str) -> int:
    """The number of rows that the pair was trained on, if it is recorded; else 1."""
    guide = undecorated(run.guide)
    if isinstance(guide, HoldsRows):
        return guide.count
    frame = getattr(guide, "_prototype_frames", {}).get(plate)  # of Pyro's autoguides
    if frame is not None:
        return int(getattr(frame, "full_size", None) or frame.size)
    return (run.training.rows if isinstance(run, Fit) and run.training is not None else None) or 1


def likelihoods(
    source: Reader, arguments: Arguments, values: Values, draws: int
) -> tuple[dict[str, Tensor], dict[str, list[Distribution]]]:
    """p(x | latents) of some rows, given draws of the latent sites.

    Args:
        source: the pair.
        arguments: of the model: (x, index, size) or (x,), of which only the number of rows is used, or
            (None, index, size).
        values: values of the latent sites by name; the model draws those that are left out.
        draws: the number of draws.

    Returns:
        the values (draws, b, ...) of all sites, with data sites drawn anew; and the distributions of every data site,
        one per run of the model, which together hold all draws.
    """
    x, index, size = (*arguments, None, None)[:3]
    if x is not None and index is None:
        size = len(x)
    sites, traces = source.simulate((None, index, size), draws, values)
    names = source.layout.data
    return sites, {name: [trace.nodes[name]["fn"] for trace in traces] for name in names}


def moments(densities: list[Distribution], sampled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (draws, b, d) of a data site given every draw of the latent sites.

    Args:
        densities: from :func:`likelihoods`.
        sampled: draws of the site (draws, b, ...). Where its moments have no closed form, these replace the mean, with
            variance 0: over many draws the total mean and variance are the same.
    """
    found = closed_moments(densities, *sampled.shape[:2])
    if found is not None:
        return found
    mean = sampled.reshape(*sampled.shape[:2], -1)
    mean = mean if mean.is_floating_point() else mean.to(torch.get_default_dtype())
    return mean, torch.zeros_like(mean)


def closed_moments(densities: list[Distribution], draws: int, count: int) -> tuple[Tensor, Tensor] | None:
    """Mean and variance (draws, b, d) of a data site of ``count`` rows, or None where they have no closed form."""
    shape = draws // len(densities), count, -1
    try:
        means = [density.mean.reshape(shape) for density in densities]
        variances = [density.variance.reshape(shape) for density in densities]
    except NotImplementedError:
        return None
    return torch.cat(means), torch.cat(variances)
