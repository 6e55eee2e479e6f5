"""Saved runs and their rows, as ``zoo fit`` wrote them, and new rows for a run."""

import dataclasses
import inspect
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo import data
from zoo.base.callables import PyroCallable, undecorated
from zoo.base.protocols import HasWidth
from zoo.commands.console import err
from zoo.data.loading import find
from zoo.infer.loading import load
from zoo.infer.run import Fit
from zoo.infer.storage.rebuild import Builder, MustBeGiven
from zoo.registry import sources
from zoo.registry.finding import is_pyro_function, named

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Own:
    """The model and the guide of a run that are not built in, as named for ``zoo fit``; None where they are."""

    model: str | None = None
    guide: str | None = None

    def absolute(self) -> dict[str, str]:
        """The names that are given by role, with the full paths of files, so that they serve from any folder."""
        given = {"model": self.model, "guide": self.guide}
        return {
            role: sources.absolute(name) if sources.names_source(name) else name
            for role, name in given.items()
            if name is not None
        }


def _maker(text: str | None, role: str) -> PyroCallable | type | Builder | None:
    """The class of a name, what builds it, or the function that it is; None without a name."""
    if text is None:
        return None
    made = named(text, role).made
    if inspect.isclass(made):
        return made
    return made if is_pyro_function(made) else Builder(made)


@dataclass(frozen=True, eq=False)
class Saved:
    """A run with the record that ``zoo fit`` left beside it.

    Attributes:
        folder: of the run.
        run: the run.
        record: the results of ``zoo fit``; empty for a run that was saved otherwise.
        own: model and guide that are not built in, as named.
    """

    folder: Path
    run: Fit
    record: dict[str, Any]
    own: Own

    @classmethod
    def read(cls, folder: Path, own: Own) -> "Saved":
        """The run in a folder.

        Raises:
            ValueError: the run has a model or guide that is not built in, and it is not named.
        """
        file = folder / "results.json"
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        try:
            run = load(folder, model=_maker(own.model, "model"), guide=_maker(own.guide, "guide"))
        except MustBeGiven as error:
            what = " and ".join(f"the {role} {name}" for role, name in error.names.items())
            add = " ".join(f"--{role} {shlex.quote(name)}" for role, name in error.names.items())
            raise ValueError(
                f"{folder} holds {what}, from outside of Latent Zoo, which is imported only if you name it: add {add}"
            ) from None
        return cls(folder, run, record, own)

    @property
    def how(self) -> dict[str, Any]:
        """Where the rows come from, and what was done with them."""
        found: dict[str, Any] = self.record.get("table", {})
        return found

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of the fit; empty if unknown."""
        return self.run.training.columns if self.run.training is not None else ()

    def source(self, given: str | None, command: str) -> str:
        """The source of the rows: the one given, or that of the fit.

        Raises:
            ValueError: there is neither.
        """
        source = given or self.how.get("source")
        if source is None:
            raise ValueError(f"{self.folder} does not record its rows: name them, as in zoo {command} RUN DATA")
        return str(source)

    def table(self, source: str | None, command: str) -> data.Dataset:
        """The rows of the fit, prepared as by ``zoo fit``: without those held out, and binarised if they were.

        Says so where the recorded source no longer holds the rows of the fit.
        """
        kind = getattr(torch, self.run.settings.get("dtype", "float64"))
        how = self.how
        table = data.load(
            self.source(source, command),
            columns=how.get("columns"),
            exclude=how.get("exclude") or (),
            labels=how.get("labels"),
            dtype=kind,
        )
        seed = self.run.settings.get("seed", 0)
        if how.get("held_out"):
            table, _ = table.split(test=how["held_out"], seed=seed)
        if source is None and how.get("fingerprint", found := data.fingerprint(table.x)) != found:
            err.print(f"{table.source} has changed: it no longer holds the rows of the fit", soft_wrap=True)
        if how.get("binarised"):
            drawn = torch.bernoulli(table.x, generator=torch.Generator().manual_seed(seed))
            table = dataclasses.replace(table, x=drawn)
        return table

    def new_table(self, source: str) -> data.Dataset:
        """Rows with the columns of the fit, in float64, matched by name; says which other columns are ignored.

        Arrays without names are taken as they are.

        Raises:
            ValueError: columns of the fit are missing.
        """
        name, entry = find(source)
        known = entry.read()
        labels = self.how.get("labels")
        label = labels if labels in known.columns else None
        wanted = self.columns
        if not wanted or _counted(known.columns, wanted):
            table = data.load(source, labels=label, dtype=torch.float64)
        else:
            if missing := [column for column in wanted if column not in known.columns]:
                raise ValueError(
                    f"{source} lacks columns of the fit: {_listed(missing)}; it has {_listed(known.columns)}"
                )
            table = data.load(source, columns=wanted, labels=label, dtype=torch.float64)
        index = None if known.index is None else known.index.column
        if extra := [each for each in known.columns if each not in (*table.columns, label, index, entry.labels)]:
            err.print(f"{name}: ignoring {_listed(extra)}, not among the columns of the fit", soft_wrap=True)
        inner = undecorated(self.run.model)
        if isinstance(inner, HasWidth) and table.x.shape[1] != inner.data_dim:
            raise ValueError(f"{source} has {table.x.shape[1]} columns, the model was built for {inner.data_dim}")
        return table


def _counted(known: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a table of as many columns has no names for them but their positions, as an array."""
    return len(known) == len(wanted) and known == tuple(str(j) for j in range(len(known)))


def _listed(names: Any) -> str:
    """Names in quotes, the first few of many."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more
