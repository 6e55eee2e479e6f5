"""Classes and functions by ``file.py:Name`` or ``package.module:Name``, imported only when asked for."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "latent_zoo_file_"  # of the modules of files, which no package has


def names_source(text: str) -> bool:
    """Whether a text is ``file.py:Name`` or ``package.module:Name``, or a file alone.

    >>> names_source("model.py:Mine"), names_source("package.module:Mine"), names_source("PPCA")
    (True, True, False)
    """
    return ":" in text or text.endswith(".py")


def absolute(text: str) -> str:
    """The same source from any folder: with the full path of a file."""
    place, name = _split(text)
    return f"{Path(place).expanduser().resolve()}:{name}" if place.endswith(".py") else text


def imported(text: str) -> Any:
    """The object that ``file.py:Name`` or ``package.module:Name`` names.

    A file is imported once per process, as the module ``latent_zoo_file_STEM_HASH``; the hash is that of its full path.
    During the import the folder of the file, or the current one for a module, stands last on ``sys.path``.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: there is no such module, or importing it fails; the message has the line.
        ValueError: the text is of neither form, or the file has no such name; the message lists those it has.
    """
    place, name = _split(text)
    if place.endswith(".py"):
        module = _module_of_file(Path(place).expanduser(), place)
    elif re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", place):
        with _last_on_path(Path.cwd()):
            module = import_module(place)
    else:
        raise ValueError(f"{text!r} is neither FILE.py:NAME nor PACKAGE.MODULE:NAME")
    return member(module, name, place)


def import_module(name: str) -> ModuleType:
    """A module by its name.

    Raises:
        ImportError: there is no such module, or importing it fails.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ImportError(
                f"there is no module {error.name}: install its package, or give the path of a file, as FILE.py:NAME"
            ) from None
        raise ImportError(f"{name} {failure(error)}") from error
    except (Exception, SystemExit) as error:
        raise ImportError(f"{name} {failure(error)}") from error


def member(module: ModuleType, name: str, place: str) -> Any:
    """What a module has under a name.

    Raises:
        ValueError: nothing, or the name is empty; the message lists the classes and functions that it defines.
    """
    found: Any = module
    try:
        for word in name.split("."):
            found = getattr(found, word)
        return found
    except AttributeError:
        pass
    defined = [
        key
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__
    ]
    near = difflib.get_close_matches(name, defined, n=1, cutoff=0.4)
    hint = f"it defines {', '.join(defined)}" if defined else "it defines no class or function"
    hint += f"; did you mean {place}:{near[0]}?" if near else ""
    raise ValueError(f"{place} has no {name!r}: {hint}" if name else f"{place} needs a name, as {place}:NAME; {hint}")


def failure(error: BaseException, file: Path | None = None) -> str:
    """What an error was and in which line, in words: of a file, else of the last code that ran."""
    what = f"raises {type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename is not None:
        what = f"raises {type(error).__name__}: {error.msg}"
        return f"{what} (line {error.lineno} of {error.filename}: {(error.text or '').strip()})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    frames = [f for f in frames if f.filename != __file__]
    own = [f for f in frames if file is not None and f.filename == str(file)] or frames
    return f"{what} (line {own[-1].lineno} of {own[-1].filename}: {own[-1].line})" if own else what


def _split(text: str) -> tuple[str, str]:
    """Place and name; a file alone has no name."""
    if text.endswith(".py"):
        return text, ""
    place, _, name = text.rpartition(":")
    return place, name


def _module_of_file(path: Path, place: str) -> ModuleType:
    """The module of a file, imported when first asked for."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{place} {what}: give the path of a Python file, from {Path.cwd()} or in full")
    path = path.resolve()
    stem = re.sub(r"\W", "_", path.stem)
    name = f"{PREFIX}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # as its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        with _last_on_path(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ImportError(f"{place} {failure(error, path)}") from error
    return module


@contextmanager
def _last_on_path(folder: Path) -> Iterator[None]:
    """A block in which modules are also looked for in a folder, after all others, so that it shadows none."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(str(folder))]
