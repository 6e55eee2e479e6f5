"""Models and guides by name, from the package, from other packages, and from files."""

import difflib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

import guides
import zoo.models
from zoo.base.callables import handlers
from zoo.base.module import Module
from zoo.registry import sources
from zoo.registry.announced import Announced, announced, plain

Made = Callable[..., Any]  # a class, or a function that builds; a Pyro function itself
SIGNATURE = ("x", "index", "size")


class Named(NamedTuple):
    """What a name means.

    Attributes:
        made: a class, a function that builds an instance, or a Pyro function with the signature of a model.
        origin: how to name it from any folder; None for a built-in class.
    """

    made: Made
    origin: str | None


def models() -> dict[str, type[Module]]:
    """Every model class that :mod:`zoo.models` exports, by name."""
    return _classes(zoo.models)


def guide_classes() -> dict[str, type[Module]]:
    """Every guide class that :mod:`guides` exports, by name."""
    return _classes(guides)


def find_model(text: str) -> Made:
    """The model class, or function that builds a model, of a name.

    Args:
        text: the name of a built-in model, in any case; one that an installed package announces (the entry points
            ``latent_zoo.models``); ``file.py:Name``; or ``package.module:Name``. Nothing else is imported.

    Returns:
        a class, a function that builds a model, or a function that is one, with arguments x, index and size.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: importing the file, the module or the entry point fails.
        TypeError: it is no such class or function, or its ``forward`` lacks arguments.
        ValueError: the name is unknown.

    >>> find_model("ppca")
    <class 'zoo.models.ppca.PPCA'>
    >>> find_model("zoo.models:GMM").__name__
    'GMM'
    """
    return named(text, "model").made


def find_guide(text: str) -> Made:
    """The guide class, or function that builds a guide, of a name; arguments and errors as of :func:`find_model`.

    >>> find_guide("mean-field")
    <class 'guides.mean_field.MeanField'>
    """
    return named(text, "guide").made


def named(text: str, role: str) -> Named:
    """What the name of a model or a guide means, and how to name it from any folder.

    Args:
        text: as of :func:`find_model`.
        role: ``model`` or ``guide``.
    """
    if sources.names_source(text):
        return Named(_checked(sources.imported(text), role, text), sources.absolute(text))
    known = models() if role == "model" else guide_classes()
    wanted = plain(text)
    if found := {plain(key): cls for key, cls in known.items()}.get(wanted):
        return Named(found, None)
    others = [each for each in announced() if each.role == role]
    hits = [each for each in others if plain(each.name) == wanted]
    if len(hits) > 1:
        listed = ", ".join(f"{each.value} ({each.distribution})" for each in hits)
        raise ValueError(f"several packages announce the {role} {text!r}: name one of {listed}")
    if hits:
        return Named(_loaded(hits[0]), hits[0].name)
    names = {plain(key): key for key in [*known, *(each.name for each in others)]}
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    hint = f"did you mean {names[near[0]]!r}?" if near else f"known are {', '.join(names.values())};"
    raise ValueError(f"unknown {role} {text!r}: {hint} One of your own is FILE.py:NAME or PACKAGE.MODULE:NAME")


def _loaded(point: Announced) -> Made:
    """The class or function that a package announces.

    Raises:
        ImportError: the entry point is malformed, its module cannot be imported, or the module has no such name.
        TypeError: it cannot be a model or guide.
    """
    title = f"the entry point {point.name} of {point.distribution}"
    place, _, name = (part.strip() for part in point.value.partition("[")[0].partition(":"))
    if not name:
        raise ImportError(f"{title} is broken: {point.broken}")
    try:
        made = sources.member(sources.import_module(place), name, place)
    except (ImportError, ValueError) as error:
        raise ImportError(f"{title} is broken: {error}") from error
    return _checked(made, point.role, title)


def is_pyro_function(made: Made) -> bool:
    """Whether a function is a model or guide itself, with arguments x, index and size, rather than one that builds it.

    >>> is_pyro_function(lambda x=None, index=None, size=None: None), is_pyro_function(lambda data_dim: None)
    (True, False)
    """
    return not inspect.isclass(made) and not _lacking(made)


def check_callable(made: Made, role: str, title: str) -> None:
    """Refuse a model or guide that cannot be called as one.

    Raises:
        TypeError: it is no callable, or lacks arguments.
    """
    if not callable(made):
        raise TypeError(f"{title} returns {type(made).__name__}: it must build a {role}")
    inner = handlers(made)[1]
    run = type(inner).forward if isinstance(inner, nn.Module) else inner
    _refuse_lacking(run, f"{type(inner).__name__}.forward" if isinstance(inner, nn.Module) else title, role)


def _checked(made: Any, role: str, title: str) -> Made:
    """A class or function that can be a model or guide, or build one.

    Raises:
        TypeError: it cannot.
    """
    if inspect.isclass(made):
        if not issubclass(made, nn.Module):
            raise TypeError(f"{title} is no torch.nn.Module: derive the class from zoo.base.Module")
        _refuse_lacking(made.forward, f"{title}: {made.__name__}.forward", role)
        return made
    if isinstance(made, nn.Module):
        raise TypeError(f"{title} is an instance: name its class, {type(made).__name__}, or a function that builds it")
    if not (inspect.isroutine(made) or callable(handlers(made)[1])):
        raise TypeError(f"{title} is of type {type(made).__name__}: name a class, or a function that builds a {role}")
    found: Made = made
    names = inspect.signature(found).parameters
    if {"index", "size"} & set(names) or (role == "model" and "x" in names):
        _refuse_lacking(found, title, role)
    return found


def _refuse_lacking(run: Callable[..., Any], title: str, role: str) -> None:
    """Refuse a ``forward`` or a function without the arguments of a model or guide.

    Raises:
        TypeError: names those that it lacks.
    """
    if getattr(run, "__name__", "") == "_forward_unimplemented":
        raise TypeError(f"{title} is missing: a {role} needs forward(self, x=None, index=None, size=None)")
    if lacking := _lacking(run):
        raise TypeError(
            f"{title} lacks {', '.join(lacking)}: a {role} is called with x=None, index=None, size=None, each by name "
            "and each with a default"
        )


def _lacking(run: Callable[..., Any]) -> list[str]:
    """The arguments among x, index and size that a function does not take by name, or not without a default."""
    given = inspect.signature(run).parameters
    if any(each.kind is each.VAR_KEYWORD for each in given.values()):
        takes_rows = any(each.kind is each.VAR_POSITIONAL for each in given.values())
        return [] if takes_rows or "x" in given else ["x"]
    lacking = [name for name in SIGNATURE if name not in given or given[name].kind is inspect.Parameter.POSITIONAL_ONLY]
    return lacking + [f"a default of {name}" for name in SIGNATURE if name in given and _required(given[name])]


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _classes(package: ModuleType) -> dict[str, type[Module]]:
    """The model or guide classes that a package exports, by name."""
    found = (getattr(package, name) for name in package.__all__)
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, Module)}
