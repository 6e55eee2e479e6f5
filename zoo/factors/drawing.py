"""Draws of the latent sites without rows, and p(x | latents) at given draws: what this wing asks of the engine."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from zoo.base.callables import name_of, undecorated
from zoo.base.checks import check_rows
from zoo.base.latent_sites import data_sites, layout
from zoo.base.protocols import HoldsRows, Pair
from zoo.posterior.engine import Arguments, Reader, Values


def stand_in(run: Pair, x: Any = None) -> Reader:
    """A reader for what needs no rows; its rows are ``x``, or as many generated ones as the guide knows.

    Call it inside :func:`zoo.posterior.engine.reading`.

    Raises:
        ValueError: the model generates no rows that could be told from its latent sites.
    """
    if x is not None:
        x = check_rows(x, undecorated(run.model))
        return Reader(run, x, layout(run.model, x))
    found = layout(run.model)
    index = torch.zeros(1, dtype=torch.long)
    with poutine.block():
        trace = poutine.trace(run.model).get_trace(None, index, 1)
    names = data_sites(trace)
    if not names:
        raise ValueError(
            f"the model {name_of(run.model)} returns none of its sites when it is called without x, and has no site "
            "'x': end it with return pyro.sample(...) of the rows (of several data sites, with a tuple of them)"
        )
    row = torch.cat([trace.nodes[name]["value"].reshape(1, -1) for name in names], 1)
    source = Reader(run, row, found)
    return Reader(run, row.expand(_known_rows(run, found.plate), -1), found) if source.joint_only else source


def shared_draws(source: Reader, draws: int, *, given: bool) -> dict[str, Tensor]:
    """Draws of the shared sites from the guide, by name (draws, ...).

    Args:
        source: from :func:`stand_in`.
        draws: their number.
        given: whether its rows are the data; else the guide must not depend on them.

    Raises:
        ValueError: the guide needs the rows for the shared sites, and they are not given.
    """
    names = [latent.name for latent in source.layout.shared]
    if not names:
        return {}
    if given:
        drawn = source.draw((source.x,), draws, points=True)
        return _shared(source, drawn.values, draws)
    sites = ", ".join(f"'{name}'" for name in names)
    guide = name_of(source.pair.guide)
    way_out = "pass x, the rows that the pair was fitted to, or prior=True where there is such an argument"
    try:
        drawn = source.draw(_arguments(source, 0.0), draws, points=True)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the guide {guide} gives no draws of {sites} without rows ({why}): {way_out}") from error
    values = _shared(source, drawn.values, draws)
    if not source.joint_only:
        other = source.draw(_arguments(source, 1.0), draws, values, points=True)
        for name, log_q in drawn.log_q.shared.items():
            if name in other.log_q.shared and not torch.allclose(log_q, other.log_q.shared[name]):
                raise ValueError(f"the guide {guide} draws {sites} given the rows, by its site '{name}': {way_out}")
    return values


def _shared(source: Reader, values: Values, draws: int) -> dict[str, Tensor]:
    """The shared sites among the values.

    Raises:
        ValueError: the guide leaves one out.
    """
    for latent in source.layout.shared:
        if latent.name not in values:
            raise ValueError(
                f"the guide {name_of(source.pair.guide)} has no site '{latent.name}', which all rows share: add it"
            )
    return {latent.name: values[latent.name] for latent in source.layout.shared}


def _arguments(source: Reader, shift: float) -> Arguments:
    """The guide's arguments for a row that stands in for the data."""
    if source.joint_only:
        return (source.x,)
    known = _known_rows(source.pair, source.layout.plate)
    return source.x + shift, torch.zeros(1, dtype=torch.long, device=source.x.device), known


def _known_rows(run: Pair, plate: str) -> int:
    """The number of rows that the pair was trained on, as far as it is recorded; else 1."""
    guide = undecorated(run.guide)
    if isinstance(guide, HoldsRows):
        return guide.count
    frame = getattr(guide, "_prototype_frames", {}).get(plate)  # of Pyro's autoguides
    if frame is not None:
        return int(getattr(frame, "full_size", None) or frame.size)
    training = getattr(run, "training", None)
    return getattr(training, "rows", None) or 1


def likelihoods(
    source: Reader, arguments: Arguments, values: Values, draws: int
) -> tuple[dict[str, Tensor], dict[str, list[Distribution]]]:
    """p(x | latents) of some rows at draws of the latent sites.

    Args:
        source: the pair.
        arguments: of the model: (x, index, size) or (x,), of which x only tells the number of rows, or
            (None, index, size).
        values: of the latent sites, by name; those left out are drawn from the model.
        draws: their number.

    Returns:
        all sites' values (draws, b, ...), drawn for data sites; and for every data site its distributions, each
        of as many draws as the model took in one run.
    """
    x, index, size = (*arguments, None, None)[:3]
    if x is not None and index is None:
        size = len(x)
    sites, traces = source.simulate((None, index, size), draws, values)
    names = source.layout.data
    return sites, {name: [trace.nodes[name]["fn"] for trace in traces] for name in names}


def moments(densities: list[Distribution], sampled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (draws, b, d) of a data site at every draw of the latent sites.

    Args:
        densities: from :func:`likelihoods`.
        sampled: the site's drawn values (draws, b, ...), which stand in, with variance 0, for a distribution that has
            no moments in closed form: over many draws the total mean and variance are the same.
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
