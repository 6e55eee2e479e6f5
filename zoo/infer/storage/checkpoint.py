"""Runs on disk: a folder of tensors (safetensors) and settings (JSON), read back without unpickling."""

import hashlib
import importlib
import json
import math
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.base.module import Module
from zoo.base.random import seeded

if TYPE_CHECKING:
    from zoo.infer.run import Fit

FORMAT = 1
PARAMETERS = "parameters.safetensors"
SETTINGS = "settings.json"

_TRUSTED = ("zoo", "guides")  # the only packages a settings file may name classes of
_PLAIN = [
    "real",
    "simplex",
    "lower_cholesky",
    "unit_lower_cholesky",
    "corr_cholesky",
    "positive_definite",
    "sphere",
    "ordered_vector",
    "positive_ordered_vector",
    "softplus_positive",
    "softplus_lower_cholesky",
]
_BOUNDED = {
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
    "interval": ("lower_bound", "upper_bound"),
}
_SECTIONS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "guide": dict,
    "fit": dict,
    "converged": bool,
    "store": dict,
    "bytes": int,
    "sha256": str,
}


def save(run: "Fit", path: str | Path) -> Path:
    """Write a run to a folder of its own: the whole of it, or nothing.

    ``parameters.safetensors`` holds the tensors of model and guide, the losses and the validation;
    ``settings.json`` the classes with the arguments they were built with, the settings of the fit, and the
    versions of the packages. The data are not kept.

    Args:
        run: what :func:`zoo.fit` returned.
        path: a folder that is not there yet, or is empty; folders above it are made.

    Returns:
        ``path``.

    Raises:
        FileExistsError: ``path`` holds a run or other files already, or is a file.
        ValueError: the run has something that the files cannot hold; the message names it.
    """
    with new_folder(path) as folder:
        write(run, folder)
    return Path(path)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears at ``path`` complete, or not at all.

    Yields a temporary folder beside ``path``, which takes its name at the end of the block. If the block
    raises, it is removed, and so are the folders above it that were made for it.

    Args:
        path: a folder that is not there yet, or is empty; folders above it are made.

    Raises:
        FileExistsError: ``path`` holds a run or other files (before or after the block), or is a file.
        NotADirectoryError: a file stands where a folder above ``path`` should.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with new_folder(Path(home) / "runs" / "first") as folder:
        ...         _ = (folder / "note.txt").write_text("hello")
        ...     [p.name for p in Path(home).rglob("*.txt")]
        ['note.txt']
    """
    target = Path(path).resolve()
    refuse_taken(Path(path))
    made = [above for above in target.parents if not above.exists()]  # the nearest first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"cannot make {path}: a file stands where a folder above it should ({error})"
        ) from None
    folder = target.parent / f".zoo-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
        yield folder
        refuse_taken(Path(path))
        os.replace(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for above in made:
            with suppress(OSError):  # somebody else put something there
                above.rmdir()
        raise


def replace(run: "Fit", path: str | Path) -> Path:
    """Write a run to a folder, in the place of the run that it may hold.

    Args:
        run: a fit.
        path: a folder that is not there, is empty, or holds a run.

    Raises:
        FileExistsError: ``path`` holds other files and no run.
        ValueError: as :func:`save`.
    """
    target = Path(path).resolve()
    if not (target / SETTINGS).exists():
        return save(run, path)
    new, old = (target.parent / f".zoo-{uuid.uuid4().hex}" for _ in range(2))
    save(run, new)
    for beside in target.iterdir():  # what others put there stays there
        if beside.name not in (SETTINGS, PARAMETERS):
            os.replace(beside, new / beside.name)
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(old, target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return Path(path)


def refuse_taken(path: Path) -> None:
    """Raise where a folder for a run is not new or empty.

    Raises:
        FileExistsError: it holds a run or other files, or is a file.
    """
    target = path.resolve()
    if target.is_dir():
        if (target / SETTINGS).exists() or (target / PARAMETERS).exists():
            raise FileExistsError(f"{path} already holds a run: choose another folder, or remove this one first")
        if any(target.iterdir()):
            raise FileExistsError(f"{path} holds other files: choose a folder that is new or empty")
    elif target.exists():
        raise FileExistsError(f"{path} is a file: choose a folder that is new or empty")


def write(run: "Fit", folder: str | Path) -> None:
    """Write a run's two files into a folder that is there; :func:`save` makes the folder, too.

    Args:
        run: what :func:`zoo.fit` returned.
        folder: where to; best one of :func:`new_folder`, so that no half-written run is left behind.

    Raises:
        FileExistsError: the folder holds a run already.
        FileNotFoundError: there is no such folder.
        ValueError: a parameter's constraint has no name here, a module keeps state that is no tensor, or the
            run has networks that belong neither to the model nor to the guide.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: make it first, or use zoo.infer.storage.checkpoint.save")
    if (folder / SETTINGS).exists() or (folder / PARAMETERS).exists():
        raise FileExistsError(f"{folder} already holds a run: choose another folder, or remove this one first")
    loose = _loose(run)
    tensors = {"losses": run.losses} | {f"store.{name}": value for name, value in loose.items()}
    if run.validation is not None:
        tensors["validation"] = run.validation
    for role, module in (("model", run.model), ("guide", run.guide)):
        for name, value in _state(module).items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"the {role} {type(module).__name__} keeps '{name}', a {type(value).__name__}: only "
                    "tensors can be saved, make it a buffer or an argument of the constructor"
                )
            tensors[f"{role}.{name}"] = value
    settings = {
        "format": FORMAT,
        "model": _record(run.model, "model"),
        "guide": _record(run.guide, "guide"),
        "fit": _jsonable(run.settings),
        "converged": bool(run.converged),
        "seed": _jsonable(run.settings.get("seed")),
        "store": {name: _constraint_record(name, run.store["constraints"].get(name)) for name in loose},
        "versions": _versions(),
    }
    # Clones: safetensors refuses two names for one memory (a guide may own its model).
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
        folder / PARAMETERS,
    )
    settings["bytes"], settings["sha256"] = (folder / PARAMETERS).stat().st_size, _sha256(folder / PARAMETERS)
    settings["checksum"] = _checksum(settings)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    shutil.copymode(folder / SETTINGS, folder / PARAMETERS)  # safetensors lets only the owner read


