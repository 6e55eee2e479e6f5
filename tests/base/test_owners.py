"""zoo.base.owners: what killed processes leave is found and removed, and nothing of live ones."""

import os
import subprocess
import sys
import time

import pytest

from zoo.base import owners
from zoo.base.atomic import new_file, remove_folder

NAMING = "import sys; from zoo.base.owners import new_name; print(new_name(), flush=True); sys.stdin.read()"


@pytest.fixture
def other():
    """Another process and a name of its own."""
    with subprocess.Popen([sys.executable, "-c", NAMING], stdin=-1, stdout=-1, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def test_what_a_killed_process_leaves_goes_and_what_a_live_one_writes_stays(other, tmp_path):
    process, name = other
    left = [tmp_path / f".zoo-{name}.csv", tmp_path / f".zoo-{name}"]
    left[0].write_text("half")
    left[1].mkdir()
    (left[1] / "part").write_text("half")
    (tmp_path / ".zoo-note").write_text("of somebody else")
    with new_file(tmp_path / "one.csv") as partial:
        partial.write_text("whole")
        assert owners.own(partial.name)
    assert owners.alive(name)
    assert not owners.own(name)
    assert all(path.exists() for path in left)
    process.kill()
    process.wait()
    assert owners.alive(name) is False
    with new_file(tmp_path / "two.csv") as partial:
        partial.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".zoo-note", "one.csv", "two.csv"]


def test_a_number_that_is_used_again_is_another_process():
    host, pid, started, rest = owners.new_name().split("-")
    assert int(pid) == os.getpid()
    assert owners.alive(f"{host}-{pid}-{started}-{rest}")
    if int(started):
        assert owners.alive(f"{host}-{pid}-{int(started) + 1}-{rest}") is False


def test_what_another_machine_left_goes_after_a_week(tmp_path):
    _, pid, started, rest = owners.new_name().split("-")
    path = tmp_path / f".zoo-elsewhere-{pid}-{started}-{rest}"
    path.write_text("half")
    owners.clear(tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - owners.WEEK - 60,) * 2)
    owners.clear(tmp_path)
    assert not path.exists()


def test_a_folder_is_removed_whole(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("a")
    remove_folder(tmp_path / "run")
    remove_folder(tmp_path / "run")  # it is gone
    assert not list(tmp_path.iterdir())
