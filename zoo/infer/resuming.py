"""What a fit in progress consists of, to go on from it to the bit: gathered after a step, and put back."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from torch import Tensor

from zoo.base.callables import PyroCallable, unwrapped
from zoo.base.module import Module
from zoo.base.random import set_streams, streams
from zoo.data.fingerprints import fingerprint
from zoo.infer.line_search import LineSearchSVI
from zoo.infer.optim.fused import Fused
from zoo.infer.planning import Plan
from zoo.infer.running import Running, named
from zoo.infer.storage.files import holds_run, read_settings
from zoo.infer.storage.generations import GoingOn, read_going_on
from zoo.infer.storage.record import arguments, class_path, handler_names, to_json
from zoo.infer.storage.trees import packed
from zoo.infer.watchers import LastGood, Validation, Watcher

COUNTED = {"step", "steps", "max_plate_nesting", "capturable"}  # what a fit itself changes in a loss or an optimizer


@runtime_checkable
class Stateful(Protocol):
    """A part of a fit that changes with its steps, beside the parameters: an optimizer, a loss with a schedule.

    Its state is made of None, numbers, text and tensors, in lists, tuples and dictionaries.
    """

    def get_state(self) -> Any:
        """The state now."""
        ...

    def set_state(self, state: Any) -> None:
        """Go on from a state that ``get_state`` gave, there or in another object built alike."""
        ...


def matching(decided: Plan, model: PyroCallable, guide: PyroCallable, autocast: torch.dtype | None) -> dict[str, Any]:
    """What a fit with a checkpoint must have in common with one that it goes on from, by the names of the arguments."""
    if decided.checkpoint is None:
        return {}

    def rows(x: Tensor | None) -> str | None:
        return None if x is None else f"{tuple(x.shape)} {fingerprint(x, 16)}"

    return {
        "model": _pair_text(model),
        "guide": _pair_text(guide),
        "x": rows(decided.x),
        "weights": rows(decided.weights),
        "validation": rows(decided.validation),
        "steps": decided.steps,
        "batch_size": decided.batch_size,
        "loss": described(decided.loss),
        "optim": described(decided.optim),
        "start": "data" if decided.estimate else "random",
        "initialised": [*decided.start],
        "seed": decided.seed,
        "device": decided.x.device.type,
        "every": decided.every,
        "patience": decided.patience,
        "transform": decided.transform_name,
        "autocast": None if autocast is None else str(autocast),
        "capture": decided.captured,
    }


def described(thing: object) -> str:
    """The class of a loss or an optimizer with its plain attributes, such as ``Fused(optim_args={'lr': 0.01})``."""
    found = {name: _plain(value) for name, value in vars(thing).items() if not name.startswith("_")}
    kept = {name: value for name, value in found.items() if value is not None and name not in COUNTED}
    return f"{type(thing).__name__}({', '.join(f'{name}={value}' for name, value in sorted(kept.items()))})"


def _plain(value: object) -> str | None:
    """Numbers, text, their collections, functions and classes as text; None for anything else."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        own = {key: _plain(one) for key, one in value.items() if key not in COUNTED}
        pairs = [f"{key!r}: {text}" for key, text in own.items() if text is not None]
        return f"{{{', '.join(pairs)}}}" if pairs else None
    if isinstance(value, list | tuple | set | frozenset):
        texts = [_plain(one) for one in value]
        return None if None in texts else f"[{', '.join(sorted(map(str, texts)))}]"
    if isinstance(value, type) or type(value).__name__ == "function":
        return class_path(value)
    return repr(value) if isinstance(value, bool | int | float | str) else None


def _pair_text(function: PyroCallable) -> str:
    """A model or guide in words: its handlers, its class and the arguments of its constructor."""
    inner = unwrapped(function)
    given = arguments(inner) if isinstance(inner, Module) else {}
    text = f"{class_path(inner)}({', '.join(f'{name}={to_json(value)!r}' for name, value in given.items())})"
    return " of ".join([*handler_names(function), text])


def kept(decided: Plan, match: dict[str, Any]) -> GoingOn | None:
    """What the checkpoint of an interrupted or finished fit holds; None where there is none yet.

    Raises:
        ValueError: it was not made by a fit with the same arguments, or its fit has diverged; names what differs.
        RuntimeError: a live process still writes it.
    """
    folder = decided.checkpoint
    if folder is None or not holds_run(folder):
        return None
    found = read_going_on(folder, read_settings(folder))
    if found is None:
        raise ValueError(
            f"checkpoint={str(folder)!r} holds a run, and not the checkpoint of a fit: choose another folder, or "
            "continue from its parameters by run = zoo.load(...) and zoo.fit(run.model, run.guide, x)"
        )
    noted = found.note["match"]
    for name, own in match.items():
        if noted.get(name) != own:
            raise ValueError(
                f"checkpoint={str(folder)!r} holds a fit with {name}={noted.get(name)}, and this one has {name}={own}: "
                "resume it with the same arguments, from a model and guide built in the same way, or choose another "
                "folder"
            )
    if obstacle := found.note.get("obstacle"):
        raise ValueError(f"checkpoint={str(folder)!r} cannot be resumed: {obstacle}. Choose another folder")
    return found


