"""One torch optimizer for all parameters, for ``pyro.infer.SVI``."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor


def ordered(params: Iterable[Tensor]) -> list[Tensor]:
    """Parameters in the order of their names, so that a run does not depend on their addresses in memory."""
    store = pyro.get_param_store()
    return sorted(params, key=lambda p: str(store.param_name(p)))


class Fused(PyroOptim):
    """One torch optimizer for all parameters, behind Pyro's optimizer interface.

    Pyro builds one optimizer per parameter, which takes several times as long as a fused step and cannot clip the norm
    of the whole gradient.

    Args:
        constructor: class of a torch optimizer.
        optim_args: its arguments; ``{"fused": True}`` is added where the class takes it.
        schedule: maps the number of the step (from 0) to a factor on the learning rate.
        clip_norm: the largest norm of the whole gradient; larger ones are scaled down to it.

    Example:
        >>> from zoo.base.schedules import cosine
        >>> optim = Fused(torch.optim.Adam, {"lr": 0.03}, schedule=cosine(2000), clip_norm=100.0)
    """

    def __init__(
        self,
        constructor: type[torch.optim.Optimizer] = torch.optim.Adam,
        optim_args: dict[str, Any] | None = None,
        *,
        schedule: Callable[[int], float] | None = None,
        clip_norm: float | None = None,
    ) -> None:
        arguments = {"lr": 0.01} if optim_args is None else dict(optim_args)
        if constructor in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
            arguments.setdefault("fused", True)
        super().__init__(constructor, arguments)
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {clip_norm!r}")
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._known: set[Tensor] = set()
        self._names: list[str] = []
        self._waiting: dict[str, Any] = {}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """One step for all ``params``; new ones are added."""
        present = set(params)
        new = ordered(p for p in present if p not in self._known)
        if new:
            self._join(new)
        assert self.optimizer is not None
        for p in self._known - present:
            p.grad = None  # not part of this step: leave it unchanged
        self.adjust()
        self.update()
        for p in present:
            p.grad = None  # SVI would write zeros and add to them: two more passes over all parameters

    def adjust(self) -> None:
        """Set the learning rate of the next step, and count it: the part of a step that a CUDA graph cannot hold."""
        if self.schedule is not None and self.optimizer is not None:
            factor = self.schedule(self.steps)
            for group in self.optimizer.param_groups:
                rate = group["initial_lr"] * factor
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        self.steps += 1

    def update(self) -> None:
        """Change parameters that had a step before by their gradients: the part of a step that a CUDA graph holds."""
        assert self.optimizer is not None
        if self.clip_norm is not None:
            _clip([p for p in self.optimizer.param_groups[0]["params"] if p.grad is not None], self.clip_norm)
        self.optimizer.step()

    @property
    def capturable(self) -> bool:
        """Whether :meth:`update` can be part of a CUDA graph: Adam on a GPU, whose count of steps lies there too."""
        return bool(self.pt_optim_args.get("capturable"))

    def _join(self, new: list[Tensor]) -> None:
        store = pyro.get_param_store()
        if waiting := self._waiting:  # continue in the order in which the parameters were first added
            order = waiting["names"]
            new.sort(key=lambda p: order.index(store.param_name(p)) if store.param_name(p) in order else len(order))
        self._known.update(new)
        self._names += [str(store.param_name(p)) for p in new]
        if self.optimizer is None:
            rate = self.pt_optim_args.get("lr")
            if new[0].is_cuda and self.pt_optim_constructor in (torch.optim.Adam, torch.optim.AdamW):
                self.pt_optim_args["capturable"] = (
                    True  # the rate is a tensor, which a CUDA graph reads at every launch
                )
            arguments = dict(self.pt_optim_args)
            if self.capturable and rate is not None:
                arguments["lr"] = torch.tensor(float(rate), device=new[0].device)
            self.optimizer = self.pt_optim_constructor(new, **arguments)
            for group in self.optimizer.param_groups:
                group.setdefault("initial_lr", float(group["lr"]))
        else:
            self.optimizer.param_groups[0]["params"].extend(new)
        if waiting:
            self.optimizer.load_state_dict(waiting["optimizer"])
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"] = group["lr"].to(new[0].device)
            self.steps, self._waiting = waiting["steps"], {}

    def get_state(self) -> dict[str, Any]:
        """The optimizer's state, the number of steps taken, and the parameters' names in their order."""
        if self._waiting:
            return self._waiting
        state = self.optimizer.state_dict() if self.optimizer else None
        return {"optimizer": state, "steps": self.steps, "names": self._names}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state returned by ``get_state``, at the next step."""
        self.optimizer, self._known, self._names = None, set(), []
        self._waiting = state_dict if state_dict["optimizer"] is not None else {}

    def join(self) -> None:
        """Give the parameters of a state that was set theirs now, not at the next step, which a CUDA graph may hold."""
        present = dict(pyro.get_param_store().named_parameters())
        if self._waiting:
            self._join([present[name] for name in self._waiting["names"]])


def _clip(params: list[Tensor], most: float) -> None:
    """Scale the whole gradient down to a norm of ``most`` if it is longer, as ``torch.nn.utils.clip_grad_norm_`` does.

    A shorter one stays as it is, without that function's multiplication by 1. On a GPU it is multiplied: to read the
    norm would take longer.
    """
    if not params:
        return
    norms = [torch.linalg.vector_norm(p.grad) for p in params]  # half the time of torch.nn.utils.get_total_norm
    norm = torch.linalg.vector_norm(torch.stack([own.to(norms[0].device) for own in norms]))
    if norm.is_cuda or not norm <= most:
        torch.nn.utils.clip_grads_with_norm_(params, most, norm, foreach=True)
