"""Models and guides built from plain settings."""

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from zoo.base.callables import PyroCallable
from zoo.base.origin import mark
from zoo.registry import sources
from zoo.registry.finding import Made, Named, check_callable, is_pyro_function, named

SIZES = {"latent_dim", "components"}  # never taken for the number of columns
OPTIONS = {  # parameters of built-in classes with an option of their own
    "model": {"latent_dim", "components", "covariance", "noise", "likelihood", "floor"},
    "guide": {"hidden"},
}


@dataclass(frozen=True)
class ModelMaker:
    """Builds the model of a name for a number of columns; can be pickled, as it keeps names and values alone.

    Attributes:
        name: as of :func:`zoo.registry.finding.find_model`.
        settings: of the constructor by name; None means not given.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, data_dim: int) -> Any:
        """A new model of ``data_dim`` columns, in the default dtype."""
        return build_named(named(self.name, "model"), self.settings, "model", {"data_dim": data_dim})


@dataclass(frozen=True)
class GuideMaker:
    """Builds the guide of a name for a model and rows; can be pickled, as it keeps names and values alone.

    Attributes:
        name: as of :func:`zoo.registry.finding.find_guide`.
        settings: of the constructor by name; None means not given.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: PyroCallable, x: Tensor) -> Any:
        """A new guide of the model for rows (n, d), in their dtype if it is not built in."""
        return build_named(named(self.name, "guide"), self.settings, "guide", {"model": model, "x": x})


def model_maker(name: str, settings: Mapping[str, Any] | None = None) -> ModelMaker:
    """A function data_dim -> model for the name of a model; see :func:`zoo.registry.finding.find_model`.

    The constructor gets the number of columns as ``data_dim``, or in its first argument if that is required and no
    setting, and the settings by name.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: as :func:`zoo.registry.finding.find_model`.

    >>> model_maker("ppca", {"latent_dim": 2})(4).weight.shape
    torch.Size([4, 2])
    """
    origin = named(name, "model").origin
    return ModelMaker(name if origin is None else origin, dict(settings or {}))


def guide_maker(name: str, settings: Mapping[str, Any] | None = None) -> GuideMaker:
    """A function (model, x) -> guide for the name of a guide; see :func:`zoo.registry.finding.find_guide`.

    The constructor gets the model as ``model``, or in its first argument; the rows where it has an ``x``; and the
    settings by name.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: as :func:`zoo.registry.finding.find_guide`.
    """
    origin = named(name, "guide").origin
    return GuideMaker(name if origin is None else origin, dict(settings or {}))


def options(made: Made) -> dict[str, inspect.Parameter]:
    """The parameters by name of a constructor, without ``self``, or of a function."""
    if inspect.isclass(made):
        return dict(list(inspect.signature(made.__init__).parameters.items())[1:])
    return dict(inspect.signature(made).parameters)


def build(made: Made, given: Mapping[str, Any], role: str = "model", **context: Any) -> Any:
    """An instance from its context (``data_dim`` for a model; ``model`` and ``x`` for a guide) and settings by name.

    Args:
        made: a class, or a function that builds.
        given: settings by parameter name; None means not given.
        role: ``model`` or ``guide``, for messages.
        context: what the constructor gets without being told; of it what it has a parameter for.

    Raises:
        ValueError: an unknown setting, or a required one is missing.
    """
    return made(**arguments(made, given, role, context))


def arguments(made: Made, given: Mapping[str, Any], role: str, context: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name; parameters and errors are those of :func:`build`."""
    known = options(made)
    title = getattr(made, "__name__", str(made))
    set_ = {key: value for key, value in given.items() if value is not None}
    if taken := [key for key in context if key in set_]:
        raise ValueError(f"{title} gets {taken[0]!r} from the data and the model: leave it out")
    found = {name: value for name, value in context.items() if name in known}
    leading = next(iter(context))
    if leading not in found and (first := _first(known, {*set_, *found})) is not None:
        found[first] = context[leading]
    named_ = {
        name: each for name, each in known.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    takes = [name for name in named_ if name not in found]
    anything = any(each.kind is each.VAR_KEYWORD for each in known.values())
    if not anything and (strange := [key for key in set_ if key not in takes]):
        raise ValueError(f"{title} has no setting {strange[0]!r}: available are {', '.join(takes) or 'none'}")
    required = [name for name in takes if named_[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in set_]:
        raise ValueError(f"{title} requires {missing[0]!r}: pass {_option(missing[0], role)}")
    return found | set_


def build_named(what: Named, given: Mapping[str, Any], role: str, context: Mapping[str, Any]) -> Any:
    """An instance of what a name means; one that is not built in keeps its name, which a saved run records.

    Raises:
        TypeError: a function builds something else than a model or guide.
        ValueError: as :func:`build`, or the constructor of a class of the user's own fails.
    """
    made = what.made
    if what.origin is None:
        return build(made, given, role, **context)
    title = getattr(made, "__name__", str(made))
    if is_pyro_function(made):
        if unfit := [key for key, value in given.items() if value is not None]:
            raise ValueError(f"{title} is a {role} itself, a function without settings: leave {unfit[0]!r} out")
        mark(made, what.origin, {})
        return made
    values = arguments(made, given, role, context)
    try:
        built = made(**values)
    except Exception as error:
        if not sources.names_source(what.origin) or type(error).__module__.split(".")[0] in ("zoo", "guides"):
            raise
        raise ValueError(f"{title} cannot be built: it {sources.failure(error)}") from error
    check_callable(built, role, title)
    mark(built, what.origin, values)
    x = context.get("x")
    return built.to(x.dtype) if isinstance(built, nn.Module) and isinstance(x, Tensor) else built


def settings_of(texts: Iterable[str] | None, option: str = "--set") -> dict[str, Any]:
    """Settings from texts such as ``width=64``: values in JSON, or else plain text.

    Raises:
        ValueError: a text is not NAME=VALUE, or a name is given twice.

    >>> settings_of(["width=64", "scale=0.1", "kind=linear", "hidden=[64, 64]"])
    {'width': 64, 'scale': 0.1, 'kind': 'linear', 'hidden': [64, 64]}
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name.isidentifier():
            raise ValueError(f"{option} must be NAME=VALUE, as {option} width=64, got {text!r}")
        if name in found:
            raise ValueError(f"{option} gives {name!r} twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def merged(given: Mapping[str, Any], texts: Iterable[str] | None, option: str = "--set") -> dict[str, Any]:
    """Settings by options of their own, and those of :func:`settings_of`.

    Raises:
        ValueError: one is given by both.
    """
    others = settings_of(texts, option)
    if twice := [name for name in others if given.get(name) is not None]:
        raise ValueError(f"{option} gives {twice[0]!r}, which an option of its own gives as well: leave one out")
    return {**given, **others}


def _first(known: Mapping[str, inspect.Parameter], taken: set[str]) -> str | None:
    """The first parameter, if it is required, is not given and is no size of the model."""
    first = next(iter(known.values()), None)
    if first is None or first.kind is not first.POSITIONAL_OR_KEYWORD or first.default is not first.empty:
        return None
    return None if first.name in taken or first.name in SIZES else first.name


def _option(name: str, role: str) -> str:
    """The option that gives a setting."""
    if name in OPTIONS[role]:
        return f"--{name.replace('_', '-')}"
    return f"{'--set' if role == 'model' else '--guide-set'} {name}=VALUE"
