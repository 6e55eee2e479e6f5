"""Atomic writing of files and folders, used for everything that the package writes to disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.base import owners


@contextmanager
def new_file(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A file (or a folder, such as a Zarr store) that appears at ``path`` when the block ends, or not at all.

    Yields a temporary path in the same folder, with the same suffix, to write to. If the block raises an error, the
    temporary file is removed, together with the parent folders created for it.

    Args:
        path: the path of the file; its parent folders are created.
        replace: whether to replace an existing file, which is otherwise an error.

    Raises:
        FileExistsError: ``path`` exists (before or after the block), and ``replace`` is False.
        NotADirectoryError: a parent of ``path`` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with new_file(Path(home) / "tables" / "first.csv") as partial:
        ...         _ = partial.write_text("a,b")
        ...     [p.name for p in Path(home).rglob("*.csv")]
        ['first.csv']
    """

    def refuse() -> None:
        if not replace and Path(path).exists():
            raise FileExistsError(f"'{path}' exists: remove it, or choose another name")

    refuse()
    with _beside(path) as (partial, target):
        yield partial
        refuse()
        os.replace(partial, target)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears at ``path`` when the block ends, or not at all.

    Yields a temporary folder with the same parent to write to. If the block raises an error, it is removed, together
    with the parent folders created for it.

    Args:
        path: a new or empty folder; its parent folders are created.

    Raises:
        FileExistsError: ``path`` contains files (before or after the block), or is a file.
        NotADirectoryError: a parent of ``path`` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with new_folder(Path(home) / "runs" / "first") as folder:
        ...         _ = (folder / "note.txt").write_text("hello")
        ...     [p.name for p in Path(home).rglob("*.txt")]
        ['note.txt']
    """
    refuse_taken(path)
    with _beside(path) as (folder, target):
        folder.mkdir()
        yield folder
        refuse_taken(path)
        os.replace(folder, target)


def refuse_taken(path: str | Path) -> None:
    """Refuse a path for a folder that is neither new nor empty.

    Raises:
        FileExistsError: it contains files, or is a file.
    """
    target = Path(path).resolve()
    if target.is_dir():
        held = sorted(file.name for file in target.iterdir())
        if held:
            named = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
            raise FileExistsError(f"{path} contains other files ({named}): choose a folder that is new or empty")
    elif target.exists():
        raise FileExistsError(f"{path} is a file: choose a folder that is new or empty")


def remove_folder(path: str | Path) -> None:
    """Remove a folder, if there is one: it is whole before and gone afterwards."""
    target = Path(path).resolve()
    leaving = target.parent / f"{owners.PREFIX}{owners.new_name()}"
    with suppress(FileNotFoundError):
        os.replace(target, leaving)
        owners.remove(leaving)


@contextmanager
def _beside(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """A temporary path in the folder of ``path``, and the resolved path itself; cleans up if the block raises.

    What processes that were killed have left in that folder is removed first.
    """
    target = Path(path).resolve()  # the target of a link is written, and the link kept
    made = [above for above in target.parents if not above.exists()]  # the nearest first
    partial = target.parent / f"{owners.PREFIX}{owners.new_name()}{target.suffix}"
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(f"cannot create {path}: one of its parent folders is a file ({error})") from None
        owners.clear(target.parent)
        yield partial, target
    except BaseException:
        owners.remove(partial)
        for above in made:
            with suppress(OSError):  # another process wrote to it
                above.rmdir()
        raise
