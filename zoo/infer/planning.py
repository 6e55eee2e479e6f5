"""The plan of a fit: what is decided before its first step, and why."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import polars
import torch
from pyro.infer import ELBO, JitTrace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.checks import ArrayLike, check_rows, check_whole, incomplete
from zoo.base.latent_sites import Layout, layout
from zoo.base.protocols import (
    Checked,
    Conjugate,
    Delaying,
    Estimating,
    LinearForm,
    Mixture,
    Placed,
    Projection,
    linear_form,
)
from zoo.base.random import seeded
from zoo.infer.deep_defaults import CLIP, PATIENCE, default_batch_size, hold_out, may_overfit
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.projected import ProjectedELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.losses.surrogate import CAPTURED
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.optim.natural import NaturalGradient
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
from zoo.infer.projecting import projection_of
from zoo.infer.run import Store
from zoo.infer.settling import Settling
from zoo.infer.storage.checkpoint import refuse_taken

Transform = Callable[[Tensor], Tensor]
Start = Literal["data", "random"]

MOST = 20_000  # steps, where their number is not given
E_STEP = 25  # iterations, at most, in which only the guide moves, where model and guide are fresh
PAYS = 400  # steps from which on recording a graph takes less time than it saves
RATE, DEEP_RATE = 0.03, 0.01  # of Adam
EM_STEPS = 10  # of EM before the line search, where the guide is the posterior of a fresh model
HELD = 1000  # steps, at most, in which a fresh model's delayed parameters are held
CHECKED = 10_000  # rows per call when a transform is tested


@dataclass(frozen=True)
class Answer:
    """One decision.

    Attributes:
        question: what was decided, such as ``"loss"``.
        answer: the choice.
        why: its reason.
    """

    question: str
    answer: str
    why: str


@dataclass(frozen=True, eq=False)
class Plan:
    """What :func:`zoo.fit` will do for a pair, and why; the result of :func:`zoo.plan`.

    Attributes:
        answers: the decisions, in the order in which they are taken: rows, start, first, modes, batches, loss, step,
            optimizer, schedule, graph, end.
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
        complete: whether no step sees a missing entry.
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
    complete: bool

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
    store: Store | None = None,
    progress: bool = True,
    callbacks: Iterable[Any] = (),
) -> Plan:
    """What :func:`zoo.fit` would do for a pair, and why: loss, optimizer, schedule, start, batches, modes, dtype.

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
    rows, held_out = _rows(model, guide, x, validation, transform)
    folder = None if checkpoint is None else Path(checkpoint)
    options = _Options(steps, batch_size, loss, optim, start, seed, device, patience, every, transform, capture, folder)
    return _decided(_eased(_Asked(model, guide, rows, held_out, options)))


@dataclass(frozen=True, eq=False)
class _Options:
    """The options of :func:`zoo.fit` on which the plan depends."""

    steps: int | None
    batch_size: int | None
    loss: ELBO | None
    optim: PyroOptim | None
    start: Start
    seed: int
    device: str | torch.device | None
    patience: int | None
    every: int
    transform: Transform | None
    capture: bool | None
    checkpoint: Path | None


@dataclass(frozen=True, eq=False)
class _Asked:
    """What the decisions depend on: the pair, the rows and the held-out rows, the options."""

    model: PyroCallable
    guide: PyroCallable
    x: Tensor
    validation: Tensor | None
    options: _Options
    held_out: bool = False  # whether the held-out rows are the default of a deep model
    batched: bool = False  # whether the batch size is

    @property
    def most(self) -> int:
        """The most steps."""
        return MOST if self.options.steps is None else self.options.steps

    @property
    def subsampled(self) -> bool:
        """Whether a step uses some of the rows only."""
        return self.options.batch_size is not None and self.options.batch_size < len(self.x)


def _eased(asked: _Asked) -> _Asked:
    """The same, with the defaults of a deep model where nothing else is asked for: held-out rows, minibatches."""
    options = asked.options if asked.options.patience != 0 else replace(asked.options, patience=None)
    eased = replace(asked, options=options)
    if options.loss is not None or options.optim is not None:
        return eased
    if not may_overfit(asked.model, asked.guide, asked.x, _layout(asked)):
        return eased
    if asked.validation is None and asked.options.patience is None:
        x, validation = hold_out(asked.x, options.seed)
        eased = replace(eased, x=x, validation=validation, held_out=True, options=replace(options, patience=PATIENCE))
    if options.batch_size is not None:
        return eased
    size = default_batch_size(len(eased.x))
    return replace(eased, options=replace(eased.options, batch_size=size), batched=size is not None)


def _decided(asked: _Asked) -> Plan:
    """All decisions, in order."""
    options = asked.options
    found = _layout(asked)
    _check_options(asked)
    batches = _batches(asked)
    objective, objective_row = _loss(asked, found)
    start, start_row = _start(asked)
    held = _held_steps(asked, start, objective)
    optimizer, settling, search_rows = _search(asked, objective, held)
    captured, captured_row = _capture(asked, objective, optimizer)
    check_autoguide(asked.guide, found, len(asked.x), asked.subsampled)
    check_loss(objective, found, asked.subsampled)
    answers = (
        _described(asked),
        start_row,
        _first_moves(asked, start, objective, optimizer),
        _modes(asked),
        batches,
        _held_out(asked),
        objective_row,
        _moved(asked, objective),
        *search_rows,
        captured_row,
        _end(asked, optimizer, settling),
    )
    return Plan(
        answers=answers,
        x=asked.x,
        validation=asked.validation,
        layout=found,
        steps=asked.most,
        batch_size=options.batch_size,
        loss=objective,
        optim=optimizer,
        settling=settling,
        start=start,
        estimate="model" in start and _estimated(asked),
        e_step=_waits(asked, start, objective, optimizer),
        em_steps=_em_steps(asked, start, objective, optimizer),
        held_steps=held,
        seed=options.seed,
        every=options.every,
        patience=options.patience,
        transform=options.transform,
        checkpoint=options.checkpoint,
        captured=captured,
        complete=options.transform in (None, torch.bernoulli) and not incomplete(asked.x),
    )


def _check_options(asked: _Asked) -> None:
    """Check numbers, and options that need other ones.

    Raises:
        ValueError: names the argument.
        FileExistsError: ``checkpoint`` holds files already.
    """
    options = asked.options
    if options.start not in get_args(Start):
        raise ValueError(f"start must be one of {', '.join(get_args(Start))}; got {options.start!r}")
    if options.steps is not None:
        check_whole(options.steps, "steps")
    check_whole(options.every, "every")
    if options.patience is not None and check_whole(options.patience, "patience") and asked.validation is None:
        raise ValueError("patience needs held-out rows: pass validation=, or leave it out")
    if options.checkpoint is not None:
        refuse_taken(options.checkpoint)


def _rows(
    model: PyroCallable, guide: PyroCallable, x: ArrayLike, validation: ArrayLike | None, transform: Transform | None
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
    """Check that the model accepts the rows as the steps will use them.

    Raises:
        ValueError: it does not, or ``transform`` changes their shape.
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
                    f"transform turns {name}'s rows {tuple(rows.shape)} into {got}: it must keep their shape"
                )
            if check is not None:
                check(seen)


