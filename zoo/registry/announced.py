"""Models and guides that installed packages announce by entry points, listed from their metadata alone.

A package announces its classes in its ``pyproject.toml``::

    [project.entry-points."latent_zoo.models"]
    SparseFactors = "my_package.models:SparseFactors"

    [project.entry-points."latent_zoo.guides"]
    MyGuide = "my_package.guides:MyGuide"
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, EntryPoint, distributions

GROUPS = {"model": "latent_zoo.models", "guide": "latent_zoo.guides"}


@dataclass(frozen=True)
class Announced:
    """A class that a package announces.

    Attributes:
        role: ``model`` or ``guide``.
        name: under which it is announced.
        value: where it is, ``package.module:Name``.
        distribution: name and version of the distribution.
        broken: why it cannot be loaded, as far as metadata and files show; None if nothing speaks against it. What an
            import does beyond that (a module made by a hook, or one that raises) only the import itself shows.
    """

    role: str
    name: str
    value: str
    distribution: str
    broken: str | None


def announced() -> list[Announced]:
    """The models and guides of all installed packages; none of them is imported."""
    found: list[Announced] = []
    seen: set[str] = set()
    for distribution in distributions():
        text = distribution.read_text("entry_points.txt") or ""
        if not any(group in text for group in GROUPS.values()):
            continue
        name = _noted(distribution, "Name") or "a distribution without a name"
        if name not in seen:  # of several installed ones the first on the path counts
            seen.add(name)
            found += _of(distribution, f"{name} {_noted(distribution, 'Version') or 'of unknown version'}")
    return found


def plain(name: str) -> str:
    """A name without case, hyphens and underscores, by which names are compared."""
    return name.lower().replace("-", "").replace("_", "")


def _noted(distribution: Distribution, field: str) -> str | None:
    """A field of a distribution's metadata, if it is there."""
    return str(distribution.metadata[field]) if field in distribution.metadata else None


def _of(distribution: Distribution, title: str) -> Iterator[Announced]:
    """What one distribution announces."""
    try:
        points = list(distribution.entry_points)
    except (ValueError, TypeError) as error:
        yield Announced("model", "?", "", title, f"its entry_points.txt is malformed ({error})")
        return
    for role, group in GROUPS.items():
        for point in points:
            if point.group == group:
                yield Announced(role, point.name, point.value, title, _defect(point))


def _defect(point: EntryPoint) -> str | None:
    """Why an entry point cannot be loaded: it is no ``module:Name``, or there is no such module."""
    match = point.pattern.match(point.value)
    if match is None or match["attr"] is None:
        return "not of the form package.module:Name"
    place = None
    whole = ""
    for word in match["module"].split("."):  # find_spec of a dotted name would import the packages around it
        whole = f"{whole}.{word}".lstrip(".")
        try:
            spec = importlib.util.find_spec(word) if place is None else PathFinder.find_spec(whole, place)
        except (ImportError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        if spec is None:
            return f"there is no module {whole}"
        place = list(spec.submodule_search_locations or ())
    return None