def read(path: str | Path, *, model: Any = None, guide: Any = None) -> dict[str, Any]:
    """The attributes of a saved run by name; arguments and errors are those of :func:`zoo.infer.loading.load`."""
    folder = Path(path)
    settings = _read_settings(folder)
    tensors = _read_tensors(folder / PARAMETERS, settings)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "guide": {}, "store": {}}
    alone: dict[str, Tensor] = {}
    for name, value in tensors.items():
        head, dot, rest = name.partition(".")
        (parts[head] if dot and head in parts else alone)[rest if dot and head in parts else name] = value
    if (
        "losses" not in alone
        or alone.keys() - {"losses", "validation"}
        or parts["store"].keys() != settings["store"].keys()
    ):
        raise ValueError(f"{folder / PARAMETERS} and {folder / SETTINGS} do not belong together: save the run again")
    with pyro.get_param_store().scope(), seeded(0), torch.device("cpu"):
        if model is None:
            model = _build("model", settings["model"], folder, {})
            _cast(model, parts["model"])
        else:
            _check_alike("model", settings["model"], model, folder)
        if guide is None:
            held = parts["guide"] if _dtype(parts["guide"]) else parts["model"]
            guide = _build(
                "guide",
                settings["guide"],
                folder,
                {
                    "model": (settings["model"]["class"], model),
                    "x": (_dtype(held) or torch.get_default_dtype(), _device(model)),
                },
            )
        else:
            _check_alike("guide", settings["guide"], guide, folder)
            _set_up(guide, model, settings["fit"])
    constraint_of = {name: _constraint(record, name, folder / SETTINGS) for name, record in settings["store"].items()}
    roles = (("model", model), ("guide", guide))
    for role, module in roles:  # both, before either is touched
        _check_state(role, module, parts[role], folder)
    for role, module in roles:
        _restore(module, parts[role], settings[role].get("frozen", []))
    params = {name: value.requires_grad_() for name, value in parts["store"].items()}
    return {
        "model": model,
        "guide": guide,
        "training": {
            **{key: value for key, value in _revived(settings["fit"]).items() if key != "steps"},
            "losses": alone["losses"],
            "converged": settings["converged"],
            "validation": alone.get("validation"),
        },
        "store": {"params": params, "constraints": constraint_of},
    }


