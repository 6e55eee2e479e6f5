"""A fit in progress, and copies of its parameters."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from zoo.base.callables import PyroCallable, held_modules
from zoo.infer.convergence import assess
from zoo.infer.planning import Plan
from zoo.infer.run import Fit, Training, current_store

Copy = list[tuple[Tensor, Tensor]]  # tensors, each with a copy


def named(*functions: PyroCallable) -> dict[str, Tensor]:
    """All tensors of modules and parameter store, each once, by names that tell a function's number and the place."""
    held = {
        f"{number}.{prefix}{name}": tensor
        for number, function in enumerate(functions)
        for prefix, module in held_modules(function).items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    held |= {f"store.{name}": p for name, p in pyro.get_param_store().named_parameters()}
    first: dict[int, str] = {}
    for name, tensor in held.items():
        first.setdefault(id(tensor), name)
    return {name: held[name] for name in first.values()}


def copied(*functions: PyroCallable) -> Copy:
    """All tensors of modules and parameter store, each with a copy."""
    return [(t, t.detach().clone()) for t in named(*functions).values()]


def by_name(copy: Copy, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The values of a copy by the names of their tensors, which ``names`` has by their identity."""
    return {names[id(tensor)]: value for tensor, value in copy}


def by_tensor(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Copy:
    """The inverse of :func:`by_name`, on the device of the tensors."""
    return [(tensors[name], value.to(tensors[name].device)) for name, value in values.items()]


@torch.no_grad()
def put_back(copy: Copy) -> None:
    """Restore tensors from their copies."""
    for tensor, value in copy:
        tensor.copy_(value)


@dataclass(eq=False)
class Running:
    """A fit in progress, as passed to its watchers.

    Attributes:
        plan: the decisions before its first step.
        model: the model.
        guide: the guide.
        svi: the SVI that takes the steps.
        unread: losses of the last steps that a GPU may still compute.
        stopped: why it has ended, in words; empty while it is in progress.
        curve: steps and negative bounds per row of the held-out rows.
        best_step: the step with the best held-out bound, or None.
        at_floor: the share of a decoder's variances at their floor, or None.
        collapsed: whether a component of the model has collapsed.
        started: the time at its beginning, by ``time.perf_counter``.
    """

    plan: Plan
    model: PyroCallable
    guide: PyroCallable
    svi: SVI
    unread: list[Tensor] = field(default_factory=list)
    stopped: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None
    at_floor: float | None = None
    collapsed: bool = False
    started: float = field(default_factory=time.perf_counter)
    _read: list[float] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Negative ELBO per row, in nats, of every step so far; on a GPU this waits for the last step."""
        if self.unread:
            self._read += torch.stack(self.unread).double().div(self.plan.size).tolist()
            self.unread.clear()
        return self._read

    def add(self, loss: Tensor | float) -> None:
        """Add the loss of a step, over all rows."""
        if isinstance(loss, Tensor) and loss.is_cuda:
            self.unread.append(loss)
        else:
            self.losses.append(float(loss) / self.plan.size)

    @property
    def step(self) -> int:
        """The number of the last step, from 0."""
        return len(self._read) + len(self.unread) - 1

    @property
    def loss(self) -> float:
        """The loss of the last step, in nats per row."""
        return self.losses[-1]

    def run(self, steps: int | None = None) -> Fit:
        """The fit so far, or its first ``steps`` steps, whose parameters are then those in place."""
        plan, curve = self.plan, [look for look in self.curve if steps is None or look[0] < steps]
        record: dict[str, Any] = {
            "losses": torch.tensor(self.losses[:steps], dtype=torch.float64),
            "loss": type(plan.loss).__name__,
            "optimizer": type(plan.optim).__name__,
            "rows": len(plan.x),
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "dtype": str(plan.x.dtype).removeprefix("torch."),
            "device": str(plan.x.device),
            "seconds": time.perf_counter() - self.started,
            "stopped": self.stopped,
            "schedule": plan.schedule,
            "annealed": None if plan.settling is None else plan.settling.annealed,
            "patience": plan.patience,
            "validation": torch.tensor(curve, dtype=torch.float64) if curve else None,
            "best_step": self.best_step,
            "transform": plan.transform_name,
            "at_floor": self.at_floor,
            "columns": plan.columns,
        }
        converged = not self.collapsed and assess(Training(converged=False, **record)).converged
        return Fit(self.model, self.guide, Training(converged=converged, **record), current_store())
