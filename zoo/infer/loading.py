"""Saved runs, brought back."""

from pathlib import Path
from typing import Any

from zoo.infer.run import Fit, Training
from zoo.infer.storage import checkpoint


def load(path: str | Path, *, model: Any = None, guide: Any = None) -> Fit:
    """Bring a saved run back, on the CPU, without its data and without unpickling anything.

    Model and guide are built again from their recorded classes and arguments, if these come from ``zoo`` or
    ``guides``: no other code is ever imported. Anything else, such as a model of your own or one of Pyro's
    autoguides, is passed in and takes the saved state, dtype included, in place. The caller's random streams
    and Pyro's global store are as before afterwards.

    Args:
        path: the folder that :func:`zoo.infer.storage.checkpoint.save` wrote.
        model: a model like the saved one, of the same class and arguments. None builds it.
        guide: the same for the guide.

    Returns:
        the run. Its ``sample`` gives the same draws to the last bit, and another :func:`zoo.fit` of its
        model and guide goes on from where it was (parameters made by ``pyro.param`` alone come back for
        ``sample`` only: every fit starts them anew).

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        NotADirectoryError: ``path`` is a file.
        ValueError: a file is damaged, altered or of a newer format; a class must be passed in; or what was
            passed does not fit the saved tensors. The message names the file and the way out.
    """
    found = checkpoint.read(path, model=model, guide=guide)
    return Fit(found["model"], found["guide"], Training(**found["training"]), found["store"])