def _layout(asked: _Asked) -> Layout:
    """The model's sites, from a run on the first row as a step uses it."""
    if asked.options.transform is None:
        return layout(asked.model, asked.x)
    with seeded(0):
        return layout(asked.model, asked.options.transform(asked.x[:1]).expand(len(asked.x), -1))


def _described(asked: _Asked) -> Answer:
    x, device = asked.x, asked.options.device
    n, d = x.shape
    place = x.device if device is None else device
    own = "those of the model's parameters, or of x if it has none"
    why = "device is given" if device is not None else own
    return Answer("rows", f"{n:,} x {d}, {str(x.dtype).removeprefix('torch.')} on {place}", why)


def _start(asked: _Asked) -> tuple[tuple[str, ...], Answer]:
    """The parts that are initialised on the data."""
    parts = {"model": unwrapped(asked.model), "guide": unwrapped(asked.guide)}
    fresh = tuple(name for name, part in parts.items() if isinstance(part, Placed) and part.fresh)
    if not fresh:
        return fresh, Answer("start", "the current parameters", "neither is a fresh module with initialize(x)")
    listed = " and ".join(fresh)
    if "model" in fresh and _estimated(asked):
        also = ", then the guide at random" if "guide" in fresh else ""
        return fresh, Answer("start", f"the model's estimate from the data{also}", "unchanged since built")
    return fresh, Answer("start", f"{listed} at random on the data", "unchanged since built; the draws follow seed")


def _estimated(asked: _Asked) -> bool:
    """Whether a fresh model starts at its own estimate from the data."""
    inner = unwrapped(asked.model)
    linear = not isinstance(inner, LinearForm) or linear_form(inner) is not None  # a deep VAE has no estimate
    return asked.options.start == "data" and isinstance(inner, Estimating) and linear


