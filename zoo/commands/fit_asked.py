"""What ``zoo fit`` is asked for: the rows, model and guide, and the options of the fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import guides
from zoo import data
from zoo.base.callables import PyroCallable
from zoo.base.latent_sites import layout
from zoo.base.protocols import ConditionallyConjugate, Conjugate
from zoo.commands.console import tell, words
from zoo.infer.deep_defaults import HELD_OUT, MOST_HELD_OUT, PATIENCE, may_overfit
from zoo.registry.making import guide_maker, merged, model_maker


@dataclass(frozen=True, eq=False)
class Job:
    """The input of a fit.

    Attributes:
        model: the model.
        guide: the guide; None fits by coordinate ascent.
        table: the rows to fit.
        held_out: rows for early stopping, or None.
        seed: of the fit.
        binarise: whether every entry is drawn anew as 0 or 1.
        options: further arguments of :func:`zoo.fit`.
        source: the provenance of the rows, by which ``zoo diagnose`` and ``zoo report`` load them again.
    """

    model: PyroCallable
    guide: PyroCallable | None
    table: data.Dataset
    held_out: data.Dataset | None
    seed: int
    binarise: bool
    options: dict[str, Any]
    source: dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Where the rows come from: a data set or file, its columns and labels, their precision, whether to binarise.

    ``columns`` and ``exclude`` are lists as written on the command line, None where not given.
    """

    source: str
    columns: Sequence[str] | None
    exclude: Sequence[str] | None
    labels: str | None
    dtype: str
    binarise: bool

    def load(self) -> data.Dataset:
        """All rows."""
        dtype = getattr(torch, self.dtype)
        columns, out = words(self.columns), words(self.exclude) or ()
        return data.load(self.source, columns=columns, exclude=out, labels=self.labels, dtype=dtype)

    def record(self, held_out: float | None) -> dict[str, Any]:
        """How ``zoo diagnose`` and ``zoo report`` find the fitted rows again."""
        source = self.source if self.source in data.names() else str(Path(self.source).resolve())
        return {
            "columns": words(self.columns),
            "exclude": words(self.exclude),
            "labels": self.labels,
            "binarised": self.binarise,
            "held_out": held_out,
            "source": source,
        }


@dataclass(frozen=True)
class Parts:
    """Model and guide by name, None for the default guide, and the settings of both, None where not given."""

    model: str
    guide: str | None
    settings: dict[str, Any]
    own: dict[str, Any]

    @classmethod
    def asked(
        cls,
        model: str,
        guide: str | None,
        settings: Mapping[str, Any],
        own: Mapping[str, Any],
        further: Mapping[str, Sequence[str] | None],
    ) -> "Parts":
        """From options of their own, with hidden widths as text, and from those of ``--set`` and ``--guide-set``.

        Raises:
            ValueError: a setting is malformed or given twice.
        """
        widths = {**settings, "hidden": _widths(settings["hidden"], "--model-hidden")}
        of_guide = {**own, "hidden": _widths(own["hidden"], "--hidden")}
        pairs = ((widths, "--set"), (of_guide, "--guide-set"))
        return cls(model, guide, *(merged(each, further[option], option) for each, option in pairs))

    def build(self, x: torch.Tensor, seed: int) -> tuple[PyroCallable, PyroCallable | None]:
        """Model and guide in the precision of the rows; no guide for coordinate ascent."""
        make_model = model_maker(self.model, self.settings)
        make_guide = None if self.guide is None else guide_maker(self.guide, self.own)  # before anything is built
        torch.manual_seed(seed)
        built = make_model(x.shape[1])
        model: PyroCallable = built.to(x.dtype) if isinstance(built, nn.Module) else built
        if make_guide is None and isinstance(built, ConditionallyConjugate):
            return model, None
        network = any(value is not None for value in self.own.values())
        default = guides.Exact if isinstance(built, Conjugate) and not network else guides.Amortized
        guide = (make_guide or guide_maker(default.__name__, self.own))(model, x)
        return model, guide


def prepare(parts: Parts, rows: Rows, options: dict[str, Any], seed: int, quiet: bool) -> Job:
    """The input of the fit, with the defaults of deep models filled in."""
    table = rows.load()
    tell(table)
    model, guide = parts.build(table.x, seed)
    given = {**options, "progress": not quiet}
    if guide is None:
        option = {"hidden": "--hidden", "covariance": "--guide-covariance"}
        listed = {option.get(name, "--guide-set"): value for name, value in parts.own.items()}
        listed |= {"--batch-size": options["batch_size"], "--device": options["device"], "--start": options["start"]}
        _refuse_with_ascent(listed | {"--patience": options["patience"], "--binarise": rows.binarise or None})
    elif given["patience"] is None and may_overfit(model, guide, table.x, layout(model, table.x)):
        given["patience"] = PATIENCE
    if not given["patience"]:
        return Job(model, guide, table, None, seed, rows.binarise, given, rows.record(None))
    share = min(HELD_OUT, MOST_HELD_OUT / len(table))
    table, held_out = table.split(test=share, seed=seed)
    model, guide = parts.build(table.x, seed)  # anew: both standardise by the rows they are given
    return Job(model, guide, table, held_out, seed, rows.binarise, given, rows.record(share))


def _refuse_with_ascent(given: dict[str, Any]) -> None:
    """Refuse options that coordinate ascent does not have.

    Raises:
        ValueError: names the first one that is given.
    """
    if taken := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"{taken[0]} is an option of SVI, but this model is fitted by coordinate ascent: choose a --guide"
        )


def _widths(text: str | None, option: str) -> tuple[int, ...] | None:
    """Hidden widths from text such as ``64,64``; the empty text means no hidden layer.

    Raises:
        ValueError: the text is something else.
    """
    try:
        return None if text is None else tuple(int(word) for word in words(text) or ())
    except ValueError:
        raise ValueError(f"{option} must be whole numbers such as 64,64, got {text!r}") from None
