"""Saved runs: a folder of tensors (safetensors) and settings (JSON), read without unpickling."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from zoo.base import atomic
from zoo.base.callables import PyroCallable
from zoo.base.random import seeded
from zoo.infer.storage.files import PARAMETERS, SETTINGS, holds_run, read_files, write_files
from zoo.infer.storage.generations import GoingOn, replace_files
from zoo.infer.storage.rebuild import (
    Builder,
    Part,
    build,
    cast,
    check_alike,
    check_given,
    check_state,
    example,
    refuse_foreign,
    restore,
    set_up,
)
from zoo.infer.storage.record import Settings, constraint, from_json, record

if TYPE_CHECKING:
    from zoo.infer.run import Fit


@dataclass(frozen=True)
class Saved:
    """The content of a folder, model and guide rebuilt.

    Attributes:
        model: the model.
        guide: the guide.
        training: the fields of :class:`zoo.infer.run.Training` by name, or None.
        store: the parameters that neither holds, as a parameter store.
    """

    model: PyroCallable
    guide: PyroCallable
    training: dict[str, Any] | None
    store: dict[str, dict[str, Any]]


def save(run: "Fit", path: str | Path) -> Path:
    """Save a run to a folder of its own, completely or not at all.

    ``parameters.safetensors`` contains the tensors of model and guide and the curves of the training, if there is a
    record of it; ``settings.json`` the classes with their constructor arguments, the record of the training, and the
    versions of the packages. The data are not saved. Of Pyro handlers around model or guide (``config_enumerate``,
    ``poutine.scale``) only the names are saved: such callables must be passed to :func:`zoo.load`.

    Args:
        run: what :func:`zoo.fit`, :func:`zoo.em` or :func:`zoo.cavi` returned, or ``zoo.Fit(model, guide)``.
        path: a new or empty folder; its parent folders are created.

    Returns:
        ``path``.

    Raises:
        FileExistsError: ``path`` contains a run or other files, or is a file.
        ValueError: a part of the run cannot be saved; the message names it.
    """
    refuse_taken(path)
    with atomic.new_folder(path) as folder:
        write(run, folder)
    return Path(path)


def replace(run: "Fit", path: str | Path, going_on: GoingOn | None = None) -> Path:
    """Save a run to a folder, replacing the run that it may contain, by one renaming.

    Args:
        run: a fit.
        path: a folder that is new, empty, or contains a run; other files in it are kept.
        going_on: what the fit needs to go on from here, if it has not ended.

    Raises:
        FileExistsError: ``path`` contains other files and no run.
        ValueError: as :func:`save`.
    """
    target = Path(path)
    if (target / SETTINGS).exists():
        replace_files(target, *record(run), going_on)
        return target
    refuse_taken(path)
    with atomic.new_folder(path) as folder:
        replace_files(folder, *record(run), going_on)
    return target


def refuse_taken(path: str | Path) -> None:
    """Refuse a folder for a run that is neither new nor empty.

    Raises:
        FileExistsError: it contains a run or other files, or is a file.
    """
    if holds_run(Path(path)):
        raise FileExistsError(
            f"{path} already contains a run: choose another folder, or remove this one first; "
            "if it is the checkpoint of a fit, resume=True goes on from it"
        )
    atomic.refuse_taken(path)


def write(run: "Fit", folder: str | Path) -> None:
    """Write the two files of a run into an existing folder; :func:`save` creates the folder as well.

    Args:
        run: what :func:`zoo.fit` returned.
        folder: the folder, such as from :func:`zoo.base.atomic.new_folder`, which leaves no partial run behind.

    Raises:
        FileExistsError: the folder already contains a run.
        FileNotFoundError: there is no such folder.
        ValueError: a parameter has an unsupported constraint, a module has state that is not a tensor, or the run has
            networks that are part of neither the model nor the guide.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: create it first, or use zoo.infer.storage.checkpoint.save"
        )
    if holds_run(folder):
        raise FileExistsError(f"{folder} already contains a run: choose another folder, or remove this one first")
    write_files(folder, *record(run))


Given = PyroCallable | type | Builder | None


def read(path: str | Path, *, model: Given = None, guide: Given = None) -> Saved:
    """The content of a saved run; arguments and errors are those of :func:`zoo.infer.loading.load`."""
    for role, given in (("model", model), ("guide", guide)):
        if given is not None and not isinstance(given, Builder):
            check_given(role, given)
    folder = Path(path)
    settings, tensors = read_files(folder)
    parts = _split(settings, tensors, folder)
    version = str(settings.get("versions", {}).get("latent-zoo") or "of unknown version")
    of_model, of_guide = (Part(role, settings[role], parts[role], folder, version) for role in ("model", "guide"))
    refuse_foreign([part for part, given in ((of_model, model), (of_guide, guide)) if given is None])
    with pyro.get_param_store().scope(), seeded(0), torch.device("cpu"):
        if model is None or isinstance(model, type | Builder):
            model = build(of_model, {}, model)
            cast(of_model, model)
        else:
            check_alike(of_model, model)
        if guide is None or isinstance(guide, type | Builder):
            dtype = of_guide.dtype or of_model.dtype or torch.get_default_dtype()
            guide = build(of_guide, {"model": (of_model.path, model), "x": (dtype, example(model).device)}, guide)
        else:
            check_alike(of_guide, guide)
        set_up(of_guide, guide, model, (settings["training"] or {}).get("rows"))
    constraints = {name: constraint(noted, name, folder / SETTINGS) for name, noted in settings["store"].items()}
    pair = ((of_model, model), (of_guide, guide))
    for part, function in pair:  # both, before either is touched
        check_state(part, function)
    for part, function in pair:
        restore(part, function)
    training = settings["training"]
    return Saved(
        model,
        guide,
        None if training is None else from_json(training) | parts["training"],
        {
            "params": {name: value.requires_grad_() for name, value in parts["store"].items()},
            "constraints": constraints,
        },
    )


def _split(settings: Settings, tensors: dict[str, Tensor], folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors by role and name.

    Raises:
        ValueError: they do not match the settings.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "guide": {}, "training": {}, "store": {}}
    stray = False
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        stray |= head not in parts
        parts.setdefault(head, {})[rest] = value
    training = settings["training"] or {}
    curves = {name for name, value in training.items() if isinstance(value, dict) and "tensor" in value}
    if stray or parts["training"].keys() != curves or parts["store"].keys() != settings["store"].keys():
        raise ValueError(f"{folder / PARAMETERS} and {folder / SETTINGS} do not belong together: save the run again")
    return parts