def _waits(asked: _Asked, start: tuple[str, ...], loss: ELBO, optimizer: PyroOptim) -> int:
    """The most iterations in which only the guide moves."""
    if isinstance(loss, ProjectedELBO):
        return 0
    if len(start) < 2 or asked.options.optim is not None or not isinstance(optimizer, LBFGS):
        return 0
    return min(E_STEP, asked.most // 4) if own_parameters(asked.model, asked.guide) else 0


def _em_steps(asked: _Asked, start: tuple[str, ...], loss: ELBO, optimizer: PyroOptim) -> int:
    """The steps of EM before the line search."""
    if "model" not in start or asked.options.optim is not None or not isinstance(optimizer, LBFGS):
        return 0
    inner = undecorated(asked.model)
    climbs = isinstance(inner, Mixture) or isinstance(loss, ProjectedELBO) or tight(asked.model, asked.guide)
    if _estimated(asked) or not (climbs and isinstance(inner, Conjugate)):
        return 0
    return min(EM_STEPS, asked.most // 4)


def _held_steps(asked: _Asked, start: tuple[str, ...], loss: ELBO) -> int:
    """The first steps, which hold what a fresh model delays. (In a compiled trace it would be held for good.)"""
    inner = unwrapped(asked.model)
    if "model" not in start or isinstance(asked.options.optim, LBFGS) or isinstance(loss, JitTrace_ELBO):
        return 0
    if asked.options.optim is None and not _noise(asked, loss):  # a line search
        return 0
    return min(HELD, asked.most // 4) if isinstance(inner, Delaying) and inner.delays else 0


def _first_moves(asked: _Asked, start: tuple[str, ...], loss: ELBO, optimizer: PyroOptim) -> Answer:
    """What precedes the first step of the whole pair."""
    moves, reasons = [], []
    if count := _em_steps(asked, start, loss, optimizer):
        moves.append(f"{count} steps of EM")
        reasons.append("from a random start, the long steps of a line search may lead to a lower maximum")
    if count := _waits(asked, start, loss, optimizer):
        moves.append(f"the guide alone, for up to {count} iterations")
        reasons.append("a fresh guide does not fit the model's start yet and would lead the model away from it")
    if count := _held_steps(asked, start, loss):
        moves.append(f"{count:,} steps with the correlations of the noise held")
        reasons.append("noise with any covariance would explain what the factors should")
    if moves:
        return Answer("first", ", then ".join(moves), "; ".join(reasons))
    return Answer("first", "nothing", "only a default line search on a fresh model needs more")


def _modes(asked: _Asked) -> Answer:
    layers = random_layers(asked.model, asked.guide) + batch_norms(asked.model, asked.guide)
    kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
    why = f"{kinds} differ between the two" if kinds else "no layer differs between the two"
    return Answer("modes", "training for steps, evaluation for held-out rows, restored afterwards", why)


def _batches(asked: _Asked) -> Answer:
    """How many rows a step uses.

    Raises:
        ValueError: more than there are, or a last batch of one row under batch normalisation.
    """
    n, size = len(asked.x), asked.options.batch_size
    why = "many rows, a deep model" if asked.batched else "batch_size is given"
    if size is None:
        return Answer("batches", f"all {n:,} rows at every step", "batch_size is None")
    if check_whole(size, "batch_size") > n:
        raise ValueError(f"batch_size={size} exceeds the {n} rows of x: take at most {n}, or None for all rows")
    if size == n:
        return Answer("batches", f"all {n:,} rows at every step", "batch_size is the number of rows")
    check_batches(asked.model, asked.guide, n, size)
    return Answer("batches", f"{size:,} rows, {math.ceil(n / size):,} steps per epoch", why)


def _held_out(asked: _Asked) -> Answer:
    """The rows that decide which parameters are kept."""
    if asked.validation is None:
        return Answer("held out", "none", "validation is None, and the pair is no deep model with a guide for new rows")
    why = "a deep model, and no validation is given" if asked.held_out else "validation is given"
    kept = ", whose best parameters are kept" if asked.options.patience is not None else ""
    return Answer("held out", f"{len(asked.validation):,} rows{kept}", why)


def _loss(asked: _Asked, found: Layout) -> tuple[ELBO, Answer]:
    """The objective."""
    if asked.options.loss is not None:
        return asked.options.loss, Answer("loss", type(asked.options.loss).__name__, "loss is given")
    chosen = default_loss(asked.model, asked.guide, found)
    if (projection := _projection(asked)) is not None:
        why = "the best q of the guide has a closed form given the model's parameters, and so has the bound there"
        return ProjectedELBO(projection, chosen), Answer("loss", ProjectedELBO.__name__, why)
    if isinstance(chosen, QuadratureELBO):
        why = "the model declares quadratic, the guide gaussian: a quadrature rule gives the bound without noise"
    elif isinstance(chosen, ClosedFormELBO):
        why = "the model is conditionally conjugate and the guide holds factors of its families: no draws are needed"
    elif tight(asked.model, asked.guide):
        why = "the guide declares tight: every draw gives log p(x)"
    else:
        why = "works for any pair, with one draw per step"
    return chosen, Answer("loss", type(chosen).__name__, why)


def _projection(asked: _Asked) -> Projection | None:
    """The best q in closed form, for a default fit whose steps all see the same rows."""
    options = asked.options
    if options.optim is not None or asked.subsampled or options.transform is not None:
        return None
    if random_layers(asked.model, asked.guide) or batch_norms(asked.model, asked.guide):
        return None
    return projection_of(asked.model, asked.guide, asked.x)


def _moved(asked: _Asked, loss: ELBO) -> Answer:
    """Which parameters a step moves."""
    if isinstance(loss, ProjectedELBO):
        return Answer("step", "the model's parameters; the guide follows in closed form", "variable projection")
    return Answer("step", "the parameters of model and guide together", "the best q has no closed form here")


def _search(asked: _Asked, loss: ELBO, held: int) -> tuple[PyroOptim, Settling | None, tuple[Answer, Answer]]:
    """The optimizer and its schedule."""
    given = asked.options.optim
    if given is not None:
        row = Answer("optimizer", type(given).__name__, "optim is given")
        return given, None, (row, Answer("schedule", "its own", "optim is given"))
    noise = _noise(asked, loss)
    if not noise:
        row = Answer("optimizer", "LBFGS", "the bound has no noise, and every step uses all rows")
        return LBFGS(), None, (row, Answer("schedule", "none", "a line search chooses the length of every step"))
    settling = Settling(asked.most, patient=asked.options.steps is None, since=held)
    rate, networks = (DEEP_RATE, "has") if deep(asked.model) else (RATE, "has no")
    adam = Answer("optimizer", f"Fused Adam, learning rate {rate}", f"{noise}; the model {networks} networks")
    if asked.options.steps is None:
        how = Answer("schedule", "halved, once the bound has settled, while that raises it", "steps is None")
    else:
        how = Answer("schedule", f"half a cosine over {asked.options.steps:,} steps", "steps is given")
    clip = CLIP * len(asked.x) if deep(asked.model) else None
    return Fused(torch.optim.Adam, {"lr": rate}, schedule=settling, clip_norm=clip), settling, (adam, how)


def _noise(asked: _Asked, loss: ELBO) -> str:
    """Why the loss of a step is noisy; empty where it is not."""
    if asked.subsampled:
        return "minibatches are noisy"
    if asked.options.transform is not None:
        return "transform may be random"
    if layers := random_layers(asked.model, asked.guide):
        return f"{type(layers[0]).__name__} draws at every step"
    return "" if noiseless(asked.model, asked.guide, loss) else f"{type(loss).__name__} draws at every step"


def _capture(asked: _Asked, loss: ELBO, optimizer: PyroOptim) -> tuple[bool, Answer]:
    """Whether steps are recorded as a graph.

    A recording takes some 400 times as long as a step's own machinery, which the graph saves.
    """
    given, most = asked.options.capture, asked.most
    if given is False:
        return False, Answer("graph", "none", "capture is False")
    if isinstance(optimizer, LBFGS):
        return False, Answer("graph", "none", "a line search takes few steps")
    if isinstance(optimizer, NaturalGradient):
        return False, Answer("graph", "none", "NaturalGradient reads the guide's factors at every step")
    if type(loss) not in CAPTURED:
        return False, Answer("graph", "none", f"{type(loss).__name__} is not among the losses that can be recorded")
    layers = batch_norms(asked.model, asked.guide)
    if layers:
        return False, Answer("graph", "none", f"{type(layers[0]).__name__} writes to its statistics at every step")
    if given:
        return True, Answer("graph", "recorded at the first step, run by the later ones", "capture is True")
    shapes = 1 if not asked.subsampled or len(asked.x) % (asked.options.batch_size or 1) == 0 else 2
    if most < PAYS * shapes:
        why = f"a graph pays from {PAYS * shapes:,} steps on" + ", as batches have two sizes" * (shapes - 1)
        return False, Answer("graph", "none", why)
    why = f"it pays from {PAYS * shapes:,} steps on"
    return True, Answer("graph", "recorded at the first step, run by the later ones", why)


def _end(asked: _Asked, optimizer: PyroOptim, settling: Settling | None) -> Answer:
    """When training ends."""
    options = asked.options
    ends = [f"after {asked.most:,} steps"]
    if isinstance(optimizer, LBFGS) or (settling is not None and settling.patient):
        ends.insert(0, "when the bound has settled")
    if options.patience is not None:
        looks = f"{options.patience} evaluations, {options.every} steps apart"
        ends.insert(0, f"when the held-out bound has not improved in {looks}")
    return Answer("end", ", or ".join(ends), "steps is None" if options.steps is None else "steps is given")
