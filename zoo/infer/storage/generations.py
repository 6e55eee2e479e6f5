"""The files of a checkpoint: every write is a generation of its own, and the next takes its place by one renaming."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from zoo.base import atomic, owners
from zoo.infer.storage.files import PARAMETERS, SETTINGS, completed, read_tensors, size_and_sum, tensor_file
from zoo.infer.storage.record import Settings
from zoo.infer.storage.trees import unpacked

STATE = "state.safetensors"


@dataclass(frozen=True, eq=False)
class GoingOn:
    """What a fit needs to go on from a checkpoint.

    Attributes:
        note: ``match``, what both fits must have in common; ``tree``, the state, whose tensors are aside; or in its
            place ``finished`` or an ``obstacle``.
        tensors: those of the tree.
    """

    note: Settings
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the fit had ended."""
        return bool(self.note.get("finished"))

    @property
    def state(self) -> Any:
        """The state; None where the fit had ended, or had not begun."""
        return unpacked(self.note["tree"], self.tensors) if "tree" in self.note else None


def replace_files(folder: Path, settings: Settings, tensors: dict[str, Tensor], going_on: GoingOn | None) -> None:
    """Write a run and what it goes on from, in place of those that a folder holds.

    The tensors are written to files with new names, and then the settings, which name them, are replaced: until then
    the folder holds the old run, and from then on the new one. What a process that was killed has left is removed.
    """
    before = _named(folder)
    owners.clear(folder)
    _clear(folder, before)
    name = owners.new_name()
    plain = (going_on is None or not going_on.tensors) and PARAMETERS not in before
    file = PARAMETERS if plain else f"parameters-{name}.safetensors"
    with _removed_on_error(folder) as made:
        whole = dict(settings)
        whole |= {"file": file} if file != PARAMETERS else {}
        whole |= _written(folder, file, tensors, made)
        if going_on is not None:
            whole["going_on"] = going_on.note | {"owner": name}
            if going_on.tensors:
                aside = f"state-{name}.safetensors"
                whole["going_on"] |= {"file": aside} | _written(folder, aside, going_on.tensors, made)
        with atomic.new_file(folder / SETTINGS, replace=True) as partial:
            partial.write_text(completed(whole), encoding="utf-8")
            for one in made:
                shutil.copymode(partial, folder / one)  # safetensors makes it readable by the owner only
    for old in before - set(made):
        with suppress(OSError):
            (folder / old).unlink()


def read_going_on(folder: Path, settings: Settings) -> GoingOn | None:
    """What a fit goes on from, by the settings of a checkpoint; None for a run that was saved.

    Raises:
        ValueError: the file of the state is damaged or altered.
        RuntimeError: another process is writing the checkpoint.
    """
    note = settings.get("going_on")
    if note is None:
        return None
    writer = str(note.get("owner", ""))
    if "finished" not in note and owners.alive(writer) and not owners.own(writer):
        raise RuntimeError(
            f"{folder} is the checkpoint of a fit that another process is running ({writer.split('-')[1]}): "
            "wait for it, end it, or choose another folder"
        )
    tensors = read_tensors(folder / tensor_file(note, "state", folder / SETTINGS), note) if "file" in note else {}
    return GoingOn(note, tensors)


def begun_with(folder: Path) -> tuple[str, ...] | None:
    """The parts that the fit of a checkpoint has initialised on the data; None where there is no such fit."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return tuple(settings["going_on"]["match"]["initialised"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong there is said when it is read


def _written(folder: Path, name: str, tensors: dict[str, Tensor], made: list[str]) -> dict[str, Any]:
    """Write tensors to a file; its size and checksum."""
    made.append(name)
    held = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(held, folder / name)
    return size_and_sum(folder / name)


def _named(folder: Path) -> set[str]:
    """The files of tensors that the settings in a folder name."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    found = [settings.get("file", PARAMETERS), (settings.get("going_on") or {}).get("file")]
    return {name for name in found if isinstance(name, str)}


def _clear(folder: Path, named: set[str]) -> None:
    """Remove files of tensors that a process has written, and been killed before the settings named them."""
    for path in folder.glob("*.safetensors"):
        if path.name not in named and (owners.abandoned(path) or owners.own(path.name)):
            owners.remove(path)


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[list[str]]:
    """A list of names of files in a folder, which are removed if the block raises an error."""
    made: list[str] = []
    try:
        yield made
    except BaseException:
        for name in made:
            with suppress(OSError):
                (folder / name).unlink()
        raise
