"""References of what a saved run used, read from its record without loading it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.citation.bibtex import Entry
from zoo.citation.parts import of_class, of_data, of_training

SETTINGS = "settings.json"  # that every run has
RESULTS = "results.json"  # of zoo fit


def is_run(folder: Path) -> bool:
    """Whether a folder holds a saved run."""
    return (folder / SETTINGS).is_file()


def of_folder(folder: Path) -> Iterator[Entry]:
    """The references of the model, the guide, the loss and the data of a saved run.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its record is damaged.
    """
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} holds no run: name a folder that zoo fit --out or Fit.save wrote")
    settings = _read(folder / SETTINGS)
    try:
        for role in ("model", "guide"):
            module, name = settings[role]["class"].split(":")
            where = _place(settings[role].get("origin"), module, role)
            yield from of_class(module, name, where, settings[role]["settings"])
        training = settings.get("training") or settings.get("fit") or {}  # the latter in runs of latent-zoo 0.1.0
        yield from of_training(training.get("loss") or "", training.get("optimizer") or "")
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / SETTINGS} is damaged: {error!r}") from None
    results = _read(folder / RESULTS) if (folder / RESULTS).is_file() else {}
    source = (results.get("table") or {}).get("source") or results.get("moments")
    if source is not None:
        yield from of_data(source)


def _place(origin: dict[str, Any] | None, module: str, role: str) -> str:
    """Where a class without a reference comes from, in words."""
    found = module if origin is None else str(origin["name"])  # file.py:Name, package.module:Name, or an entry point
    if origin is not None and ":" not in found:
        return f"a {role} of the package {module.partition('.')[0]}"
    return f"your {role}, from {Path(found).name.partition(':')[0]}"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds no record")
    return found
