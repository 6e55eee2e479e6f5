"""Whose temporary files are whose: names that tell the process which writes them, and whether it still runs."""

import os
import platform
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

PREFIX = ".zoo-"
WEEK = 7 * 86400  # seconds after which what another machine left unfinished is taken to be abandoned
OWNER = re.compile(r"(?P<host>[A-Za-z0-9]*)-(?P<pid>\d+)-(?P<started>\d+)-[0-9a-f]{16}")


def new_name() -> str:
    """A name that no other has: the host, the number of this process and its start, and a random part."""
    pid = os.getpid()
    return f"{_host()}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex[:16]}"


def alive(name: str) -> bool | None:
    """Whether the process that made a name by :func:`new_name` runs; None if that cannot be known from here.

    A process is the same only if it began at the same moment: numbers of processes are used again.
    """
    found = OWNER.search(name)
    if found is None or found["host"] != _host() or os.name != "posix":
        return None
    pid, started = int(found["pid"]), int(found["started"])
    now = _started(pid)
    if now is not None:
        return now == started
    if Path("/proc/self/stat").exists():
        return False
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True


def own(name: str) -> bool:
    """Whether this process made a name."""
    found = OWNER.search(name)
    return found is not None and int(found["pid"]) == os.getpid() and alive(name) is True


def abandoned(path: Path) -> bool:
    """Whether the process that was writing a temporary file or folder has ended, as its name or its age tells."""
    if OWNER.search(path.name) is None:
        return False
    runs = alive(path.name)
    if runs is None:
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > WEEK
    return runs is False


def clear(folder: Path) -> None:
    """Remove from a folder the temporary files and folders of processes that were killed; nothing of a live one."""
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name.startswith(PREFIX) and abandoned(path)]:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # it was a folder, or does not exist
        path.unlink()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32]


def _started(pid: int) -> int | None:
    """When a process began, in ticks of the system's clock; None if there is none, or no /proc to look it up in."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie has ended
