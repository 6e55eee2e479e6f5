"""What a fit decides before its first step, and why."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.base.callables import PyroCallable, unwrapped
from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import Layout, layout
from zoo.base.protocols import Checked, Placed
from zoo.base.random import seeded
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.pairing import (
    batch_norms,
    check_autoguide,
    check_batches,
    check_count,
    check_loss,
    check_types,
    deep,
    default_loss,
    noiseless,
    own_parameters,
    random_layers,
    tight,
)
from zoo.infer.settling import Settling
from zoo.infer.storage.checkpoint import refuse_taken

Transform = Callable[[Tensor], Tensor]

MOST = 20_000  # steps of a fit that is not told how many
E_STEP = 25  # iterations that raise the guide alone, at most, where both parts of a pair are fresh
RATE, DEEP_RATE = 0.03, 0.01  # of Adam
EM_STEPS = 10  # of EM before the line search, where the guide is the posterior of a fresh model
CHECKED = 10_000  # rows per call of a transform that is tried out


@dataclass(frozen=True)
class Answer:
    """One decision.

    Attributes:
        question: what was decided, such as ``"loss"``.
        answer: the choice.
        why: the reason for it.
    """

    question: str
    answer: str
    why: str


@dataclass(frozen=True, eq=False)
class Plan:
    """What :func:`zoo.fit` does for a pair, and why; what :func:`zoo.plan` returns.

    Attributes:
        answers: the decisions, in the order in which they are taken: rows, start, modes, batches, loss, optimizer,
            schedule, end.
        x: the rows (n, d), of the model's dtype and device.
        validation: held-out rows (m, d), or None.
        layout: the sites of the model.
        steps: the most steps.
        batch_size: rows per step; None for all of them.
        loss: the objective.
        optim: the optimizer, or the options of a line search.
        settling: the schedule of the default optimizer, or None.
        start: the parts that take a random start on the data: ``"model"``, ``"guide"``.
        e_step: iterations in which the guide moves alone, at most.
        em_steps: steps of EM on a fresh model before the first iteration.
        seed: of the start, the batches and the draws.
        every: steps between two looks at held-out rows, two copies of good parameters, and two checkpoints.
        patience: looks at held-out rows without a better bound that end training, or None.
        transform: maps the rows of every batch to what the step sees, or None.
        checkpoint: the folder that holds the fit so far, or None.
    """

    answers: tuple[Answer, ...]
    x: Tensor = field(repr=False)
    validation: Tensor | None = field(repr=False)
    layout: Layout = field(repr=False)
    steps: int
    batch_size: int | None
    loss: ELBO
    optim: PyroOptim
    settling: Settling | None
    start: tuple[str, ...]
    e_step: int
    em_steps: int
    seed: int
    every: int
    patience: int | None
    transform: Transform | None
    checkpoint: Path | None

    @property
    def full(self) -> bool:
        """Whether every step sees all rows."""
        return self.batch_size is None or self.batch_size == len(self.x)

    @property
    def schedule(self) -> str:
        """``"settling"``, ``"cosine"`` or nothing; see :class:`zoo.infer.Training`."""
        if self.settling is None:
            return ""
        return "settling" if self.settling.patient else "cosine"

    @property
    def transform_name(self) -> str | None:
        """The name of the transform, or None."""
        return None if self.transform is None else getattr(self.transform, "__name__", type(self.transform).__name__)

    def summary(self) -> dict[str, str]:
        """The choices by question."""
        return {row.question: row.answer for row in self.answers}

    def frame(self) -> pl.DataFrame:
        """One row per decision: question, answer, why."""
        return pl.DataFrame([vars(row) for row in self.answers])

    def __str__(self) -> str:
        wide = max(len(row.question) for row in self.answers)
        return "\n".join(f"{row.question:{wide}s}  {row.answer} ({row.why})" for row in self.answers)


def plan(
    model: PyroCallable,
    guide: PyroCallable,
    x: Any,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    loss: ELBO | None = None,
    optim: PyroOptim | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    validation: Any = None,
    patience: int | None = None,
    every: int = 100,
    transform: Transform | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    store: Any = None,
    progress: bool = True,
    callbacks: Iterable[Any] = (),
) -> Plan:
    """What :func:`zoo.fit` would do for a pair, and why: loss, optimizer, schedule, start, batches, modes, dtype.

    It trains, places and moves nothing. What shows only when model and guide run (a site that the guide leaves out, a
    guide of another dtype) is found by :func:`zoo.fit`, which runs both once before its first step.

    Args:
        model, guide, x: as in :func:`zoo.fit`, and so are all options.

    Returns:
        a :class:`Plan`; print it.

    Raises:
        ValueError: data, batch size, model, guide and loss do not go together; the message names the argument.
        FileExistsError: ``checkpoint`` holds something already.

    Example:
        >>> import guides, zoo
        >>> x = zoo.data.load("iris").x
        >>> model = zoo.PPCA(4, 2)
        >>> zoo.plan(model, guides.Exact(model), x).summary()["optimizer"]
        'LBFGS'
    """
    check_types(model, guide)
    rows, held_out = _rows(model, guide, x, validation, transform)
    asked = _Asked(model, guide, rows, steps, batch_size, loss, optim, patience, every, transform)
    found = _layout(asked)
    _check_options(asked, held_out, checkpoint)
    batches = _batches(asked)
    objective, objective_row = _loss(asked, found)
    optimizer, settling, search_rows = _search(asked, objective)
    start, start_row = _start(asked)
    check_autoguide(guide, found, len(rows), asked.subsampled)
    check_loss(objective, asked.subsampled)
    answers = (
        _described(rows, device),
        start_row,
        _first_moves(asked, start, optimizer),
        _modes(asked),
        batches,
        objective_row,
        *search_rows,
        _end(asked, optimizer, settling),
    )
    return Plan(
        answers=answers,
        x=rows,
        validation=held_out,
        layout=found,
        steps=asked.most,
        batch_size=batch_size,
        loss=objective,
        optim=optimizer,
        settling=settling,
        start=start,
        e_step=_waits(asked, start, optimizer),
        em_steps=_em_steps(asked, start, optimizer),
        seed=seed,
        every=every,
        patience=patience,
        transform=transform,
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """What the decisions depend on."""

    model: PyroCallable
    guide: PyroCallable
    x: Tensor
    steps: int | None
    batch_size: int | None
    loss: ELBO | None
    optim: PyroOptim | None
    patience: int | None
    every: int
    transform: Transform | None

    @property
    def most(self) -> int:
        """The most steps."""
        return MOST if self.steps is None else self.steps

    @property
    def subsampled(self) -> bool:
        """Whether a step sees some of the rows."""
        return self.batch_size is not None and self.batch_size < len(self.x)


def _check_options(asked: _Asked, validation: Tensor | None, checkpoint: str | Path | None) -> None:
    """Whole numbers, and options that need others.

    Raises:
        ValueError: names the argument.
        FileExistsError: ``checkpoint`` holds something already.
    """
    if asked.steps is not None:
        check_whole(asked.steps, "steps")
    check_whole(asked.every, "every")
    if asked.patience is not None and check_whole(asked.patience, "patience") and validation is None:
        raise ValueError("patience looks at held-out rows: pass validation=, or leave it out")
    if checkpoint is not None:
        refuse_taken(Path(checkpoint))


def _rows(
    model: PyroCallable, guide: PyroCallable, x: Any, validation: Any, transform: Transform | None
) -> tuple[Tensor, Tensor | None]:
    """The rows and the held-out rows, checked."""
    inner = unwrapped(model)
    rows = check_rows(x, inner, least=2)
    held_out = None if validation is None else check_rows(validation, inner, name="validation")
    for name, own in (("x", rows), ("validation", held_out)):
        if own is not None:
            _check_data(inner, own, transform, name)
    check_count(guide, len(rows), held_out)
    return rows, held_out


def _check_data(model: PyroCallable, x: Tensor, transform: Transform | None, name: str) -> None:
    """Ask the model whether it can serve the rows as the steps will see them.

    Raises:
        ValueError: it cannot, or ``transform`` makes other rows of them.
    """
    check = model.check if isinstance(model, Checked) else None
    if transform is None:
        if check is not None:
            check(x)
        return
    with seeded(0):
        for rows in x.split(CHECKED):
            seen = transform(rows)
            if not isinstance(seen, Tensor) or seen.shape != rows.shape:
                got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
                raise ValueError(
                    f"transform makes {got} of {name}'s rows {tuple(rows.shape)}: it must keep their shape"
                )
            if check is not None:
                check(seen)


def _layout(asked: _Asked) -> Layout:
    """The model's sites, seen on its first row as a step sees it."""
    if asked.transform is None:
        return layout(asked.model, asked.x)
    with seeded(0):
        return layout(asked.model, asked.transform(asked.x[:1]).expand(len(asked.x), -1))


