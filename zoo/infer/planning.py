"""The plan of a fit: what is decided before its first step, and why."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.checks import ArrayLike, check_rows, incomplete
from zoo.base.latent_sites import Layout
from zoo.base.weights import check_weights
from zoo.infer import decisions
from zoo.infer.asked import Asked, Options, Start, Transform, ask
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.pairing import check_autoguide, check_loss, check_types
from zoo.infer.run import Store
from zoo.infer.settling import Settling
from zoo.infer.storage.generations import begun_with
from zoo.infer.weighting import WeightedClosedForm, check_weighted


@dataclass(frozen=True, eq=False)
class Plan:
    """What :func:`zoo.fit` will do for a pair, and why; the result of :func:`zoo.plan`.

    Attributes:
        answers: the decisions, in the order in which they are taken: rows, start, first, modes, batches, loss, step,
            optimizer, schedule, graph, threads, end.
        x: the rows (n, d), of the model's dtype and device.
        validation: held-out rows (m, d), or None.
        layout: the sites of the model.
        steps: the most steps.
        batch_size: rows per step; None for all of them.
        loss: the objective.
        optim: the optimizer, or the options of a line search.
        settling: the schedule of the default optimizer, or None.
        start: the parts that are initialised on the data: ``"model"``, ``"guide"``.
        estimate: whether the model starts at its own estimate from the data, else at random on them.
        e_step: the most iterations in which only the guide moves.
        em_steps: steps of EM on a fresh model before the first iteration.
        held_steps: the first steps, in which a fresh model holds the parameters that it delays.
        seed: of the start, the batches and the draws.
        every: steps between two evaluations of held-out rows, two copies of the parameters, and two checkpoints.
        patience: evaluations of held-out rows without a better bound after which training ends, or None.
        transform: applied to the rows of every batch, or None.
        checkpoint: the folder of the fit so far, or None.
        captured: whether steps are recorded as a graph.
        work: multiply-adds of a step, which decide on the number of threads.
        missing: whether the rows have missing entries; None where a transform of your own may change that.
        columns: the names of the columns, if they have any.
        weights: how often every row counts (n,), in float64; None for once.
    """

    answers: tuple[decisions.Answer, ...]
    x: Tensor = field(repr=False)
    validation: Tensor | None = field(repr=False)
    layout: Layout = field(repr=False)
    steps: int
    batch_size: int | None
    loss: ELBO
    optim: PyroOptim
    settling: Settling | None
    start: tuple[str, ...]
    estimate: bool
    e_step: int
    em_steps: int
    held_steps: int
    seed: int
    every: int
    patience: int | None
    transform: Transform | None
    checkpoint: Path | None
    captured: bool
    work: float
    missing: bool | None
    columns: tuple[str, ...] = ()
    weights: Tensor | None = field(default=None, repr=False)

    @property
    def size(self) -> float:
        """The number of rows, or the sum of their weights."""
        return len(self.x) if self.weights is None else float(self.weights.sum())

    @property
    def full(self) -> bool:
        """Whether every step uses all rows."""
        return self.batch_size is None or self.batch_size == len(self.x)

    @property
    def schedule(self) -> str:
        """``"settling"``, ``"cosine"`` or empty; see :class:`zoo.infer.Training`."""
        if self.settling is None:
            return ""
        return "settling" if self.settling.patient else "cosine"

    @property
    def transform_name(self) -> str | None:
        """The name of the transform, or None."""
        return None if self.transform is None else name_of(self.transform)

    def summary(self) -> dict[str, str]:
        """The choices by question."""
        return {row.question: row.answer for row in self.answers}

    def frame(self) -> polars.DataFrame:
        """One row per decision: question, answer, why."""
        return polars.DataFrame([vars(row) for row in self.answers])

    def __str__(self) -> str:
        wide = max(len(row.question) for row in self.answers)
        return "\n".join(f"{row.question:{wide}s}  {row.answer} ({row.why})" for row in self.answers)


def plan(
    model: PyroCallable,
    guide: PyroCallable,
    x: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    loss: ELBO | None = None,
    optim: PyroOptim | None = None,
    start: Start = "data",
    seed: int = 0,
    device: str | torch.device | None = None,
    validation: ArrayLike | None = None,
    patience: int | None = None,
    every: int = 100,
    transform: Transform | None = None,
    autocast: torch.dtype | None = None,
    capture: bool | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    store: Store | None = None,
    progress: bool = True,
    callbacks: Iterable[Any] = (),
) -> Plan:
    """What :func:`zoo.fit` would do for a pair, and why: loss, optimizer, schedule, start, batches, modes, threads.

    Nothing is trained, initialised or moved. Faults that show only when model and guide run (a site that the guide
    leaves out, a guide of another dtype) are found by :func:`zoo.fit`, which runs both once before its first step.

    Args:
        model, guide, x: as in :func:`zoo.fit`, and so are all options.

    Returns:
        a :class:`Plan`; print it.

    Raises:
        ValueError: data, batch size, model, guide and loss are incompatible; the message names the argument.
        FileExistsError: ``checkpoint`` holds files already.

    Example:
        >>> import guides, zoo
        >>> x = zoo.data.load("iris").x
        >>> model = zoo.PPCA(4, 2)
        >>> zoo.plan(model, guides.Exact(model), x).summary()["optimizer"]
        'LBFGS'
    """
    check_types(model, guide)
    folder = None if checkpoint is None else Path(checkpoint)
    own = None if weights is None else check_weights(weights, check_rows(x, unwrapped(model)))
    given = steps, batch_size, loss, optim, start, seed, device, patience, every, transform, capture, folder, own
    options = Options(*given, resume, begun_with(folder) if resume and folder is not None else None)
    return _decided(ask(model, guide, x, validation, options))


def _decided(asked: Asked) -> Plan:
    """All decisions, in order."""
    options = asked.options
    batched = decisions.batches(asked)
    loss, loss_row = decisions.objective(asked)
    if options.weights is not None and type(loss) is ClosedFormELBO:
        loss = WeightedClosedForm(options.weights)
    fresh, start_row = decisions.start_of(asked)
    fresh = fresh if options.begun is None else options.begun
    noise = decisions.noise_of(asked, loss)
    held = decisions.held_steps(asked, fresh, loss, noise)
    optimizer, settling, search_rows = decisions.search(asked, noise, held)
    captured, captured_row = decisions.capture(asked, loss, optimizer)
    work, threads_row = decisions.threads(asked)
    check_autoguide(asked.guide, asked.layout, len(asked.x), asked.subsampled)
    check_loss(loss, asked.layout, asked.subsampled)
    if options.weights is not None:
        check_weighted(loss, optimizer)
    first = decisions.first_moves(asked, fresh, loss, optimizer, held)
    answers = (
        decisions.described(asked),
        start_row,
        first.answer,
        decisions.modes(asked),
        batched,
        decisions.held_out(asked),
        loss_row,
        decisions.moved(loss),
        *search_rows,
        *decisions.floors(asked),
        captured_row,
        threads_row,
        decisions.end(asked, optimizer, settling),
    )
    return Plan(
        answers=answers,
        x=asked.x,
        validation=asked.validation,
        layout=asked.layout,
        steps=asked.most,
        batch_size=options.batch_size,
        loss=loss,
        optim=optimizer,
        settling=settling,
        start=fresh,
        estimate="model" in fresh and decisions.estimated(asked),
        e_step=first.e_step,
        em_steps=first.em_steps,
        held_steps=first.held_steps,
        seed=options.seed,
        every=options.every,
        patience=options.patience,
        transform=options.transform,
        checkpoint=options.checkpoint,
        captured=captured,
        work=work,
        missing=incomplete(asked.x) if options.transform in (None, torch.bernoulli) else None,
        columns=asked.columns,
        weights=options.weights,
    )
