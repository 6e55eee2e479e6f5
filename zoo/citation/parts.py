"""References of the parts of a run, known by the names of their classes, or what they are where there is none."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.citation.bibtex import Entry
from zoo.citation.lookup import known, named
from zoo.citation.things import PACKAGE, REFERENCES

OURS = ("zoo", "guides")
LIBRARIES = {"pyro": "Pyro", "torch": "PyTorch"}


def listed(module: str) -> bool:
    """Whether the classes of a module are cited by their names: those of this package, of Pyro and of torch."""
    return module.partition(".")[0] in (*OURS, *LIBRARIES)


def of_class(module: str, name: str, where: str, settings: Mapping[str, Any] | None = None) -> Iterator[Entry]:
    """The references of a class or function.

    Args:
        module: that defines it.
        name: its name.
        where: what to say of one that has no reference.
        settings: the arguments of its constructor, some of which have references of their own.
    """
    top = module.partition(".")[0]
    if not listed(module):
        yield Entry(name, "", f"{name}: {where}", (name,))
        return
    if known(name):
        yield from named(name)
    if top in LIBRARIES or not known(name):
        yield from named(LIBRARIES.get(top, PACKAGE))
    likelihood = (settings or {}).get("likelihood", ())
    kinds = [likelihood] if isinstance(likelihood, str) else ["mixed", *likelihood] if likelihood else []
    for kind in kinds if top in OURS else ():
        if kind in REFERENCES["likelihood"]:
            yield from named(kind)


def of_training(*names: str) -> Iterator[Entry]:
    """The references of the loss and the optimizer that the record of a training names; others are left out."""
    for name in names:
        if known(name):
            yield from named(name)


def of_data(name: str, source: str | None = None) -> Iterator[Entry]:
    """The references of a data set of this package, or the name of a file.

    Args:
        name: of the data set, or the path of the file.
        source: of the rows; None where the name tells all.
    """
    if source is None and name in REFERENCES["data set"]:
        yield from named(name)
    else:
        title = Path(source or name).name
        yield Entry(title, "", f"{title}: your data", (title,))
