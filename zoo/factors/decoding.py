"""Encoding rows to posterior means of the factors, and decoding factors to p(x | z), for any model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.base.callables import name_of, undecorated, unwrapped
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.covariates import check_row_buffers, row_buffers
from zoo.base.latent_sites import Latent, layout
from zoo.base.memory import rows_at_once
from zoo.base.module import like
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import Decoding, HasPosterior, HasWidth, Pair
from zoo.factors.drawing import likelihoods, shared_draws, stand_in
from zoo.posterior.engine import reader, reading

Numbers = Tensor | np.ndarray | Sequence[Any]  # numbers that a tensor can be made of


def factor_site(run: Pair, task: str, *, decoding: bool = True) -> Latent:
    """The model's one latent site with a real vector per row: its factors.

    Args:
        run: a trained pair.
        task: the name of the calling function, for the message.
        decoding: whether p(x | z) is needed, which other local sites make unavailable.

    Raises:
        ValueError: the model has no such site, more than one, or other local sites beside it without a method
            ``decode``.
    """
    with run.scope():
        found = layout(run.model)
    name = name_of(run.model)
    factors = [latent for latent in found.local if latent.cardinality is None]
    need = f"{task} needs factors, one latent site with a real vector per row, and {name}"
    if not factors:
        kind = ", ".join(
            f"'{latent.name}' is {'discrete' if latent.local else 'shared by all rows'}" for latent in found.latents
        )
        raise ValueError(
            f"{need} has none ({kind or 'it has no latent site'}): zoo.generate, zoo.reconstruct and zoo.impute "
            "work for such models"
        )
    own = isinstance(undecorated(run.model), Decoding)
    if len(factors) > 1 or (decoding and len(found.local) > 1 and not own):
        names = ", ".join(f"'{latent.name}'" for latent in found.local)
        raise ValueError(
            f"{need} has the sites {names}: give it a method decode(z) that returns p(x | z) for the factors alone"
        )
    if factors[0].transform is not None:
        raise ValueError(
            f"{need} constrains '{factors[0].name}' to {factors[0].support}, where 0 and straight lines are arbitrary: "
            "take draws from run.sample(x) and change them yourself"
        )
    return factors[0]


class Averaged(Distribution):
    r"""p(x | z), averaged over draws of the shared sites, :math:`\frac1S \sum_s p(x \mid z, \theta_s)`.

    Args:
        parts: the distributions from one or several runs of the model, with batch (S, *left, count) together.
        draws: the number S of draws of the shared sites.
        left: the batch dimensions of the factors to the left of the rows.
        count: the number of rows.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as in torch)

    def __init__(self, parts: Sequence[Distribution], draws: int, left: torch.Size, count: int) -> None:
        self.parts, self.draws = list(parts), draws
        super().__init__(torch.Size((*left, count)), parts[0].event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of its parts."""
        return self.parts[0].support

    def _stacked(self, of: Callable[[Distribution], Tensor], event: torch.Size) -> Tensor:
        values = [of(part).reshape(-1, self.batch_shape[-1], *event) for part in self.parts]
        return torch.cat(values).reshape(self.draws, *self.batch_shape, *event)

    @property
    def mean(self) -> Tensor:
        """The mean (..., n, d)."""
        return self._stacked(lambda part: part.mean, self.event_shape).mean(0)

    @property
    def variance(self) -> Tensor:
        """The variance of every entry (..., n, d): mean noise variance plus the variance of the mean over the draws."""
        between = self._stacked(lambda part: part.mean, self.event_shape).var(0, correction=0)
        return self._stacked(lambda part: part.variance, self.event_shape).mean(0) + between

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, ..., n, d), each given one draw of the shared sites chosen at random."""
        found = []
        for _ in range(math.prod(sample_shape)):
            values = self._stacked(lambda part: part.sample(), self.event_shape)
            chosen = torch.randint(self.draws, self.batch_shape, device=values.device)
            chosen = chosen.reshape(1, *chosen.shape, *(1 for _ in self.event_shape))
            found.append(values.gather(0, chosen.expand(1, *values.shape[1:])).squeeze(0))
        return torch.stack(found).reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of rows (..., n, d): (..., n)."""
        wide = value.expand(self.draws, *self.batch_shape, *self.event_shape)
        wide = wide.reshape(-1, self.batch_shape[-1], *self.event_shape)
        each = wide.split(len(wide) // len(self.parts))
        shaped = {id(part): own for part, own in zip(self.parts, each, strict=True)}
        log_p = self._stacked(
            lambda part: part.log_prob(shaped[id(part)].reshape(*part.batch_shape, *self.event_shape)), torch.Size()
        )
        return log_p.logsumexp(0) - math.log(self.draws)


@torch.no_grad()
def decode(
    run: Trained,
    z: Numbers,
    *,
    rows: Sequence[int] | None = None,
    x: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Distribution:
    """p(x | z) for given factors: a distribution with batch (..., n), event (d,).

    Uses the model's own method ``decode`` where it has one. Otherwise the model is run with its site fixed to ``z``,
    and the distribution of its data site is averaged over draws of the shared sites from the guide.

    Args:
        run: a trained pair.
        z: factors (..., n, k).
        rows: the numbers of the n rows, where the model holds covariates; None: all rows, 0 to n - 1.
        x: the rows that the guide was fitted to, where it needs them to draw the shared sites.
        draws: number of draws of the shared sites.
        seed: seed of these draws.

    Raises:
        ValueError: the model has no factors (see :func:`factor_site`), more than one data site, or covariates for
            another number of rows; or ``z`` has the wrong width.

    >>> import torch, guides, zoo
    >>> x = zoo.data.load("iris").x
    >>> model = zoo.PPCA(data_dim=4, latent_dim=2)
    >>> run = zoo.fit(model, guides.Exact(model), x, steps=20, progress=False)
    >>> decode(run, torch.zeros(5, 2)).mean.shape
    torch.Size([5, 4])
    """
    run = pair_of(run)
    latent = factor_site(run, "decode")
    factors = placed(z, run)
    k = latent.shape.numel()
    if factors.ndim < 2 or factors.shape[-1] != k:
        raise ValueError(f"z has shape {tuple(factors.shape)}: pass one row of factors per row of x, (n, {k})")
    shaped = factors.reshape(*factors.shape[:-1], *latent.shape)
    left, n = factors.shape[:-2], factors.shape[-2]
    with reading(run, seed):
        held = row_buffers(run.model)
        model = undecorated(run.model)
        if isinstance(model, Decoding) and not held:
            return model.decode(shaped)
        index = None if rows is None or not held else torch.tensor(list(rows), device=shaped.device)
        if index is None:
            check_row_buffers(run.model, n)
        size = n if index is None else next(iter(held.values()))
        source = stand_in(run, x)
        if len(source.layout.data) != 1:
            names = ", ".join(f"'{name}'" for name in source.layout.data)
            raise ValueError(f"decode needs a model with one data site, {name_of(run.model)} has {names}")
        count = check_whole(draws, "draws") if source.layout.shared else 1
        values = shared_draws(source, count, given=x is not None)
        inner = math.prod(left)
        values = {name: value.repeat_interleave(inner, 0) for name, value in values.items()}
        values[latent.name] = shaped.expand(count, *shaped.shape).reshape(count * inner, n, *latent.shape)
        _, densities = likelihoods(source, (None, index, size), values, count * inner)
    return Averaged(densities[source.layout.data[0]], count, left, n)


def decoded_mean(
    run: Pair, z: Tensor, rows: Sequence[int] | None, x: ArrayLike | None, draws: int, seed: int
) -> Tensor:
    """The means of p(x | z) (s, m, d) for factors (s, m, k) of m rows."""
    with run.scope():
        shared = len(layout(run.model).shared) > 0
    inner = unwrapped(run.model)
    width = inner.data_dim if isinstance(inner, HasWidth) else 1000
    count = rows_at_once(len(z) * draws * width) if shared and rows is not None else z.shape[1]
    parts = []
    for piece in torch.arange(z.shape[1]).split(max(1, count)):
        some = None if rows is None else [rows[i] for i in piece.tolist()]
        parts.append(decode(run, z[:, piece], rows=some, x=x, draws=draws, seed=seed).mean)
    return torch.cat(parts, 1)


def placed(z: Numbers, run: Pair) -> Tensor:
    """``z`` as a tensor of the model's dtype on its device."""
    module = unwrapped(run.model)
    return like(z, module if isinstance(module, nn.Module) else nn.Module())


def encode(run: Trained, x: ArrayLike, *, draws: int = 200, seed: int = 0) -> Tensor:
    """The posterior means of the factors under the guide, (n, k).

    Args:
        run: a trained pair.
        x: rows (n, d) or a :class:`zoo.data.Dataset`; for a guide with parameters per row, the rows it was fitted to.
        draws: number of draws to average, where the guide's mean has no closed form.
        seed: seed of these draws.

    Raises:
        ValueError: the model has no factors, or model or guide cannot take the rows.
    """
    run = pair_of(run)
    latent = factor_site(run, "encode", decoding=False)
    data = rows_of(run, x)
    check_whole(draws, "draws")
    with reading(run, seed):
        source = reader(run, data)
        q = closed_posterior(run, data)
        mean = None if q is None else _mean(q)
        if mean is None or mean.shape != (len(data), *latent.shape):
            held: dict[str, Tensor] = {}
            parts = []
            for _, arguments in source.chunks(rows_at_once(draws * data.shape[1])):
                values = source.draw(arguments, draws, held, points=True).values
                if latent.name not in values:
                    raise ValueError(f"the guide {name_of(run.guide)} has no site '{latent.name}': add it to the guide")
                held = {own.name: values[own.name] for own in source.layout.shared if own.name in values}
                parts.append(values[latent.name].mean(0))
            mean = torch.cat(parts)
    return mean.detach().reshape(len(data), -1).clone()  # it may be the guide's own parameter


def closed_posterior(run: Pair, x: Tensor) -> Distribution | None:
    """The guide's distribution given the rows, or None where it has no closed form.

    To be called inside :func:`zoo.posterior.engine.reading`.
    """
    guide = undecorated(run.guide)
    if not isinstance(guide, HasPosterior):
        return None
    try:
        return guide.posterior(x)
    except (ValueError, NotImplementedError):
        return None


def _mean(q: Distribution) -> Tensor | None:
    """The mean of a distribution, or None where it has no closed form."""
    try:
        return q.mean
    except NotImplementedError:
        return None
