"""The two files of a run: tensors (safetensors) and settings (JSON), written together and checked together."""

import hashlib
import json
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.infer.storage.record import Settings, from_format_1

FORMAT = 2
PARAMETERS = "parameters.safetensors"
SETTINGS = "settings.json"

_SECTIONS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "guide": dict,
    "training": (dict, type(None)),
    "store": dict,
    "bytes": int,
    "sha256": str,
}
_SECTIONS_1 = {key: kind for key, kind in _SECTIONS.items() if key != "training"} | {"fit": dict, "converged": bool}


def write_files(folder: Path, settings: Settings, tensors: dict[str, Tensor]) -> None:
    """Write both files into an existing folder, with format, versions and checksums."""
    # clones, as safetensors refuses tensors that share memory (a guide may own its model)
    held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(held, folder / PARAMETERS)
    (folder / SETTINGS).write_text(completed(settings | size_and_sum(folder / PARAMETERS)), encoding="utf-8")
    shutil.copymode(folder / SETTINGS, folder / PARAMETERS)  # safetensors makes it readable by the owner only


def completed(settings: Settings) -> str:
    """The text of settings, with format, versions and checksum."""
    whole = {"format": FORMAT, **settings, "versions": versions()}
    whole["checksum"] = checksum(whole)
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


def size_and_sum(file: Path) -> dict[str, Any]:
    """The size of a file and its SHA-256, by which :func:`read_tensors` knows it."""
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def tensor_file(noted: Settings, kind: str, file: Path) -> str:
    """The name of a file of tensors, ``parameters`` or ``state``, in the settings ``file``.

    Raises:
        ValueError: it is not a name that is written there.
    """
    name = noted.get("file", f"{kind}.safetensors")
    if isinstance(name, str) and re.fullmatch(rf"{kind}(-[A-Za-z0-9-]+)?\.safetensors", name):
        return name
    raise ValueError(f"{file} names {name!r} as its file of tensors: restore it, or save the run again")


def read_files(folder: Path) -> tuple[Settings, dict[str, Tensor]]:
    """The settings, with their sections checked, and the tensors (on the CPU), in the current format.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no folder, or a file is missing from it.
        ValueError: a file is damaged or altered, or of a newer format.
    """
    settings = read_settings(folder)
    tensors = read_tensors(folder / tensor_file(settings, "parameters", folder / SETTINGS), settings)
    if settings["format"] == 1:
        settings, tensors = from_format_1(settings, tensors, folder / SETTINGS)
    return settings, tensors


def holds_run(folder: Path) -> bool:
    """Whether a folder contains one of a run's two files."""
    return (folder / SETTINGS).exists() or (folder / PARAMETERS).exists()


def checksum(settings: Settings) -> str:
    """SHA-256 of the settings without their checksum, against accidents rather than forgery."""
    content = {key: value for key, value in settings.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str | None]:
    """The versions of the packages on which a run depends."""
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


def read_settings(folder: Path) -> Settings:
    """The settings of a run, with their sections checked; errors as :func:`read_files`."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}: give the folder that a run was saved to")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give the folder that a run was saved to")
    file = folder / SETTINGS
    _need(file)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{file} is not valid JSON ({error}): restore it, or save the run again") from None
    given = settings.get("format") if isinstance(settings, dict) else None
    if type(given) is not int or given < 1:
        raise ValueError(
            f"{file} has no format number, so it was not written by latent-zoo: restore it, or save the run again"
        )
    if given > FORMAT:
        raise ValueError(f"{file} has format {given}, this latent-zoo reads up to format {FORMAT}: update latent-zoo")
    _check_sections(settings, _SECTIONS_1 if given == 1 else _SECTIONS, file)
    if settings.get("checksum") != checksum(settings):
        raise ValueError(
            f"{file} was altered, its checksum does not match its contents: restore it, or save the run again"
        )
    return settings


def _need(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: {file.parent} does not contain a complete run, give another or save it again"
        )


def _check_sections(settings: Settings, sections: dict[str, Any], file: Path) -> None:
    wrong = [key for key, kind in sections.items() if key not in settings or not isinstance(settings[key], kind)]
    for role in ("model", "guide"):
        path = None if role in wrong else settings[role].get("class")
        if role not in wrong and not (isinstance(path, str) and path.count(":") == 1):
            wrong.append(f"{role}.class")
    if wrong:
        raise ValueError(f"{file} lacks {', '.join(wrong)}, or has it damaged: restore it, or save the run again")


def read_tensors(file: Path, settings: Settings) -> dict[str, Tensor]:
    """The tensors, on the CPU, in their own memory; the settings hold the size and the checksum of the file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged or altered.
    """
    _need(file)
    size, expected = file.stat().st_size, settings["bytes"]
    if size < expected:
        raise ValueError(
            f"{file} is truncated, {size} of {expected} bytes are left: copy it again, or save the run again"
        )
    if size != expected or _sha256(file) != settings["sha256"]:
        raise ValueError(
            f"{file} was altered, its SHA-256 does not match {SETTINGS}: restore it, or save the run again"
        )
    try:
        return {name: value.clone() for name, value in load_file(file, device="cpu").items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file ({error}): restore it, or save the run again") from None
