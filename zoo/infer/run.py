"""What a fit returns: the trained model and guide, and how they came to be."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import latents
from zoo.base.plates import spread
from zoo.base.random import seeded


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and guide. Its methods only read.

    Attributes:
        model: the model, trained in place.
        guide: the guide, trained in place.
        losses: negative ELBO per row, in nats, at every step (steps,).
        validation: steps and negative ELBO per row of held-out rows (m, 2), or None.
        converged: whether the fit stopped because the bound had ceased to rise, and not for want of steps.
        settings: how it was made: loss, optimizer, steps, batch size, seed, dtype, device, rows, seconds.
        store: the fit's own Pyro parameter store.
    """

    model: Any
    guide: Any
    losses: Tensor
    converged: bool
    settings: dict[str, Any]
    validation: Tensor | None = None
    store: Any = field(default_factory=lambda: {"params": {}, "constraints": {}}, repr=False)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Pyro's parameter store as it was at the end of the fit; the global one is as before afterwards."""
        with pyro.get_param_store().scope(dict(self.store)):
            yield

    def sample(self, x: Any, draws: int = 1000, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of every latent site from the guide given the rows ``x``.

        Args:
            x: rows (n, d); a guide with parameters for every row takes those it was fitted to.
            draws: the number of draws.
            seed: of the draws; the caller's random stream is left alone.

        Returns:
            one tensor (draws, n, ...) per local site, (draws, ...) per site that all rows share.

        Raises:
            ValueError: ``draws`` < 1, or rows that are not fit for model or guide.
        """
        check_whole(draws, "draws")
        x = check_rows(x, self.model)
        with self.scope(), seeded(seed), torch.no_grad():
            trace = poutine.trace(spread(self.guide, draws)).get_trace(x)
            found = latents(self.model, x)
        sampled = {}
        for latent in found:
            if latent.name in trace.nodes:
                value = trace.nodes[latent.name]["value"]
                event = len(latent.shape)
                width = value.shape[value.ndim - event - 1 : value.ndim - event] if latent.local else ()
                sampled[latent.name] = value.expand(draws, *(width or (1,)), *latent.shape)
                if not latent.local:
                    sampled[latent.name] = sampled[latent.name].squeeze(1)
        return sampled

    def save(self, path: str | Path) -> Path:
        """Write the run to a folder that holds none yet; :func:`zoo.load` brings it back.

        See :mod:`zoo.infer.storage.checkpoint`.
        """
        from zoo.infer.storage.checkpoint import save

        return save(self, path)