# What is written


def _state(module: Any) -> dict[str, Any]:
    return dict(module.state_dict()) if isinstance(module, nn.Module) else {}


def _loose(run: "Fit") -> dict[str, Tensor]:
    """The parameters, unconstrained, that only the store holds: those of guides with ``pyro.param``.

    Raises:
        ValueError: a network that was registered by ``pyro.module`` is part of neither model nor guide.
    """
    modules = [m for m in (run.model, run.guide) if isinstance(m, nn.Module)]
    owned = {id(p) for m in modules for p in m.parameters()}
    roots = {m._pyro_name for m in modules if isinstance(m, PyroModule)} - {""}
    found = {}
    for name, value in run.store["params"].items():
        if id(value) in owned or any(name.startswith((f"{root}.", f"{root}$$$")) for root in roots):
            continue
        if "$$$" in name:
            network = name.partition("$$$")[0]
            raise ValueError(
                f"the network '{network}' is part of neither model nor guide, so loading could not bring it "
                "back: make it an attribute of a pyro.nn.PyroModule (or zoo.base.Module) and fit that"
            )
        found[name] = value
    return found


def _class(thing: Any) -> str:
    """``package.module:Name`` of an object's class, of a function its own."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def _record(module: Any, role: str) -> dict[str, Any]:
    """How to build it again: class, constructor's arguments, and the parameters that no optimizer moves."""
    record: dict[str, Any] = {"class": _class(module), "settings": None, "frozen": []}
    if isinstance(module, Module):
        record["settings"] = _arguments(module, role)
    if isinstance(module, nn.Module):
        record["frozen"] = [name for name, p in module.named_parameters() if not p.requires_grad]
    return record


def _arguments(module: Module, role: str) -> dict[str, Any]:
    given = dict(module.settings)
    if role == "guide" and "x" in given and not isinstance(given["x"], dict):
        given["x"] = {"tensor": list(np.shape(getattr(given["x"], "x", given["x"])))}  # an array, a list, a Dataset
    return {name: _jsonable(value) for name, value in given.items()}


def _jsonable(value: Any) -> Any:
    """``value`` in JSON; what JSON does not know becomes a note of its class, good for errors."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _jsonable(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(own) for own in value]
    if isinstance(value, (Tensor, np.ndarray)):
        return {"tensor": list(value.shape)}
    return {"object": _class(value)}


def _constraint_record(name: str, constraint: Any) -> list[Any]:
    """Name and arguments of a constraint.

    Raises:
        ValueError: it has none.
    """
    for known in _PLAIN:
        if type(constraint) is type(getattr(constraints, known)):
            return [known]
    for known, bounds in _BOUNDED.items():
        if type(constraint) is getattr(constraints, known):
            values = [torch.as_tensor(getattr(constraint, bound)) for bound in bounds]
            if all(value.numel() == 1 for value in values):
                return [known, *(_jsonable(value.item()) for value in values)]
    if isinstance(constraint, constraints.independent):
        inner = _constraint_record(name, constraint.base_constraint)
        return ["independent", inner, constraint.reinterpreted_batch_ndims]
    raise ValueError(
        f"parameter '{name}' has the constraint {constraint}, which cannot be saved: take one of "
        f"{', '.join([*_PLAIN, 'positive', 'unit_interval', *_BOUNDED])}, or make it a PyroParam of a "
        "PyroModule"
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in ("latent-zoo", "torch", "pyro-ppl", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source folder
            found[package] = None
    return found | {"torch": str(torch.__version__), "python": platform.python_version()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# What is read


def _read_settings(folder: Path) -> dict[str, Any]:
    """The settings, with every section there and of its type.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no folder, or no settings in it.
        ValueError: they are damaged, or of a newer format.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}: give the folder that a run was saved to")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give the folder that a run was saved to")
    file = folder / SETTINGS
    for needed in (file, folder / PARAMETERS):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} is missing: {folder} holds no complete run, give another or save it again"
            )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{file} is no valid JSON ({error}): restore it, or save the run again") from None
    given = settings.get("format") if isinstance(settings, dict) else None
    if type(given) is not int or given < 1:
        raise ValueError(
            f"{file} names no format, so it was not written by latent-zoo: restore it, or save the run again"
        )
    if given > FORMAT:
        raise ValueError(f"{file} has format {given}, this latent-zoo reads up to format {FORMAT}: update latent-zoo")
    wrong = [key for key, kind in _SECTIONS.items() if not isinstance(settings.get(key), kind)]
    wrong += [
        f"{role}.class"
        for role in ("model", "guide")
        if role not in wrong and not _is_path(settings[role].get("class"))
    ]
    if wrong:
        raise ValueError(f"{file} lacks {', '.join(wrong)}, or has it damaged: restore it, or save the run again")
    if settings.get("checksum") != _checksum(settings):
        raise ValueError(
            f"{file} was altered, its checksum is not that of its content: restore it, or save the run again"
        )
    return settings