def _described(x: Tensor, device: str | torch.device | None) -> Answer:
    n, d = x.shape
    place = x.device if device is None else device
    asked = "as asked for" if device is not None else "those of the model's parameters, or of x where it has none"
    return Answer("rows", f"{n:,} x {d}, {str(x.dtype).removeprefix('torch.')} on {place}", asked)


def _start(asked: _Asked) -> tuple[tuple[str, ...], Answer]:
    """The parts that are placed on the data."""
    parts = {"model": unwrapped(asked.model), "guide": unwrapped(asked.guide)}
    fresh = tuple(name for name, part in parts.items() if isinstance(part, Placed) and part.fresh)
    if not fresh:
        return fresh, Answer("start", "as it is", "neither is a fresh module with initialize(x)")
    listed = " and ".join(fresh)
    return fresh, Answer("start", f"{listed} at random on the data", "fresh since built; the draws follow seed")


def _waits(asked: _Asked, start: tuple[str, ...], optimizer: PyroOptim) -> int:
    """The iterations in which the guide moves alone, at most."""
    if len(start) < 2 or asked.optim is not None or not isinstance(optimizer, LBFGS):
        return 0
    return min(E_STEP, asked.most // 4) if own_parameters(asked.model, asked.guide) else 0


def _em_steps(asked: _Asked, start: tuple[str, ...], optimizer: PyroOptim) -> int:
    """The steps of EM before the line search."""
    if "model" not in start or asked.optim is not None or not isinstance(optimizer, LBFGS):
        return 0
    return min(EM_STEPS, asked.most // 4) if tight(asked.model, asked.guide) else 0


def _first_moves(asked: _Asked, start: tuple[str, ...], optimizer: PyroOptim) -> Answer:
    """What comes before the first step of the whole pair."""
    if count := _waits(asked, start, optimizer):
        why = "a fresh guide knows nothing of the model's start and would lead it away"
        return Answer("first", f"the guide alone, for up to {count} iterations", why)
    if count := _em_steps(asked, start, optimizer):
        why = "from a random start, the long steps of a line search may leave for a lower maximum"
        return Answer("first", f"{count} steps of EM", why)
    return Answer("first", "nothing", "only a default line search on a fresh model needs more")


def _modes(asked: _Asked) -> Answer:
    layers = random_layers(asked.model, asked.guide) + batch_norms(asked.model, asked.guide)
    kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
    why = f"{kinds} act differently in the two" if kinds else "no layer acts differently in the two"
    return Answer("modes", "training for steps, evaluation for held-out rows, as before afterwards", why)


def _batches(asked: _Asked) -> Answer:
    """How many rows a step sees.

    Raises:
        ValueError: more than there are, or a last batch of one row for a batch normalisation.
    """
    n, size = len(asked.x), asked.batch_size
    if size is None:
        return Answer("batches", f"all {n:,} rows at every step", "batch_size is None")
    if check_whole(size, "batch_size") > n:
        raise ValueError(f"batch_size={size} exceeds the {n} rows of x: take at most {n}, or None for all rows")
    if size == n:
        return Answer("batches", f"all {n:,} rows at every step", "batch_size is the number of rows")
    check_batches(asked.model, asked.guide, n, size)
    return Answer("batches", f"{size:,} rows, {math.ceil(n / size):,} steps per epoch", "batch_size is given")


def _loss(asked: _Asked, found: Layout) -> tuple[ELBO, Answer]:
    """The objective."""
    if asked.loss is not None:
        return asked.loss, Answer("loss", type(asked.loss).__name__, "loss is given")
    chosen = default_loss(asked.model, asked.guide, found.nesting)
    if isinstance(chosen, QuadratureELBO):
        why = "the model declares quadratic, the guide gaussian: a finite rule gives the bound without noise"
    elif isinstance(chosen, ClosedFormELBO):
        why = "the model is conditionally conjugate and the guide holds factors of its families: no draws are needed"
    elif tight(asked.model, asked.guide):
        why = "the guide declares tight: every draw gives log p(x)"
    else:
        why = "serves any pair, by one draw per step"
    return chosen, Answer("loss", type(chosen).__name__, why)


def _search(asked: _Asked, loss: ELBO) -> tuple[PyroOptim, Settling | None, tuple[Answer, Answer]]:
    """The optimizer and its schedule."""
    if asked.optim is not None:
        name = type(asked.optim).__name__
        return asked.optim, None, (Answer("optimizer", name, "optim is given"), Answer("schedule", "its own", ""))
    noise = _noise(asked, loss)
    if not noise:
        row = Answer("optimizer", "LBFGS", "the bound has no noise, and every step sees all rows")
        return LBFGS(), None, (row, Answer("schedule", "none", "a line search finds the length of every step"))
    settling = Settling(asked.most, patient=asked.steps is None)
    rate, networks = (DEEP_RATE, "has") if deep(asked.model) else (RATE, "has no")
    adam = Answer("optimizer", f"Fused Adam, learning rate {rate}", f"{noise}; the model {networks} networks")
    if asked.steps is None:
        how = Answer("schedule", "halved while that helps, once the bound has settled", "steps is None")
    else:
        how = Answer("schedule", f"half a cosine over {asked.steps:,} steps", "steps is given")
    return Fused(torch.optim.Adam, {"lr": rate}, schedule=settling), settling, (adam, how)


def _noise(asked: _Asked, loss: ELBO) -> str:
    """Why the loss of a step is noisy; empty where it is not."""
    if asked.subsampled:
        return "minibatches are noisy"
    if asked.transform is not None:
        return "transform may draw the rows anew at every step"
    if layers := random_layers(asked.model, asked.guide):
        return f"{type(layers[0]).__name__} draws at every step"
    return "" if noiseless(asked.model, asked.guide, loss) else f"{type(loss).__name__} draws at every step"


def _end(asked: _Asked, optimizer: PyroOptim, settling: Settling | None) -> Answer:
    """When training ends."""
    ends = [f"after {asked.most:,} steps"]
    if isinstance(optimizer, LBFGS) or (settling is not None and settling.patient):
        ends.insert(0, "when the bound has settled")
    if asked.patience is not None:
        ends.insert(0, f"when the held-out bound has not improved in {asked.patience} looks, {asked.every} steps apart")
    return Answer("end", ", or ".join(ends), "steps is None" if asked.steps is None else "steps is given")
