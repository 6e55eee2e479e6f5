"""Loading of saved runs."""

from dataclasses import fields
from pathlib import Path

from zoo.base.callables import PyroCallable
from zoo.infer.run import Fit, Training
from zoo.infer.storage import checkpoint
from zoo.infer.storage.rebuild import Builder


def load(
    path: str | Path,
    *,
    model: PyroCallable | type | Builder | None = None,
    guide: PyroCallable | type | Builder | None = None,
) -> Fit:
    """Load a saved run onto the CPU, without its data and without unpickling anything.

    Model and guide are rebuilt from their recorded classes and arguments if these come from ``zoo`` or ``guides``; no
    other code is ever imported. Anything else is passed in: the class of a model or guide of your own, a
    :class:`zoo.base.Module`, which is built with its recorded arguments; or an instance, such as one of Pyro's
    autoguides, or a callable wrapped in Pyro handlers (``config_enumerate``, ``poutine.scale``), and the saved state is
    written into it in place, dtype included. The caller's random streams and Pyro's global store are left unchanged.

    Runs saved by latent-zoo 0.1.0 can be loaded as well.

    Args:
        path: the folder that ``run.save`` wrote.
        model: a model of the same class, with the same arguments and in the same handlers as the saved one (apart from
            handlers that change no density); or its class, or a ``Builder`` of it, called with the recorded arguments.
            None rebuilds it.
        guide: the same for the guide.

    Returns:
        the run; its ``training`` is None if the pair was saved without one. Its ``sample`` gives the same draws to the
        last bit, and :func:`zoo.fit` of its model and guide continues from the saved parameters (those made by
        ``pyro.param`` outside modules only with ``store=run.store``).

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        NotADirectoryError: ``path`` is a file.
        TypeError: ``model`` or ``guide`` is not callable, or a class in handlers.
        ValueError: a file is damaged, altered or of a newer format; a class must be passed in; or what was passed does
            not match the saved tensors. The message names the file and the way out.
    """
    saved = checkpoint.read(path, model=model, guide=guide)
    training = None
    if saved.training is not None:
        known = {own.name for own in fields(Training)}
        given = {name: value for name, value in saved.training.items() if name in known}
        training = Training(**given | {"columns": tuple(given.get("columns", ()))})
    return Fit(saved.model, saved.guide, training, saved.store)
