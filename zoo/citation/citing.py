"""References of names, objects and saved runs."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from zoo.citation.bibtex import Entry, entries_of
from zoo.citation.lookup import known, named
from zoo.citation.parts import listed, of_class, of_data, of_training
from zoo.citation.saved import of_folder


def citations(*things: Any) -> list[Entry]:
    """The references of things, each once, in the order of the things.

    A class of your own is cited as what it is, without a reference, unless it has an attribute ``citation`` with one or
    more BibTeX entries. One that inherits from a class of this package is cited together with that.

    Args:
        things: names, as :func:`citable` lists them, or keys of references; models, guides, losses and optimizers, or
            their classes; runs, which stand for their model, guide and loss; data sets; the paths
            (:class:`pathlib.Path`) of saved runs.

    Raises:
        FileNotFoundError: a path holds no run.
        TypeError: a thing is a number, a list, or another of Python's own.
        ValueError: there is nothing of a name, or the ``citation`` of a class is no BibTeX.

    >>> for entry in citations("FactorAnalysis", "iwae"):
    ...     print(entry.key, entry.of)
    rubin1982em ('FactorAnalysis',)
    zhao2008ml ('FactorAnalysis',)
    burda2016importance ('IWAE',)
    tucker2019doubly ('IWAE',)
    rainforth2018tighter ('IWAE',)
    """
    found: dict[str, Entry] = {}
    for thing in things:
        for entry in _entries(thing):
            held = found.setdefault(entry.key, entry)
            found[entry.key] = replace(held, of=tuple(dict.fromkeys((*held.of, *entry.of))))
    cited = {name for entry in found.values() if entry.bibtex for name in entry.of}
    return [entry for entry in found.values() if entry.bibtex or entry.key not in cited]


def as_bibtex(entries: Iterable[Entry]) -> str:
    """References as a BibTeX file, each with a comment on what it is for; what has none is a comment alone.

    >>> print(as_bibtex(citations("frey_faces")))
    % frey_faces
    @article{roweis2000nonlinear,
      author = {Roweis, Sam T. and Saul, Lawrence K.},
      title = {Nonlinear dimensionality reduction by locally linear embedding},
      journal = {Science},
      year = {2000},
      volume = {290},
      number = {5500},
      pages = {2323--2326},
    }
    """
    blocks = ([*_comment(entry), entry.bibtex] if entry.bibtex else [f"% {entry.text}"] for entry in entries)
    return "\n\n".join("\n".join(block) for block in blocks)


def _comment(entry: Entry) -> list[str]:
    return [f"% {', '.join(entry.of)}"] if entry.of else []


def _entries(thing: Any) -> Iterator[Entry]:
    """The references of one thing."""
    if isinstance(thing, str):
        yield from named(thing)
    elif isinstance(thing, PathLike):
        yield from of_folder(Path(thing))
    else:
        yield from _of_object(thing)


def _of_object(thing: Any) -> Iterator[Entry]:
    """The references of an object: a run, a data set, or something with a class."""
    from zoo.base.callables import unwrapped  # here, as names need no torch
    from zoo.base.protocols import Pair
    from zoo.data.dataset import Dataset
    from zoo.data.loading import names, provenance

    if isinstance(thing, Dataset):
        own = thing.name not in names() or thing.source != provenance(thing.name).source
        yield from of_data(thing.name, thing.source if own else None)
    elif isinstance(thing, Pair) and not isinstance(thing, type):
        yield from _of_object(thing.model)
        yield from _of_object(thing.guide)
        if (training := getattr(thing, "training", None)) is not None:
            yield from of_training(training.loss, training.optimizer)
    else:
        inner = unwrapped(thing)
        named_itself = isinstance(inner, type) or inspect.isroutine(inner)
        cls = inner if named_itself else type(inner)
        if cls.__module__ == "builtins":
            raise TypeError(
                f"cannot cite {thing!r}: pass a name, a model, a guide, a loss, a data set, a run or a path"
            )
        yield from _of_class(cls, getattr(inner, "settings", None))


def _of_class(thing: Any, settings: Any) -> Iterator[Entry]:
    """The references of a class or function."""
    name, module = thing.__name__, thing.__module__
    own = _carried(thing)
    yield from own or of_class(module, name, _origin(thing), settings if isinstance(settings, dict) else None)
    for base in () if listed(module) else getattr(thing, "__mro__", ())[1:]:
        found = _carried(base)
        if not found and listed(base.__module__) and known(base.__name__):
            found = named(base.__name__)
        if found:
            yield from found
            break


def _carried(thing: Any) -> list[Entry]:
    """The references that a class or function has in its own attribute ``citation``."""
    text, name = vars(thing).get("citation"), thing.__name__
    if not isinstance(text, str):
        return []
    return [replace(entry, of=(name,)) for entry in entries_of(text, f"citation of {name}")]


def _origin(thing: Any) -> str:
    """What a class or function is, and where it comes from."""
    kind = "class" if isinstance(thing, type) else "function"
    try:
        file = Path(inspect.getsourcefile(thing) or "")
    except (TypeError, OSError):  # typed into an interpreter
        return f"your {kind}"
    if "site-packages" in file.parts:
        return f"a {kind} of {thing.__module__.partition('.')[0]}"
    return f"your {kind}, from {file.name}"
