"""Models and guides by name, built from plain settings."""

import difflib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import guides
import zoo.models
from zoo.base.module import Module


def _classes(package: ModuleType) -> dict[str, type[Module]]:
    """The model or guide classes that a package exports, by name."""
    found = (getattr(package, name) for name in package.__all__)
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, Module)}


def models() -> dict[str, type[Module]]:
    """Every model class that :mod:`zoo.models` exports, by name."""
    return _classes(zoo.models)


def guide_classes() -> dict[str, type[Module]]:
    """Every guide class that :mod:`guides` exports, by name."""
    return _classes(guides)


def find(name: str, known: Mapping[str, Any], kind: str) -> Any:
    """The entry with a name, ignoring case, hyphens and underscores.

    Raises:
        ValueError: there is no such entry; the message suggests the nearest name.
    """
    plain = {key.lower(): key for key in known}
    wanted = name.lower().replace("-", "").replace("_", "")
    if wanted in plain:
        return known[plain[wanted]]
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.4)
    hint = f"did you mean {plain[near[0]]!r}?" if near else f"known are {', '.join(known)}"
    raise ValueError(f"unknown {kind} {name!r}: {hint}")


def options(cls: type[Module]) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, without ``self``."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


def build(cls: type[Module], given: Mapping[str, Any], *context: Any) -> Module:
    """An instance from its positional context (data_dim for a model; model and x for a guide) and settings by name.

    Args:
        cls: a model or guide class.
        given: settings by parameter name; None means not given.
        context: the leading arguments; the class takes as many of them as it has.

    Raises:
        ValueError: an unknown setting, or a required one is missing.
    """
    known = options(cls)
    leading = [name for name in known if name in ("data_dim", "model", "x")]
    set_ = {key: value for key, value in given.items() if value is not None}
    takes = [name for name in known if name not in leading]
    if strange := [key for key in set_ if key not in takes]:
        raise ValueError(f"{cls.__name__} has no setting {strange[0]!r}: available are {', '.join(takes) or 'none'}")
    required = [name for name in takes if known[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in set_]:
        raise ValueError(f"{cls.__name__} requires {missing[0]!r}: pass --{missing[0].replace('_', '-')}")
    return cls(*context[: len(leading)], **set_)