def _checksum(settings: dict[str, Any]) -> str:
    """SHA-256 of the settings without their checksum: against accidents, not against forgery."""
    content = {key: value for key, value in settings.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.count(":") == 1


def _read_tensors(file: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors, on the CPU, in memory of their own.

    Raises:
        ValueError: the file is not the one that was written.
    """
    size, expected = file.stat().st_size, settings["bytes"]
    if size < expected:
        raise ValueError(
            f"{file} is truncated, {size} of {expected} bytes are left: copy it again, or save the run again"
        )
    if size != expected or _sha256(file) != settings["sha256"]:
        raise ValueError(
            f"{file} was altered, its SHA-256 is not that of {SETTINGS}: restore it, or save the run again"
        )
    try:
        return {name: value.clone() for name, value in load_file(file, device="cpu").items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file ({error}): restore it, or save the run again") from None


def _find(role: str, path: str, file: Path) -> type[Module]:
    """The class of that name, from our own packages alone.

    Raises:
        ValueError: it must be passed in, or is not there.
    """
    package, _, name = path.partition(":")
    names = package.split(".")
    if names[0] not in _TRUSTED or any(not part.isidentifier() or part.startswith("_") for part in names):
        raise ValueError(
            f"{file} names the {role} {path}, and load imports nothing but {' and '.join(_TRUSTED)}: build "
            f"it yourself and pass it, load(path, {role}=...)"
        )
    try:
        found = getattr(importlib.import_module(package), name, None)
    except ModuleNotFoundError:
        found = None
    if not (isinstance(found, type) and issubclass(found, Module) and found.__module__ == package):
        raise ValueError(
            f"{file} names the {role} {path}, which this latent-zoo does not have: install the version it "
            f"was saved with (see 'versions' in that file), or pass load(path, {role}=...)"
        )
    return found


def _build(role: str, record: dict[str, Any], folder: Path, known: dict[str, Any]) -> Module:
    """A new object of the recorded class and arguments.

    Args:
        known: what stands for ``model`` (class and object) and the data ``x`` (dtype and device) among the
            arguments.

    Raises:
        ValueError: the class or one of the arguments cannot be built here.
    """
    file, path = folder / SETTINGS, record["class"]
    found = _find(role, path, file)
    given = record.get("settings")
    if not isinstance(given, dict):
        raise ValueError(f"{file} lacks the arguments of the {role} {path}: restore it, or pass load(path, {role}=...)")
    arguments = {}
    for name, value in given.items():
        note = next(iter(value), None) if isinstance(value, dict) else None
        if note in ("module", "object") and name in known and value[note] == known[name][0]:
            arguments[name] = known[name][1]
        elif note == "tensor" and name in known and name == "x":
            dtype, device = known[name]
            arguments[name] = torch.zeros(1, dtype=dtype, device=device).expand(value["tensor"])  # takes no memory
        elif note in ("module", "tensor", "object"):
            raise ValueError(
                f"{file} does not hold the argument {name} of the {role} {path} ({value[note]}): build "
                f"the {role} yourself and pass it, load(path, {role}=...)"
            )
        else:
            arguments[name] = _revived(value)
    try:
        return found(**arguments)
    except Exception as error:
        raise ValueError(
            f"{file}: the {role} {path} cannot be built from its settings ({type(error).__name__}: {error}): "
            f"restore the file, or pass load(path, {role}=...)"
        ) from error


def _revived(value: Any) -> Any:
    """The inverse of ``_jsonable``, for what has one."""
    if isinstance(value, dict):
        if value.keys() == {"number"}:
            return float(value["number"])
        return {key: _revived(own) for key, own in value.items()}
    return [_revived(own) for own in value] if isinstance(value, list) else value


def _check_alike(role: str, record: dict[str, Any], module: Any, folder: Path) -> None:
    """Refuse an object of another class, or built with other arguments, than the saved one.

    Raises:
        ValueError: names the difference.
    """
    file = folder / SETTINGS
    mine, saved = (path.rpartition(":")[2].rpartition(".")[2] for path in (_class(module), record["class"]))
    if mine != saved:
        raise ValueError(f"{file} holds the {role} {saved}, got {mine}: pass load(path, {role}=...) a {saved}")
    theirs = record.get("settings")
    if not (isinstance(module, Module) and isinstance(theirs, dict)):
        return
    for name, value in _arguments(module, role).items():
        if isinstance(value, dict) or name not in theirs or value == theirs[name]:
            continue
        raise ValueError(
            f"{file}: the {role} {saved} was built with {name}={_revived(theirs[name])!r}, got one with "
            f"{name}={_revived(value)!r}: build it with the saved value"
        )


def _set_up(guide: Any, model: Any, settings: dict[str, Any]) -> None:
    """Let one of Pyro's autoguides make its parameters, which it does when it first sees data."""
    n, d = settings.get("rows"), getattr(model, "data_dim", None)
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None and isinstance(n, int) and isinstance(d, int):
        with suppress(Exception):  # where zeros are no data for the model, the error is that tensors are unexpected
            guide(_example(model).new_zeros(1).expand(n, d))


def _example(module: Any) -> Tensor:
    parameter = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.zeros(()) if parameter is None else parameter.detach()


def _device(module: Any) -> torch.device:
    return _example(module).device


def _dtype(tensors: dict[str, Tensor]) -> torch.dtype | None:
    return next((value.dtype for value in tensors.values() if value.is_floating_point()), None)


def _check_state(role: str, module: Any, saved: dict[str, Tensor], folder: Path) -> None:
    """Refuse a module whose tensors are not those of the file, by name and shape.

    Raises:
        ValueError: names the first that is missing, unexpected or of another shape.
    """
    own = _state(module)
    missing, unexpected = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    unlike = [name for name in own if name in saved and own[name].shape != saved[name].shape]
    problems = []
    if missing:
        problems.append(f"lacks {', '.join(missing)}")
    if unexpected:
        problems.append(f"has {', '.join(unexpected)}, which the {role} has not")
    problems += [
        f"has {name} of shape {tuple(saved[name].shape)}, the {role} {tuple(own[name].shape)}" for name in unlike
    ]
    if problems:
        way = f"pass load(path, {role}=...) one built as the saved one was, see {SETTINGS}"
        if isinstance(module, AutoGuide) and not own:
            way = "an autoguide makes its parameters when it first sees data, so run it on them once: guide(x)"
        raise ValueError(f"{folder / PARAMETERS} {'; '.join(problems)} ({_class(module)}): {way}")


def _cast(module: Any, saved: dict[str, Tensor]) -> None:
    """Give the module the dtypes of the saved tensors; its devices stay."""
    if not isinstance(module, nn.Module):
        return
    dtype = _dtype(saved)
    if dtype is not None:
        module.to(dtype)
    for name, value in module.state_dict(keep_vars=True).items():
        if name in saved and value.dtype != saved[name].dtype:
            value.data = value.data.to(saved[name].dtype)


def _restore(module: Any, saved: dict[str, Tensor], frozen: list[str]) -> None:
    if not isinstance(module, nn.Module):
        return
    _cast(module, saved)
    module.load_state_dict(saved, strict=True)
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    module.__dict__.pop("_drawn", None)  # no longer fresh, whatever the values: a fit goes on from here


def _constraint(record: Any, name: str, file: Path) -> Any:
    """The constraint that ``_constraint_record`` noted.

    Raises:
        ValueError: it is none of those.
    """
    match record:
        case [str(known)] if known in _PLAIN:
            return getattr(constraints, known)
        case ["independent", inner, int(width)]:
            return constraints.independent(_constraint(inner, name, file), width)
        case [str(known), *bounds] if known in _BOUNDED and len(bounds) == len(_BOUNDED[known]):
            return getattr(constraints, known)(*map(_revived, bounds))
    raise ValueError(
        f"{file}: parameter '{name}' has the unknown constraint {record}: restore it, or save the run again"
    )
