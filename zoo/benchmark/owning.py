"""A user's own model or guide, by the name that ``zoo fit`` takes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.benchmark.suite import Own
from zoo.registry.finding import named
from zoo.registry.making import guide_maker, model_maker


def own_named(
    model: str | None = None,
    guide: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    guide_settings: Mapping[str, Any] | None = None,
) -> Own:
    """A model or guide, or both, by name, for :meth:`Suite.with_own`.

    Args:
        model: a built-in name, one that a package announces, ``file.py:Name`` or ``package.module:Name``.
        guide: the same.
        settings: arguments of the model's constructor by name.
        guide_settings: those of the guide's.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: as :func:`zoo.registry.finding.find_model`; or neither
            is given, or settings without what they are for.
    """
    for name, given, what in ((model, settings, "model"), (guide, guide_settings, "guide")):
        if name is None and given:
            raise ValueError(f"settings {', '.join(given)} are given without a {what}: name it, or leave them out")
    if model is None and guide is None:
        raise ValueError("neither model nor guide is given: name one of your own")
    titles, cite, protocol = list[str](), list[Any](), dict[str, Any]()
    for name, given, what in ((model, settings, "model"), (guide, guide_settings, "guide")):
        if name is not None:
            made = named(name, what).made
            titles.append(getattr(made, "__name__", str(made)))
            cite.append(made)
            protocol |= {what: _short(name), **_fingerprint(name, what)}
            protocol |= {f"{what}_settings": dict(given)} if given else {}
    return Own(
        ", ".join(titles),
        None if model is None else model_maker(model, settings),
        None if guide is None else guide_maker(guide, guide_settings),
        protocol,
        tuple(cite),
    )


def _short(name: str) -> str:
    """A name without the folders of its file, which differ between machines."""
    file, sign, rest = name.rpartition(":")
    return f"{Path(file).name}{sign}{rest}" if file.endswith(".py") else name


def _fingerprint(name: str, what: str) -> dict[str, str]:
    """Of the file that a name is in, so that rows of before a change are not taken for those after it."""
    file = Path(name.rpartition(":")[0])
    if file.suffix != ".py":
        return {}
    return {f"{what}_file": hashlib.sha256(file.expanduser().read_bytes()).hexdigest()[:12]}
