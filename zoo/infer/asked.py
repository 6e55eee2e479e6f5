"""What a plan is made from: the pair, its rows, its sites and the options of a fit, checked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.base.callables import PyroCallable, unwrapped
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.entries import naming
from zoo.base.latent_sites import Layout, layout
from zoo.base.protocols import Checked
from zoo.base.random import seeded
from zoo.base.tables import column_names
from zoo.base.weights import weighted_rows
from zoo.infer.deep_defaults import PATIENCE, default_batch_size, hold_out, may_overfit
from zoo.infer.pairing import check_count
from zoo.infer.storage.checkpoint import refuse_taken
from zoo.infer.storage.files import holds_run

Transform = Callable[[Tensor], Tensor]
Start = Literal["data", "random"]

MOST = 20_000  # steps, where their number is not given
CHECKED = 10_000  # rows per call when a transform is tested


@dataclass(frozen=True, eq=False)
class Options:
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
    weights: Tensor | None = None  # of the rows (n,), float64
    resume: bool = False
    begun: tuple[str, ...] | None = None  # the parts that the fit to go on from has initialised; None for a new fit


@dataclass(frozen=True, eq=False)
class Asked:
    """What the decisions depend on: the pair, the rows and the held-out rows, the model's sites, the options."""

    model: PyroCallable
    guide: PyroCallable
    x: Tensor
    validation: Tensor | None
    layout: Layout
    options: Options
    held_out: bool = False  # whether the held-out rows are the default of a deep model
    batched: bool = False  # whether the batch size is
    columns: tuple[str, ...] = ()  # the names of the columns, if they have any

    @property
    def most(self) -> int:
        """The most steps."""
        return MOST if self.options.steps is None else self.options.steps

    @property
    def subsampled(self) -> bool:
        """Whether a step uses some of the rows only."""
        return self.options.batch_size is not None and self.options.batch_size < len(self.x)


def ask(
    model: PyroCallable, guide: PyroCallable, x: ArrayLike, validation: ArrayLike | None, options: Options
) -> Asked:
    """Check what is asked of a fit, and add the defaults of a deep model where nothing else is asked for.

    Raises:
        ValueError: the data do not suit model, guide or transform, or an option is wrong; names the argument.
        FileExistsError: ``checkpoint`` holds files already.
    """
    columns = column_names(x)
    with naming(columns):
        rows, held_out = _rows(model, guide, x, validation, options)
    sites = _layout(model, rows, options.transform)
    found = _eased(Asked(model, guide, rows, held_out, sites, options, columns=columns))
    _check_options(found)
    return found


def _eased(asked: Asked) -> Asked:
    """The same, with the defaults of a deep model where nothing else is asked for: held-out rows, minibatches."""
    options = asked.options if asked.options.patience != 0 else replace(asked.options, patience=None)
    eased = replace(asked, options=options)
    if options.loss is not None or options.optim is not None:
        return eased
    if not may_overfit(asked.model, asked.guide, asked.x, asked.layout):
        return eased
    if asked.validation is None and asked.options.patience is None and options.weights is None:
        x, validation = hold_out(asked.x, options.seed)
        found = _layout(asked.model, x, options.transform)
        options = replace(options, patience=PATIENCE)
        eased = replace(eased, x=x, validation=validation, layout=found, held_out=True, options=options)
    if options.batch_size is not None:
        return eased
    size = default_batch_size(len(eased.x))
    return replace(eased, options=replace(options, batch_size=size), batched=size is not None)


def _check_options(asked: Asked) -> None:
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
    if options.resume and options.checkpoint is None:
        raise ValueError("resume=True needs the folder of an earlier fit: pass it as checkpoint=")
    if options.checkpoint is not None and not (options.resume and holds_run(options.checkpoint)):
        refuse_taken(options.checkpoint)


def _rows(
    model: PyroCallable, guide: PyroCallable, x: ArrayLike, validation: ArrayLike | None, options: Options
) -> tuple[Tensor, Tensor | None]:
    """The rows and the held-out rows, checked."""
    inner = unwrapped(model)
    rows = check_rows(x, inner, least=2)
    held_out = None if validation is None else check_rows(validation, inner, name="validation")
    counted, _ = weighted_rows(rows, options.weights, least=2)
    for name, own in (("x", counted), ("validation", held_out)):
        if own is not None:
            _check_data(inner, own, options.transform, name)
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


def _layout(model: PyroCallable, x: Tensor, transform: Transform | None) -> Layout:
    """The model's sites, from a run on the first row as a step uses it."""
    if transform is None:
        return layout(model, x)
    with seeded(0):
        return layout(model, transform(x[:1]).expand(len(x), -1))
