"""Inference for new rows with a fitted model: the model is held, and a guide is found for the rows."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of, undecorated
from zoo.base.checks import ArrayLike, check_rows
from zoo.base.module import Module
from zoo.base.pairs import known_columns
from zoo.base.protocols import ConditionallyConjugate, HoldsFactors, HoldsRows, Placed
from zoo.base.tables import column_names
from zoo.infer.fitting import fit
from zoo.infer.run import Fit, Training

CONSTRUCTED = ("model", "x")  # the arguments of a guide that are given anew


def infer(run: Fit, x: ArrayLike, *, steps: int | None = None, seed: int = 0, progress: bool = False) -> Fit:
    r"""A run with the same model for other rows: its parameters are held, and q is fitted to the new rows alone.

    .. math:: \max_{q(Z^*)} E_{q(Z^*)\, q(\theta)}\big[\log p(x^*, Z^* \mid \theta) - \log q(Z^*)\big]

    - A guide that takes any rows (``Exact``, ``Amortized``, ``Flow``, ...) serves them as it is: the run is returned.
    - A guide with parameters for every row (``MeanField``, ``FullRank``) is built anew with the same arguments, and
      trained by :func:`zoo.fit` with the model's parameters held. Its factors of sites that all rows share,
      :math:`q(\theta)`, are those of the run, and are held too. Factors of conjugate families are set to their optimum
      in closed form.

    The run itself is not changed. What is found for a row does not depend on the other new rows, apart from the
    accuracy at which the search stops.

    Args:
        run: a trained pair.
        x: rows (n, d): a tensor, an array, a data frame or a data set, whose columns are those of the fit.
        steps: of the fit, at most; None until the bound has settled.
        seed: of the draws of the fit.
        progress: show a progress bar on standard error.

    Returns:
        the run for the new rows; its ``training`` is that of the new guide.

    Raises:
        TypeError: the guide holds rows and was not made by ``guides``, so that it cannot be built anew.
        ValueError: rows that do not fit the model.

    >>> import guides, torch, zoo
    >>> x = zoo.data.load("iris", dtype=torch.float64).x
    >>> model = zoo.PPCA(4, 2).double()
    >>> run = zoo.fit(model, guides.FullRank(model, x[:100]), x[:100], progress=False)
    >>> new = infer(run, x[100:])
    >>> torch.allclose(new.guide.posterior(x[100:]).mean, model.posterior(x[100:]).mean, atol=1e-6)
    True
    """
    columns = known_columns(run, x)
    guide: Any = undecorated(run.guide)
    rows = check_rows(x, undecorated(run.model))
    if not isinstance(guide, HoldsRows):
        return run
    if not isinstance(guide, Module) or guide is not run.guide:
        raise TypeError(
            f"the guide {name_of(run.guide)} holds {guide.count} rows and cannot be built anew for others: build one "
            "for the new rows and train it by zoo.fit with the model's parameters frozen (requires_grad_(False))"
        )
    model = copy.deepcopy(run.model)
    for parameter in _parameters(model):
        parameter.requires_grad_(False)
    kind: Any = type(guide)
    built = kind(model, rows, **{name: value for name, value in guide.settings.items() if name not in CONSTRUCTED})
    built.to(rows)
    if isinstance(guide, HoldsFactors) and getattr(guide, "conjugate", None) is not None:
        return _by_closed_form(run, model, built, rows, columns)
    if isinstance(built, Placed):
        built.initialize(rows)
    _hold_shared(guide, built)
    if not any(parameter.requires_grad for parameter in built.parameters()):  # its E-step is in closed form
        return _untrained(run, model, built, rows, columns)
    source = x if column_names(x) else rows
    return fit(model, built, source, steps=steps, seed=seed, store=run.store, progress=progress, patience=0)


def _parameters(model: PyroCallable) -> Iterator[nn.Parameter]:
    inner = undecorated(model)
    if isinstance(inner, nn.Module):
        yield from inner.parameters()


def _hold_shared(old: Any, new: Any) -> None:
    """Give the new guide the old one's factors of the shared sites, and hold them."""
    shared = getattr(old, "shared", None)
    if isinstance(shared, nn.Module):
        new.shared.load_state_dict(shared.state_dict())
        new.shared.requires_grad_(False)


def _by_closed_form(run: Fit, model: Any, guide: Any, rows: Tensor, columns: tuple[str, ...]) -> Fit:
    """The factors of the rows at their optimum given those of the shared sites: a natural-gradient step of length 1."""
    inner = undecorated(model)
    assert isinstance(inner, ConditionallyConjugate)
    old: Any = undecorated(run.guide)
    local = {own.attribute for own in guide.conjugate.latents if own.local}
    for name, part in guide.conjugate.parts.items():
        if name not in local:
            part.load_state_dict(old.conjugate.parts[name].state_dict())
    for name in sorted(local):
        guide.zero_grad()
        with torch.enable_grad():
            (-inner.bound(rows, guide.factors())).backward()
        guide.conjugate.parts[name].natural_step(1.0)
    guide.zero_grad()
    return _untrained(run, model, guide, rows, columns)


def _untrained(run: Fit, model: PyroCallable, guide: PyroCallable, rows: Tensor, columns: tuple[str, ...]) -> Fit:
    """The pair for the new rows, with a record that names them; nothing was trained."""
    record = Training(
        losses=torch.zeros(0),
        converged=True,
        rows=len(rows),
        dtype=str(rows.dtype).removeprefix("torch."),
        device=str(rows.device),
        stopped="the factors of the rows are in closed form",
        columns=columns,
    )
    return Fit(model, guide, record, run.store)
