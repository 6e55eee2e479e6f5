"""What a benchmark consists of: cases x methods x seeds, and the measures taken of every trained method."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import polars as pl
import torch
from torch import Tensor

from zoo.base.module import Module
from zoo.infer.fitting import fit

ModelMaker = Callable[[int], Module]  # the number of columns -> a fresh model
GuideMaker = Callable[[Module, Tensor], Module]  # the model and its training rows -> a fresh guide
Point = Mapping[str, float | int | str]  # values of measures, with their coordinates

BUDGETS = ("quick", "cpu", "full")


@dataclass(frozen=True, eq=False)
class Data:
    """The rows of a case.

    Attributes:
        train: the rows to fit (n, d); NaN is a missing entry.
        test: held-out rows (m, d), or the training rows where a case holds none out.
        validation: rows for early stopping, or None.
        extra: whatever else the measures need, by name: labels, complete rows, a mask.
    """

    train: Tensor
    test: Tensor
    validation: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A published value of a measure, its source in words and its key in ``zoo cite``."""

    value: float
    source: str
    cite: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """A data set with its split and preparation.

    Attributes:
        name: its name in the table.
        load: the rows for the seed of a run; a fixed split ignores it.
        protocol: what a reader needs to load the same rows: data set, split, preparation, source. Plain values.
        published: published values by measure, or by (method, measure).
        data: names of the data sets, for ``zoo cite``.
    """

    name: str
    load: Callable[[int], Data]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str | tuple[str, str], Published] = field(default_factory=dict)
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a suite: its case, the seed of everything random, and the device to train on."""

    case: Case
    seed: int
    device: str = "cpu"


class DoesNotApply(ValueError):  # noqa: N818 - it reads as what it says
    """A method does not apply to a case, for the reason given: such a cell is shown as refused."""


class Trains(Protocol):
    """Trains a method on the rows of a cell, and returns what the suite's measures read."""

    def __call__(self, data: Data, cell: Cell) -> Any: ...


@dataclass(frozen=True, eq=False)
class Method:
    """A way to fit the rows of a case: a model with a guide, an estimator of scikit-learn, or any callable.

    Attributes:
        name: its name in the table.
        train: trains it. It raises :class:`DoesNotApply` or :class:`guides.CannotServe` where it does not apply; such
            a cell is shown as refused.
        protocol: its settings as plain values, recorded in every row.
        cases: whether it runs on a case; by default on all.
        cite: models, guides and losses, by their names for ``zoo cite`` or as classes.
        baseline: whether the method is a rival from elsewhere and not one of ours.
    """

    name: str
    train: Trains
    protocol: Mapping[str, Any] = field(default_factory=dict)
    cases: Callable[[Case], bool] = lambda case: True
    cite: tuple[Any, ...] = ()
    baseline: bool = False


@dataclass(frozen=True)
class Pair:
    """Trains a model with a guide by :func:`zoo.fit`; returns the :class:`zoo.Fit`.

    Attributes:
        model: builds the model for a number of columns.
        guide: builds the guide for the model and its training rows.
        settings: further arguments of :func:`zoo.fit`.
    """

    model: ModelMaker
    guide: GuideMaker
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, data: Data, cell: Cell) -> Any:
        torch.manual_seed(cell.seed)
        model = self.model(data.train.shape[1]).to(data.train.dtype)
        guide = self.guide(model, data.train)
        held = {} if data.validation is None else {"validation": data.validation}
        device = None if cell.device == "cpu" else cell.device
        return fit(
            model, guide, data.train, seed=cell.seed, device=device, **{**held, "progress": False, **self.settings}
        )


@dataclass(frozen=True)
class Estimator:
    """Trains an estimator of scikit-learn, or of its interface, on the training rows; returns the estimator.

    Attributes:
        build: builds the estimator for the seed of a run.

    Example:
        >>> from sklearn.decomposition import PCA
        >>> trains = Estimator(lambda seed: PCA(1, random_state=seed))
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
        >>> trains(Data(x, x), Cell(Case("line", lambda seed: Data(x, x)), seed=0)).explained_variance_ratio_.tolist()
        [1.0]
    """

    build: Callable[[int], Any]

    def __call__(self, data: Data, cell: Cell) -> Any:
        return self.build(cell.seed).fit(data.train.numpy())


