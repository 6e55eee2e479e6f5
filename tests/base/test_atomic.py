"""zoo.base.atomic: nothing half-written is ever seen, and nothing is left of what failed."""

import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import zoo
from zoo import plots
from zoo.base.atomic import new_file, new_folder, refuse_taken


def fill(path, suffix):
    """Write a file, or a folder as Zarr does."""
    if suffix == ".zarr":
        path.mkdir()
        (path / "chunk").write_text("whole")
    else:
        path.write_text("whole")


@pytest.mark.parametrize("suffix", [".csv", ".zarr"])
def test_a_file_is_whole_or_not_there(suffix, tmp_path):
    path = tmp_path / "deep" / "down" / f"table{suffix}"
    with pytest.raises(KeyboardInterrupt), new_file(path) as partial:  # noqa: PT012
        fill(partial, suffix)
        assert partial.suffix == suffix
        assert not path.exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_file(path) as partial:
        fill(partial, suffix)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_is_replaced_on_request_alone(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="exists: remove it, or choose another name"), new_file(path):
        pass
    with pytest.raises(KeyboardInterrupt), new_file(path, replace=True) as partial:  # noqa: PT012
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with new_file(path, replace=True) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_file_that_came_meanwhile_stays(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(FileExistsError), new_file(path) as partial:  # noqa: PT012
        partial.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with new_file(tmp_path / "link.csv", replace=True) as partial:
        partial.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"


def test_permissions_are_the_usual_ones(tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    with new_file(tmp_path / "table.csv") as partial:
        partial.write_text("a")
    assert (tmp_path / "table.csv").stat().st_mode & 0o777 == 0o666 & ~umask


def test_parents_that_somebody_else_uses_stay(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with pytest.raises(KeyboardInterrupt), new_file(path):  # noqa: PT012
        (tmp_path / "deep" / "theirs.txt").write_text("theirs")
        raise KeyboardInterrupt
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["theirs.txt"]


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_file_where_a_folder_should_be(new, tmp_path):
    (tmp_path / "file").write_text("a")
    place = tmp_path / "file" / "deep" / "table.csv"
    with pytest.raises(NotADirectoryError, match="one of its parent folders is a file"), new(place):
        pass


def test_taken_folders_are_named(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError, match=r"contains other files \(a, b, c, \.\.\.\): choose a folder that is new"):
        refuse_taken(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        refuse_taken(tmp_path / "a")


def test_no_other_module_moves_files_into_place():
    package = Path(zoo.__file__).parent
    ways = ("os.replace(", "os.rename(", ".rename(path", "mkstemp", "NamedTemporaryFile", "mkdtemp", "shutil.move(")
    found = [p for p in package.rglob("*.py") if any(way in p.read_text(encoding="utf-8") for way in ways)]
    assert [p.relative_to(package).as_posix() for p in found] == ["base/atomic.py"]


def test_a_figure_is_whole_or_not_there(tmp_path, monkeypatch):
    place = plots.save(Figure(), tmp_path / "figure.png")
    before = place.read_bytes()

    def fails(self, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", fails)
    for path in (place, tmp_path / "new" / "figure.pdf"):
        with pytest.raises(KeyboardInterrupt):
            plots.save(Figure(), path)
    assert place.read_bytes() == before
    assert list(tmp_path.iterdir()) == [place]
