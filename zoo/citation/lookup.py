"""References by the name of a thing."""

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from importlib.metadata import PackageNotFoundError, version

from zoo.citation.bibtex import Entry, parse
from zoo.citation.things import OTHER_NAMES, PACKAGE, REFERENCES

_DRAWS = re.compile(r"-\d+$")  # as in IWAE-50


def citable() -> dict[str, tuple[str, ...]]:
    """The names that can be cited, by kind: models, guides, losses, data sets and so on."""
    return {kind: tuple(named) for kind, named in REFERENCES.items()}


@functools.cache
def library() -> Mapping[str, Entry]:
    """All references by key."""
    file = "references.bib"
    text = resources.files("zoo.citation").joinpath(file).read_text(encoding="utf-8")
    return {entry.key: entry for entry in (*parse(_package(), PACKAGE), *parse(text, file))}


def _package() -> str:
    """The entry of this package, in the version that is installed."""
    try:
        number = f", version {version(PACKAGE)}"
    except PackageNotFoundError:  # run from a source folder
        number = ""
    return f"""@misc{{latentzoo,
        author = {{{{The Latent Zoo founders}}}},
        title = {{Latent Zoo: latent factor models and variational guides for {{Pyro}}}},
        howpublished = {{Python package {PACKAGE}{number}}},
    }}"""


def named(name: str) -> list[Entry]:
    """The references of what has this name; upper and lower case, hyphens and underscores make no difference.

    Args:
        name: of a thing, as :func:`citable` lists them; a bound with its draws, such as ``IWAE-50``; or the key of a
            reference.

    Raises:
        ValueError: there is nothing of this name; the message suggests the nearest.
    """
    if name in library():
        return [library()[name]]
    found = known(name)
    if found is None:
        near = difflib.get_close_matches(_plain(name), _keys(), n=1)
        hint = f"did you mean {_keys()[near[0]][0]!r}?" if near else "zoo cite, or zoo.citation.citable(), lists all"
        raise ValueError(f"nothing to cite by the name {name!r}: {hint}")
    title, keys = found
    return [replace(library()[key], of=(title,)) for key in keys]


def known(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The name as it is listed and the keys of its references; None if there is nothing of this name."""
    return _keys().get(_plain(name)) or _keys().get(_plain(_DRAWS.sub("", name)))


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


@functools.cache
def _keys() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Listed names and keys, by the plain form of the name."""
    listed = {name: keys for things in REFERENCES.values() for name, keys in things.items()}
    found = {_plain(name): (name, keys) for name, keys in listed.items()}
    return found | {_plain(other): (name, listed[name]) for other, name in OTHER_NAMES.items()}
