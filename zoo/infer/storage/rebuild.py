"""From a record to a model and a guide: rebuilt, or passed in and given the saved state."""

import importlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from zoo.base.callables import PyroCallable, held_modules, modules, name_of, unwrapped
from zoo.base.module import Module
from zoo.base.origin import Origin, remember
from zoo.base.protocols import HasWidth
from zoo.infer.storage.bounded import Bounded, TooLarge, rows_like
from zoo.infer.storage.files import PARAMETERS, SETTINGS
from zoo.infer.storage.record import Settings, arguments, class_path, from_json, handler_names, state

_TRUSTED = ("zoo", "guides")  # the only packages a settings file may name classes of
_HARMLESS = {"InferConfigMessenger"}  # handlers that change no density


@dataclass(frozen=True)
class Part:
    """The saved record and state of the model or the guide.

    Attributes:
        role: ``model`` or ``guide``.
        record: its section of the settings.
        tensors: its state by name.
        folder: of the run.
        version: of the latent-zoo that saved it.
    """

    role: str
    record: Settings
    tensors: dict[str, Tensor]
    folder: Path
    version: str

    @property
    def file(self) -> Path:
        """The settings file, for messages."""
        return self.folder / SETTINGS

    @property
    def path(self) -> str:
        """``package.module:Name`` of the class."""
        return str(self.record["class"])

    @property
    def trusted(self) -> bool:
        """Whether the class is one of ``zoo`` or ``guides``, by its name."""
        names = self.path.partition(":")[0].split(".")
        return names[0] in _TRUSTED and all(word.isidentifier() and not word.startswith("_") for word in names)

    @property
    def origin(self) -> str:
        """How the command line names the class: as it was named there, else by its module, else as it may be."""
        noted = self.record.get("origin")
        if isinstance(noted, dict) and isinstance(noted.get("name"), str):
            return str(noted["name"])
        place, _, name = self.path.partition(":")
        return f"FILE.py:{name}" if place == "__main__" else self.path

    @property
    def made_with(self) -> Settings | None:
        """The arguments of the class or function by which the command line built it, if it did."""
        noted = self.record.get("origin")
        found = noted.get("settings") if isinstance(noted, dict) else None
        return found if isinstance(found, dict) else None

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the first saved floating-point tensor."""
        return next((value.dtype for value in self.tensors.values() if value.is_floating_point()), None)


class MustBeGiven(ValueError):  # noqa: N818 - it reads as what it says
    """A model or guide whose class is from outside of the package, so that loading does not import it.

    Attributes:
        names: of the model and the guide that must be given, by role; as a command line names them.
    """

    def __init__(self, parts: list[Part]) -> None:
        self.names = {part.role: part.origin for part in parts}
        what = " and ".join(f"the {part.role} {part.path}" for part in parts)
        roles = ", ".join(f"{part.role}=..." for part in parts)
        super().__init__(
            f"{parts[0].file} names {what}, and load imports only from {' and '.join(_TRUSTED)}: pass the class, or "
            f"build it yourself and pass it, load(path, {roles})"
        )


@dataclass(frozen=True)
class Builder:
    """A function that builds a model or guide, to be called with the recorded arguments."""

    make: Callable[..., PyroCallable]


def refuse_foreign(parts: list[Part]) -> None:
    """Refuse to import the classes of parts that are from outside of the package.

    Raises:
        MustBeGiven: names them.
    """
    if foreign := [part for part in parts if not part.trusted]:
        raise MustBeGiven(foreign)


def build(part: Part, known: dict[str, Any], made: type | Builder | None = None) -> PyroCallable:
    """A new object of the recorded class and arguments.

    Args:
        part: the record.
        known: the values of the arguments ``model`` (class and object) and ``x`` (dtype and device).
        made: the class, or what builds the object; None for a class of ``zoo`` or ``guides``.

    Raises:
        ValueError: the class or one of the arguments cannot be built here.
    """
    file, role, path = part.file, part.role, part.path
    found = made.make if isinstance(made, Builder) else _find(part) if made is None else _given(part, made)
    if part.record.get("handlers") and not isinstance(made, Builder):
        raise ValueError(
            f"{file}: the {role} {path.partition(':')[2]} was saved inside Pyro's handlers "
            f"({', '.join(part.record['handlers'])}), which cannot be saved: wrap one in them again and pass it, "
            f"load(path, {role}=...)"
        )
    recorded = inspect.isclass(found) and issubclass(found, Module)
    given = part.record.get("settings") if recorded else part.made_with
    whole = known.get("model")
    if given is None and (isinstance(made, Builder) or _automatic(found)):
        given = {} if whole is None else _model_alone(found, whole[0])
    if not isinstance(given, dict):
        raise ValueError(f"{file} lacks the arguments of the {role} {path}: restore it, or pass load(path, {role}=...)")
    values, rows = dict(getattr(found, "absent", {})), None
    for name, value in given.items():
        note = next(iter(value), None) if isinstance(value, dict) else None
        if note in ("module", "object") and whole is not None and value[note] == whole[0]:
            values[name] = whole[1]
        elif note == "tensor" and name == "x" and name in known:
            try:
                values[name] = rows = rows_like(value["tensor"], part.tensors, *known[name])
            except TooLarge as error:
                raise _not_built(part, error) from None
        elif note in ("module", "tensor", "object"):
            raise ValueError(
                f"{file} does not contain the argument {name} of the {role} {path} ({value[note]}): build "
                f"the {role} yourself and pass it, load(path, {role}=...)"
            )
        else:
            values[name] = from_json(value)
    held = list(part.tensors.values())
    if whole is not None:
        held += [tensor for module in modules(whole[1]) for tensor in (*module.parameters(), *module.buffers())]
    try:
        with Bounded(held, rows=None if rows is None else len(rows)):
            built = found(**values)
    except Exception as error:
        raise _not_built(part, error) from error
    if isinstance(made, Builder):
        check_alike(part, built)
    if part.made_with is not None:
        remember(built, Origin(part.origin, part.made_with))
    return built


def _not_built(part: Part, error: Exception) -> ValueError:
    """The error for arguments that do not build."""
    role = part.role
    return ValueError(
        f"{part.file}: the {role} {part.path}, saved by latent-zoo {part.version}, cannot be built from its settings "
        f"({type(error).__name__}: {error}): restore the file, install that version, or pass load(path, {role}=...)"
    )


def check_alike(part: Part, given: PyroCallable) -> None:
    """Refuse a callable of another class, in other handlers or built with other arguments than the saved one.

    Raises:
        ValueError: names the difference.
    """
    inner, role = unwrapped(given), part.role
    mine, saved = (path.rpartition(":")[2].rpartition(".")[2] for path in (class_path(inner), part.path))
    if mine != saved:
        raise ValueError(f"{part.file} holds the {role} {saved}, got {mine}: pass load(path, {role}=...) a {saved}")
    _check_handlers(part, given)
    theirs = part.record.get("settings")
    if not (isinstance(inner, Module) and isinstance(theirs, dict)):
        return
    for name, value in arguments(inner).items():
        if isinstance(value, dict) or name not in theirs or value == theirs[name]:
            continue
        raise ValueError(
            f"{part.file}: the {role} {saved} was built with {name}={from_json(theirs[name])!r}, got one with "
            f"{name}={from_json(value)!r}: build it with the saved value"
        )


def set_up(part: Part, guide: PyroCallable, model: PyroCallable, rows: int | None) -> None:
    """Make one of Pyro's autoguides create its parameters, which it does in its first run.

    Args:
        part: the guide's record.
        guide: the guide.
        model: its model.
        rows: the number of rows it was fitted to, if known, for a record without the shape of its data.
    """
    inner, behind = unwrapped(guide), unwrapped(model)
    if not isinstance(inner, AutoGuide) or inner.prototype_trace is not None:
        return
    shape = part.record.get("seen") or (rows, behind.data_dim if isinstance(behind, HasWidth) else None)
    if all(isinstance(size, int) for size in shape):
        with suppress(
            Exception
        ):  # if zeros are invalid data for the model, the state will not match, which is the error to report
            guide(example(model).new_zeros(1).expand(*shape))


def check_state(part: Part, given: PyroCallable) -> None:
    """Refuse a callable whose tensors are not those of the file, by name and shape.

    Raises:
        ValueError: names what is missing, unexpected or of another shape.
    """
    own, saved, role = state(given), part.tensors, part.role
    missing, unexpected = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    problems = []
    if missing:
        problems.append(f"lacks {', '.join(missing)}")
    if unexpected:
        problems.append(f"has {', '.join(unexpected)}, which the {role} does not have")
    problems += [
        f"has {name} of shape {tuple(saved[name].shape)}, the {role} {tuple(value.shape)}"
        for name, value in own.items()
        if name in saved and value.shape != saved[name].shape
    ]
    if problems:
        way = f"pass load(path, {role}=...) one built as the saved one was, see {SETTINGS}"
        if isinstance(unwrapped(given), AutoGuide) and not own:
            way = "an autoguide creates its parameters in its first run, so run it on the data once: guide(x)"
        raise ValueError(f"{part.folder / PARAMETERS} {'; '.join(problems)} ({class_path(unwrapped(given))}): {way}")


def cast(part: Part, given: PyroCallable) -> None:
    """Convert the modules behind a callable to the dtypes of the saved tensors, on their own devices."""
    for prefix, module in held_modules(given).items():
        saved = _of(part.tensors, prefix)
        dtype = next((value.dtype for value in saved.values() if value.is_floating_point()), None)
        if dtype is not None:
            module.to(dtype)
        for name, value in module.state_dict(keep_vars=True).items():
            if name in saved and value.dtype != saved[name].dtype:
                value.data = value.data.to(saved[name].dtype)


def restore(part: Part, given: PyroCallable) -> None:
    """Write the saved state into the modules behind a callable, in place, dtypes included."""
    cast(part, given)
    frozen = part.record.get("frozen", [])
    for prefix, module in held_modules(given).items():
        module.load_state_dict(_of(part.tensors, prefix), strict=True)
        for name, parameter in module.named_parameters():
            if f"{prefix}{name}" in frozen:
                parameter.requires_grad_(False)
        for own in module.modules():
            if isinstance(own, Module):
                own.keep()  # a fit continues from here, even if the constructor drew the same values


def example(function: PyroCallable) -> Tensor:
    """A tensor with the dtype and device of the first parameter behind a callable."""
    found = next((p for module in modules(function) for p in module.parameters()), None)
    return torch.zeros(()) if found is None else found.detach()


def check_given(role: str, given: Any) -> None:
    """Refuse what cannot be a model or guide, nor its class.

    Raises:
        TypeError: it is a class in handlers, or not callable.
    """
    if not isinstance(given, type) and isinstance(unwrapped(given), type):
        name = name_of(given)
        raise TypeError(f"{role} is the class {name}: pass an instance, as in load(path, {role}={name}(...))")
    if not callable(given):
        raise TypeError(f"{role} is not a Pyro callable, got {type(given).__name__}: pass a module or a function")


def _find(part: Part) -> type[Module]:
    """The class of the recorded name, from ``zoo`` or ``guides`` only.

    Raises:
        ValueError: it is from another package, or does not exist.
    """
    role, path = part.role, part.path
    package, _, name = path.partition(":")
    if not part.trusted:
        raise MustBeGiven([part])
    try:
        found = getattr(importlib.import_module(package), name, None)
    except ModuleNotFoundError:
        found = None
    if not (isinstance(found, type) and issubclass(found, Module) and found.__module__ == package):
        raise ValueError(
            f"{part.file} names the {role} {path}, which this latent-zoo does not have: install the version it was "
            f"saved with ({part.version}), or pass load(path, {role}=...)"
        )
    return found


def _given(part: Part, made: type) -> type:
    """A class that was passed in, which must have the name of the recorded one.

    Raises:
        ValueError: it has another.
    """
    saved = part.path.rpartition(":")[2].rpartition(".")[2]
    if made.__name__ != saved:
        raise ValueError(
            f"{part.file} holds the {part.role} {saved}, got the class {made.__name__}: pass load(path, "
            f"{part.role}=...) the class {saved}"
        )
    if not issubclass(made, Module | AutoGuide) and part.made_with is None:
        raise ValueError(
            f"{part.file} lacks the arguments of the {part.role} {saved}, which only a zoo.base.Module records: build "
            f"it yourself and pass it, load(path, {part.role}=...)"
        )
    return made


def _automatic(made: object) -> bool:
    return isinstance(made, type) and issubclass(made, AutoGuide)


def _model_alone(make: Callable[..., Any], path: str) -> Settings:
    """The arguments of what builds a guide for a model, of which no others are recorded."""
    names = inspect.signature(make).parameters
    name = "model" if "model" in names else next(iter(names), None)
    return {} if name is None else {name: {"object": path}}


def _check_handlers(part: Part, given: PyroCallable) -> None:
    saved = [name for name in part.record.get("handlers", []) if name not in _HARMLESS]
    mine = [name for name in handler_names(given) if name not in _HARMLESS]
    if mine != saved:
        theirs, ours = (", ".join(names) or "none" for names in (saved, mine))
        raise ValueError(
            f"{part.file}: the {part.role} was saved inside Pyro's handlers {theirs}, got one inside {ours}: they "
            "change its density, so wrap it as the saved one was"
        )


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
