"""Files and folders that appear whole or not at all: the one way in which the package writes to disk."""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_file(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A file (or a folder, as Zarr writes one) that appears at ``path`` when the block ends, or not at all.

    Yields a temporary name beside ``path``, with the same suffix, for the block to write to. If the block raises, what
    it wrote is removed, and so are the folders above that were made for it.

    Args:
        path: of the file; folders above it are made.
        replace: whether a file that is there is replaced; otherwise there must be none.

    Raises:
        FileExistsError: there is something at ``path`` (before or after the block), and ``replace`` is False.
        NotADirectoryError: a file stands where a folder above ``path`` should.

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
            raise FileExistsError(f"'{path}' exists: remove it, or take another name")

    refuse()
    with _beside(path) as (partial, target):
        yield partial
        refuse()
        os.replace(partial, target)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears at ``path`` when the block ends, or not at all.

    Yields a temporary folder beside ``path`` for the block to fill. If the block raises, it is removed, and so are the
    folders above that were made for it.

    Args:
        path: a folder that does not exist yet, or is empty; folders above it are made.

    Raises:
        FileExistsError: ``path`` holds files (before or after the block), or is a file.
        NotADirectoryError: a file stands where a folder above ``path`` should.

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


@contextmanager
def replaced_folder(path: str | Path, names: Collection[str]) -> Iterator[Path]:
    """A folder that takes the place of the one at ``path`` when the block ends; until then the old one stays.

    Args:
        path: an existing folder.
        names: of the files in it that the new folder replaces; all other files in it are kept.
    """
    with _beside(path) as (folder, target):
        folder.mkdir()
        yield folder
        old = target.parent / f".zoo-{uuid.uuid4().hex}"
        kept = [file.name for file in target.iterdir() if file.name not in names]
        try:
            for name in kept:
                os.replace(target / name, folder / name)
            os.replace(target, old)
            os.replace(folder, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            for name in kept:
                if (folder / name).exists():
                    os.replace(folder / name, target / name)
            raise
        shutil.rmtree(old, ignore_errors=True)


def refuse_taken(path: str | Path) -> None:
    """Refuse a place for a folder that is neither new nor empty.

    Raises:
        FileExistsError: it holds files, or is a file.
    """
    target = Path(path).resolve()
    if target.is_dir():
        held = sorted(file.name for file in target.iterdir())
        if held:
            named = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
            raise FileExistsError(f"{path} holds other files ({named}): choose a folder that is new or empty")
    elif target.exists():
        raise FileExistsError(f"{path} is a file: choose a folder that is new or empty")


@contextmanager
def _beside(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """A temporary name in the folder of ``path``, and the resolved path itself; leaves nothing if the block raises."""
    target = Path(path).resolve()  # what a link points to is written, and the link stays
    made = [above for above in target.parents if not above.exists()]  # the nearest first
    partial = target.parent / f".zoo-{uuid.uuid4().hex}{target.suffix}"
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                f"cannot make {path}: a file stands where a folder above it should ({error})"
            ) from None
        yield partial, target
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # it was a folder, or there was nothing
            partial.unlink()
        for above in made:
            with suppress(OSError):  # another process put something there
                above.rmdir()
        raise
