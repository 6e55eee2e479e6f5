"""Saved runs, brought back."""

from dataclasses import fields
from pathlib import Path

from zoo.base.callables import PyroCallable
from zoo.infer.run import Fit, Training
from zoo.infer.storage import checkpoint


def load(path: str | Path, *, model: PyroCallable | None = None, guide: PyroCallable | None = None) -> Fit:
    """Bring a saved run back, on the CPU, without its data and without unpickling anything.

    Model and guide are built again from their recorded classes and arguments, if these come from ``zoo`` or
    ``guides``: no other code is ever imported. Anything else, such as a model of your own, one of Pyro's autoguides, or
    a callable inside Pyro's handlers (``config_enumerate``, ``poutine.scale``), is passed in and takes the saved state,
    dtype included, in place. The caller's random streams and Pyro's global store are as before afterwards.

    Runs saved by latent-zoo 0.1.0 load as well.

    Args:
        path: the folder that ``run.save`` wrote.
        model: a model like the saved one, of the same class and arguments, inside the same handlers (those that change
            no density aside). None builds it.
        guide: the same for the guide.

    Returns:
        the run; its ``training`` is None where the pair was saved without one. Its ``sample`` gives the same draws to
        the last bit, and another :func:`zoo.fit` of its model and guide goes on from where it was (parameters made by
        ``pyro.param`` alone come back for ``sample`` only: every fit starts them anew).

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        NotADirectoryError: ``path`` is a file.
        TypeError: ``model`` or ``guide`` is a class, or not callable.
        ValueError: a file is damaged, altered or of a newer format; a class must be passed in; or what was
            passed does not fit the saved tensors. The message names the file and the way out.
    """
    saved = checkpoint.read(path, model=model, guide=guide)
    training = None
    if saved.training is not None:
        known = {own.name for own in fields(Training)}
        training = Training(**{name: value for name, value in saved.training.items() if name in known})
    return Fit(saved.model, saved.guide, training, saved.store)
