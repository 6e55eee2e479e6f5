"""Where a benchmark runs: versions and machine; and the largest memory that a cell takes."""

import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch

import zoo

RESET = Path("/proc/self/clear_refs")  # Linux: writing 5 sets the peak of resident memory to what is resident now
STATUS = Path("/proc/self/status")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, as columns."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": version("pyro-ppl"),
        "numpy": version("numpy"),
        "scikit_learn": version("scikit-learn"),
        "latent_zoo": zoo.__version__,
    }


def machine(device: str = "cpu") -> dict[str, str | int]:
    """The processor, its cores, the system, and the accelerator if ``device`` is one, as columns."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()}",
        "device": name,
    }


def processor() -> str:
    """The name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def watch_memory() -> Callable[[], tuple[float, str]]:
    """Start to watch the resident memory of this process; the function returned gives its peak in MiB, and of what.

    On Linux the peak is that of the ``"cell"``: the system's mark is reset here, and what the process held before
    counts as part of it. Elsewhere it is the peak of the whole ``"process"`` up to now.
    """
    reset = False
    with suppress(OSError):
        RESET.write_text("5")
        reset = True
    return lambda: (_high_water_mark(), "cell") if reset else (_process_peak(), "process")


def _high_water_mark() -> float:
    """The peak of resident memory since the mark was reset, in MiB."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _process_peak() -> float:
    """The peak of resident memory of the process, in MiB; NaN where the system does not tell it."""
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
