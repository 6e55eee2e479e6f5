"""A trained pair of model and guide, and the record of its training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyro
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.covariates import check_buffers, holding, with_buffers
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.posterior.engine import reader, reading

Store = Mapping[str, Mapping[str, Any]]  # Pyro's parameters and their constraints, by name


@dataclass(frozen=True, eq=False)
class Training:
    """The record of how a pair was trained, by :func:`zoo.fit` or in another way.

    Attributes:
        losses: negative ELBO per row, in nats, at every step (steps,).
        converged: whether the bound had settled when training ended, by :func:`zoo.infer.convergence.assess`.
        loss: the name of the loss.
        optimizer: the name of the optimizer.
        rows: the number of rows n.
        batch_size: rows per step; None for all of them.
        seed: of the start, the batches and the draws.
        dtype: of the rows.
        device: of the rows.
        seconds: wall-clock time.
        stopped: why training ended, in words.
        schedule: how :func:`zoo.fit` lowered the learning rate: ``"settling"`` once the bound had settled, ``"cosine"``
            over a fixed number of steps; empty if it did not.
        annealed: the step at which the bound had settled and the learning rate began to fall, or None.
        patience: evaluations of held-out rows without a better bound after which training ends, or None.
        validation: steps and negative ELBO per row of held-out rows (m, 2), or None.
        best_step: the step with the best held-out bound, or None.
        transform: the name of the function applied to every batch, or None.
        at_floor: the share of a decoder's variances that ended at their floor, or None.
        columns: the names of the columns of the rows, if they have any.
    """

    losses: Tensor
    converged: bool
    loss: str = ""
    optimizer: str = ""
    rows: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    seconds: float | None = None
    stopped: str = ""
    schedule: str = ""
    annealed: int | None = None
    patience: int | None = None
    validation: Tensor | None = None
    best_step: int | None = None
    transform: str | None = None
    at_floor: float | None = None
    columns: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The record without its curves, and the number of steps; can be written as JSON."""
        held = {own.name: getattr(self, own.name) for own in fields(self)}
        curves = ("losses", "validation", "converged")
        always = ("batch_size",)
        kept = {k: v for k, v in held.items() if k not in curves and (k in always or v not in (None, "", ()))}
        return {"steps": len(self.losses), **kept}

    def __repr__(self) -> str:
        ended = "converged" if self.converged else "not converged"
        last = f", loss {float(self.losses[-1]):.6g} nats per row" if len(self.losses) else ""
        return f"Training of {len(self.losses)} steps{last}, {ended}"


def current_store() -> Store:
    """Pyro's parameter store as it is now: its own tensors, not copies."""
    return pyro.get_param_store().get_state()


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and guide: all that is needed to evaluate, diagnose, export and plot them.

    :func:`zoo.fit` returns one with the record of the training. For a pair that was trained elsewhere, as by your own
    ``pyro.infer.SVI``, it is ``zoo.Fit(model, guide)``. No method changes the pair.

    Args:
        model: a Pyro model with the signature ``(x=None, index=None, size=None)``.
        guide: a Pyro guide with the same signature.
        training: how the two were trained, or None.
        store: the parameter store with the parameters of both; by default Pyro's current one.

    Attributes:
        losses, converged, steps, stopped, validation, settings: those of ``training``.
    """

    model: PyroCallable
    guide: PyroCallable
    training: Training | None = None
    store: Store = field(default_factory=current_store)

    @property
    def losses(self) -> Tensor:
        """Negative ELBO per row, in nats, at every step (steps,)."""
        return self._record().losses

    @property
    def converged(self) -> bool:
        """Whether training had converged; see :func:`zoo.infer.convergence.assess`."""
        return self._record().converged

    @property
    def steps(self) -> int:
        """The number of steps that training took."""
        return len(self.losses)

    @property
    def stopped(self) -> str:
        """Why training ended, in words."""
        return self._record().stopped

    @property
    def validation(self) -> Tensor | None:
        """Steps and negative ELBO per row of held-out rows (m, 2), or None."""
        return self._record().validation

    @property
    def settings(self) -> dict[str, Any]:
        """How the pair was trained: loss, optimizer, steps, batch size, seed, dtype, device, rows, seconds."""
        return {} if self.training is None else self.training.settings

    def _record(self) -> Training:
        if self.training is None:
            raise ValueError(
                "this pair has no record of its training: pass zoo.Fit(model, guide, training=zoo.infer.Training("
                "losses=..., converged=...)), or train it with zoo.fit"
            )
        return self.training

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A block in which Pyro's parameter store holds the pair's parameters; the global one is restored after it."""
        with pyro.get_param_store().scope({key: dict(held) for key, held in self.store.items()}):
            yield

    def sample(self, x: ArrayLike, draws: int = 1000, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of every latent site from the guide given the rows ``x``.

        Discrete sites that the guide leaves to the model are drawn from it, given the others and the rows.

        Args:
            x: rows (n, d); for a guide with parameters for every row, those it was fitted to.
            draws: the number of draws.
            seed: of the draws; the caller's random stream is left unchanged.

        Returns:
            one tensor (draws, n, ...) per local site, (draws, ...) per site that all rows share.

        Raises:
            ValueError: ``draws`` < 1, rows that do not suit model or guide, or a site that the guide leaves out.
        """
        check_whole(draws, "draws")
        x = rows_of(self, x)
        with reading(self, seed):
            source = reader(self, x)
            drawn = source.draw((x,), draws, points=True)
            return source.complete((x,), drawn.values, draws)

    def given(self, **buffers: Any) -> "Fit":
        """The pair with other covariates in its model, as for new rows; its parameters are shared with this one.

        A model keeps covariates in buffers with an entry for every row, which ``forward`` selects by ``index``::

            zoo.evaluate(run.given(batch=batch), x)
            zoo.generate(run.given(batch=batch), len(batch))

        Args:
            **buffers: by the buffer's name, its values for the new rows (n, ...).

        Returns:
            a pair whose model is a copy with these buffers; a guide that refers to the model is a copy that refers to
            the new one.

        Raises:
            TypeError: the model is a function, which has no buffers.
            ValueError: there is no such buffer, its entries have another shape, or buffers have different numbers of
                rows; the message names the buffer.
        """
        values = check_buffers(self.model, buffers)
        model = with_buffers(self.model, values)
        return replace(self, model=model, guide=holding(self.guide, self.model, model))

    def save(self, path: str | Path) -> Path:
        """Save the run to a new or empty folder; :func:`zoo.load` loads it."""
        from zoo.infer.storage.checkpoint import save

        return save(self, path)

    def __repr__(self) -> str:
        pair = f"{name_of(self.model)} with {name_of(self.guide)}"
        if self.training is None:
            return f"Fit of {pair}, without a record of its training"
        steps, ended = len(self.losses), "converged" if self.converged else "not converged"
        last = f", loss {float(self.losses[-1]):.6g} nats per row" if steps else ""
        return f"Fit of {pair}: {steps} steps{last}, {ended}"


def run_of(trained: Trained) -> Fit:
    """The run to judge: ``trained`` itself, or a pair or conjugate model as a run without a record of its training.

    Args:
        trained: see :func:`zoo.base.pairs.pair_of`, which lists the errors.
    """
    pair = pair_of(trained)
    if isinstance(pair, Fit):
        return pair
    with pair.scope():
        return Fit(pair.model, pair.guide)