@dataclass(frozen=True)
class Measure:
    """A column of the table.

    Attributes:
        name: its name.
        unit: such as ``"nats per row"``; empty for a pure number.
        better: whether higher or lower values are better; None where neither is, so that none is set in bold.
        digits: digits after the point.
        text: what it is, in a sentence for the page.
        scientific: whether values are printed with one digit more than ``digits`` in all, and an exponent if need be.
        equal: the largest difference that counts as none when the best are set in bold; by default half a unit of the
            last digit printed, and 0 where there is an exponent.
        shown: whether tables and pages show it; CSV and netCDF always have it.
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    digits: int = 2
    text: str = ""
    scientific: bool = False
    equal: float | None = None
    shown: bool = True


@dataclass(frozen=True)
class Claim:
    """A statement of the literature that the suite checks: held, not held, or None where the rows do not suffice."""

    text: str
    held: bool | None
    figures: str


@dataclass(frozen=True)
class Own:
    """A user's model or guide, or both: what stands in for ours in a method of a suite.

    Attributes:
        name: of the method in the table.
        model: builds the model for a number of columns.
        guide: builds the guide for a model and its rows.
        protocol: where they come from and their settings, as plain values.
        cite: their classes, or names for ``zoo cite``.
    """

    name: str
    model: ModelMaker | None = None
    guide: GuideMaker | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    cite: tuple[Any, ...] = ()

    @property
    def options(self) -> str:
        """What names it in the command, files without their folders, each option after a space."""
        text = ""
        for what, option in (("model", "--set"), ("guide", "--guide-set")):
            text += f" --{what} {shlex.quote(self.protocol[what])}" if what in self.protocol else ""
            for name, value in self.protocol.get(f"{what}_settings", {}).items():
                given = value if isinstance(value, str) else json.dumps(value)
                text += f" {option} {shlex.quote(f'{name}={given}')}"
        return text


@dataclass(frozen=True, eq=False)
class Suite:
    """A benchmark: every method on every case with every seed.

    Attributes:
        name: as in ``zoo benchmark NAME``.
        question: what its table answers, in one line.
        cases: the data.
        methods: ours and their rivals.
        measures: the columns.
        measure: the values of the measures for a trained method: one mapping, or several where they are taken along a
            curve; each then holds the coordinates named in ``along``.
        along: names of coordinates beside case, method and seed, such as ``("samples",)``.
        seeds: how many seeds by default.
        budget: ``"quick"``, ``"cpu"`` or ``"full"``; recorded in every row.
        version: of what the protocols of cases and methods do not tell; raise it where rows of before and after do not
            compare. A folder of another version is refused.
        own: turns a user's model and guide into a method of this suite; None where it takes none.
            Raises ValueError where one of the two is needed and missing.
        claims: the statements of the literature, checked on the finished table.
        text: the page above the table, in Markdown: protocol, what is measured, how to read it.
        draw: an optional figure of the finished table: a matplotlib Figure.
        added: the user's own methods, by :meth:`with_own`.
    """

    name: str
    question: str
    cases: Sequence[Case]
    methods: Sequence[Method]
    measures: Sequence[Measure]
    measure: Callable[[Any, Data, Cell], Point | Iterable[Point]]
    along: tuple[str, ...] = ()
    seeds: int = 1
    budget: str = "quick"
    version: int = 1
    own: Callable[[Own], Method] | None = None
    claims: Callable[[pl.DataFrame], Sequence[Claim]] = lambda table: ()
    text: str = ""
    draw: Callable[[pl.DataFrame], Any] | None = None
    added: tuple[Own, ...] = ()

    def with_own(self, own: Own) -> "Suite":
        """The suite with a user's model, guide or both as a further method, under a name that no other has.

        Raises:
            ValueError: the suite takes none, or needs the one of the two that is missing.
        """
        if self.own is None:
            raise ValueError(f"the benchmark {self.name!r} takes no model or guide of one's own")
        if any(own.name == method.name for method in self.methods):
            own = replace(own, name=f"{own.name} (own)")
        made = self.own(own)
        method = replace(made, protocol={**made.protocol, **own.protocol}, cite=(*made.cite, *own.cite))
        return replace(self, methods=[*self.methods, method], added=(*self.added, own))
