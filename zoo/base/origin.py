"""Where a model or guide of the user's own comes from, noted on the object for the record of a saved run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.base.callables import PyroCallable, unwrapped
from zoo.base.module import described

_NOTE = "_origin"


@dataclass(frozen=True)
class Origin:
    """How a model or guide was built.

    Attributes:
        name: ``file.py:Name``, ``package.module:Name`` or the name of an entry point.
        settings: arguments of the class or function by name; tensors by shape, modules by class.
    """

    name: str
    settings: dict[str, Any]


def mark(function: PyroCallable, name: str, arguments: Mapping[str, Any]) -> None:
    """Note on a model or guide by what name and arguments it was built."""
    settings = {key: described(key, value) for key, value in arguments.items()}
    remember(function, Origin(name, settings))


def remember(function: PyroCallable, origin: Origin) -> None:
    """Note on a model or guide what a saved run recorded of how it was built."""
    vars(unwrapped(function))[_NOTE] = origin


def origin_of(function: PyroCallable) -> Origin | None:
    """The note of :func:`mark`; None if there is none, as for built-in classes and objects built in Python."""
    found = getattr(unwrapped(function), "__dict__", {}).get(_NOTE)
    return found if isinstance(found, Origin) else None
