"""Nested values to JSON and tensors, and back, without pickling: the states of optimizers and of random streams."""

import math
from typing import Any

from torch import Tensor


def packed(value: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """A nested value as JSON, its tensors aside.

    Args:
        value: None, numbers, text and tensors, in lists, tuples and dictionaries however deep.
        tensors: receives the tensors, numbered.
        name: of the value, for errors.

    Raises:
        TypeError: it holds anything else; names the place.

    >>> held = {}
    >>> packed({"lr": (0.1, None), 3: [math.inf]}, held)
    {'dict': [['lr', {'tuple': [0.1, None]}], [3, [{'number': 'inf'}]]]}
    """
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach()
        return {"tensor": key}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"number": repr(value)}
    if isinstance(value, list):
        return [packed(own, tensors, f"{name}[{i}]") for i, own in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [packed(own, tensors, f"{name}[{i}]") for i, own in enumerate(value)]}
    if isinstance(value, dict):
        pairs = [[key, packed(own, tensors, f"{name}[{key!r}]")] for key, own in value.items()]
        if all(type(key) in (int, str) for key in value):
            return {"dict": pairs}
    raise TypeError(f"{name} is of type {type(value).__name__}, which cannot be saved")


def unpacked(noted: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`packed`.

    >>> unpacked({"dict": [["lr", {"tuple": [0.1, None]}], [3, [{"number": "inf"}]]]}, {})
    {'lr': (0.1, None), 3: [inf]}
    """
    match noted:
        case {"tensor": key}:
            return tensors[key]
        case {"number": text}:
            return float(text)
        case {"tuple": values}:
            return tuple(unpacked(own, tensors) for own in values)
        case {"dict": pairs}:
            return {key: unpacked(own, tensors) for key, own in pairs}
        case list():
            return [unpacked(own, tensors) for own in noted]
    return noted