def gathered(fit: Running, watchers: Sequence[Watcher]) -> dict[str, Any]:
    """All that a fit depends on from here on, as a tree of numbers, text and tensors."""
    plan, tensors = fit.plan, named(fit.model, fit.guide)
    names = {id(tensor): name for name, tensor in tensors.items()}
    lasting = _lasting(tensors)
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "losses": torch.tensor(fit.losses, dtype=torch.float64),
        "curve": [list(look) for look in fit.curve],
        "best_step": fit.best_step,
        "collapsed": fit.collapsed,
        "seconds": time.perf_counter() - fit.started,
        "optim": _renamed(plan.optim.get_state(), lasting),
        "parts": [_renamed(part.get_state(), lasting) for part in _parts(fit)],
        "watchers": [_state(watcher, names) for watcher in watchers],
        "streams": streams(),
    }


def put(state: dict[str, Any], fit: Running) -> None:
    """Put a fit where :func:`gathered` left it, but for its watchers.

    Raises:
        ValueError: model or guide have other parameters.
    """
    plan, tensors = fit.plan, named(fit.model, fit.guide)
    _check_alike(state["tensors"], tensors, plan.checkpoint)
    with torch.no_grad():
        for name, value in state["tensors"].items():
            tensors[name].copy_(value)
    fit.losses.extend(state["losses"].tolist())
    fit.curve = [(step, bound) for step, bound in state["curve"]]
    fit.best_step, fit.collapsed = state["best_step"], state["collapsed"]
    fit.started = time.perf_counter() - state["seconds"]
    plan.optim.optim_objs.clear()  # of an optimizer that has been used before
    present = {lasting: name for name, lasting in _lasting(tensors).items()}
    plan.optim.set_state(_renamed(state["optim"], present))
    if isinstance(plan.optim, Fused):
        plan.optim.join()
    for part, own in zip(_parts(fit), state["parts"], strict=True):
        part.set_state(_renamed(own, present))
    if isinstance(fit.svi, LineSearchSVI) and plan.full and plan.transform is None:
        fit.svi.seen(plan.x)


def put_watchers(state: dict[str, Any], fit: Running, watchers: Sequence[Watcher]) -> None:
    """Put the watchers and the random streams where :func:`gathered` left them."""
    tensors = named(fit.model, fit.guide)
    for watcher, own in zip(watchers, state["watchers"], strict=True):
        if isinstance(watcher, LastGood | Validation):
            watcher.resume(own, tensors)
        elif isinstance(watcher, Stateful):
            watcher.set_state(own)
    set_streams(state["streams"])


def going_on_from(match: dict[str, Any], state: dict[str, Any]) -> GoingOn:
    """The state of a fit as it is written; where a part of it cannot be, the reason."""
    tensors: dict[str, Tensor] = {}
    try:
        return GoingOn({"match": match, "tree": packed(state, tensors)}, tensors)
    except TypeError as error:
        return GoingOn({"match": match, "obstacle": str(error)})


def _lasting(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For the names of parameters in Pyro's store, where modules are numbered, names that the next process has too."""
    names = {id(tensor): name for name, tensor in tensors.items()}
    return {name: f"parameter {names[id(p)]}" for name, p in pyro.get_param_store().named_parameters()}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A nested value with other names of parameters."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, dict):
        return {_renamed(key, names): _renamed(own, names) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_renamed(own, names) for own in value)
    return value


def _parts(fit: Running) -> list[Stateful]:
    """The parts beside the optimizer that count steps or keep what they have found."""
    parts = (fit.svi, fit.plan.loss, fit.plan.settling)
    return [part for part in parts if isinstance(part, Stateful)]


def _state(watcher: Watcher, names: dict[int, str]) -> Any:
    if isinstance(watcher, LastGood | Validation):
        return watcher.state(names)
    return watcher.get_state() if isinstance(watcher, Stateful) else None


def _check_alike(noted: dict[str, Tensor], own: dict[str, Tensor], folder: Path | None) -> None:
    kinds = [{name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} for tensors in (noted, own)]
    for name in sorted(kinds[0].keys() | kinds[1].keys()):
        there, here = kinds[0].get(name), kinds[1].get(name)
        if there != here:
            raise ValueError(
                f"checkpoint={str(folder)!r} holds the parameter '{name}' as {there}, and this fit has it as {here}: "
                "resume with the same model and guide, or choose another folder"
            )
