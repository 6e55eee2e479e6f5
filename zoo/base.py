"""What models and guides share: a module with a root name of its own, the ``rows`` plate, the latent sites."""

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import Transform

_numbers = itertools.count()


class _Recorded(type(PyroModule)):  # type: ignore[misc]
    """Records how an instance was built, so that a saved run can build it again."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        build: Any = type(module).__init__
        bound = inspect.signature(build).bind(module, *args, **kwargs)
        bound.apply_defaults()
        given = {key: _describe(key, value) for key, value in list(bound.arguments.items())[1:]}
        module.__dict__["settings"] = given | module.__dict__.get("_resolved", {})
        if hasattr(module, "initialize"):
            module.__dict__["_drawn"] = {k: p.detach().clone() for k, p in module.named_parameters()}
        return module


def _describe(name: str, value: Any) -> Any:
    """A constructor's argument without its data: tensors by shape, modules by class."""
    if name == "x" or isinstance(value, Tensor):
        return {"tensor": list(torch.as_tensor(getattr(value, "x", value)).shape)}
    if isinstance(value, nn.Module):
        return {"module": f"{type(value).__module__}:{type(value).__qualname__}"}
    return list(value) if isinstance(value, tuple) else value


class Module(PyroModule, metaclass=_Recorded):
    """A ``PyroModule`` whose parameters belong to this instance alone.

    Pyro's parameter store knows a parameter by its name, and two unnamed modules (or two instances of one
    class) that both own ``scale`` would silently share it. Every ``Module`` therefore takes a root name that no
    other instance has; copies and unpickled ones take a new one. A parameter with ``requires_grad=False`` stays
    out of the store, so that no optimizer moves it.

    Attributes:
        settings: the constructor's arguments (tensors by shape, modules by class), JSON-able for our classes.
    """

    settings: dict[str, Any]

    def __init__(self) -> None:
        super().__init__(_root(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pyro_set_supermodule(_root(self), self._pyro_context)

    def __getattr__(self, name: str) -> Any:
        members = self.__dict__
        if "_pyro_context" in members and members["_pyro_context"].active:
            # Pyro would turn requires_grad on again for a frozen parameter: hand it out past the store.
            frozen = members["_parameters"].get(f"{name}_unconstrained", members["_parameters"].get(name))
            if frozen is not None and not frozen.requires_grad and not name.endswith("_unconstrained"):
                known = members["_pyro_params"].get(name)
                return frozen if known is None else torch.distributions.transform_to(known[0])(frozen)
            child = members["_modules"].get(name)
            if child is not None and not isinstance(child, PyroModule):
                root = self._pyro_get_fullname(name)
                for key, parameter in child.named_parameters():
                    if parameter.requires_grad:
                        pyro.param(param_with_module_name(root, key), parameter)
                return child
        return super().__getattr__(name)

    @property
    def fresh(self) -> bool:
        """Whether the parameters are still those that the constructor drew (False where it draws none)."""
        drawn = self.__dict__.get("_drawn")
        if drawn is None:
            return False
        now = dict(self.named_parameters())
        return now.keys() == drawn.keys() and all(
            p.requires_grad and p.shape == drawn[k].shape and torch.equal(p.detach(), drawn[k].to(p))
            for k, p in now.items()
        )


def _root(module: Module) -> str:
    return f"{type(module).__name__}_{next(_numbers)}"


def like(x: Any, module: nn.Module) -> Tensor:
    """``x`` as a tensor of the module's dtype and device (as it is where the module has no parameters yet)."""
    x = torch.as_tensor(x)
    parameter = next(module.parameters(), None)
    if parameter is None:
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.to(parameter)


@contextmanager
def rows(x: Tensor | None, index: Tensor | None = None, size: int | None = None) -> Iterator[Tensor]:
    """The plate ``rows`` (dim -1) over independent observations; yields the row numbers.

    Args:
        x: the rows at hand (b, d), or None to generate ``size`` rows.
        index: the row numbers (b,) of a minibatch; then log densities are scaled by size / b.
        size: the full number of rows.

    Raises:
        ValueError: neither ``x`` nor ``size`` is given, or ``index`` without ``size``.
    """
    if size is None:
        if x is None:
            raise ValueError("x is None: pass size, the number of rows to generate")
        if index is not None:
            raise ValueError("index is given without size: pass size, the full number of rows")
        size = x.shape[-2]
    with pyro.plate("rows", size, subsample=index, dim=-1) as numbers:
        yield numbers


def spread(function: Any, draws: int) -> Callable[..., Any]:
    """A model or guide inside a plate of draws at dim -2, to the left of the rows."""

    def drawn(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate("draws", draws, dim=-2):
            return function(*args, **kwargs)

    return drawn


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """A random stream of one's own: torch's, numpy's and Python's generators are as before afterwards.

    ``None`` leaves the running stream where it is, and is for calls that nest inside another ``seeded``.
    """
    if seed is None:
        yield
        return
    if check_whole(seed, "seed", 0) >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}")
    before = pyro.util.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        pyro.set_rng_seed(seed)
        yield
    finally:
        pyro.util.set_rng_state(before)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@dataclass(frozen=True)
class Latent:
    """A latent site of a model.

    Attributes:
        name: the site's name.
        shape: the event shape of one draw (for one row, where the site is local).
        support: the constraint its values obey.
        local: True for a site inside the plate ``rows``, False for one that all rows share.
        cardinality: the number of values of a discrete site, None for a continuous one.
    """

    name: str
    shape: torch.Size
    support: constraints.Constraint
    local: bool
    cardinality: int | None = None

    @property
    def transform(self) -> Transform | None:
        """From real vectors of ``shape`` to the support; None where the support is the real line itself."""
        base = self.support
        while isinstance(base, constraints.independent):
            base = base.base_constraint
        if isinstance(base, type(constraints.real)):  # copies and unpickled constraints are other objects
            return None
        return torch.distributions.biject_to(self.support)

    @property
    def width(self) -> int:
        """The number of real coordinates of one draw (of a simplex of K values: K - 1)."""
        transform = self.transform
        return self.shape.numel() if transform is None else torch.Size(transform.inverse_shape(self.shape)).numel()

    @property
    def attribute(self) -> str:
        """The name, fit to be an attribute of a module."""
        return self.name.replace(".", "_")


def latents(model: Any, x: Tensor | None = None) -> tuple[Latent, ...]:
    """The latent sites of a Pyro model, in the order of its story, found by running it once on one row.

    Args:
        model: any Pyro callable with the signature ``(x=None, index=None, size=None)``.
        x: data; one row is used. None lets the model generate that row.

    Raises:
        ValueError: a latent site stands in a plate other than ``rows``.
    """
    arguments = {"size": 1} if x is None else {"x": like(x[:1], model) if isinstance(model, nn.Module) else x[:1]}
    with pyro.get_param_store().scope(), seeded(0), torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(**arguments)
    found = []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name == "x":
            continue
        if type(site["fn"]).__name__ == "_Subsample":
            continue
        plates = [frame.name for frame in site["cond_indep_stack"]]
        if strange := [plate for plate in plates if plate != "rows"]:
            raise ValueError(
                f"latent site '{name}' stands in plate '{strange[0]}', and the guides here know only the plate "
                "'rows' (zoo.base.rows): make it an event dimension with .to_event, or use one of Pyro's autoguides"
            )
        function = site["fn"]
        discrete = function.support.is_discrete
        if discrete and not function.has_enumerate_support:
            raise ValueError(
                f"latent site '{name}' ({type(function).__name__}) is discrete without finite support: no guide here "
                "can serve it; sum or integrate it out of the model"
            )
        cardinality = len(function.enumerate_support(expand=False)) if discrete else None
        found.append(Latent(name, function.event_shape, function.support, "rows" in plates, cardinality))
    return tuple(found)


@runtime_checkable
class Conjugate(Protocol):
    """A model whose posterior and marginal likelihood have closed forms.

    One with the class attribute ``missing = True`` accepts rows with missing entries (NaN) throughout, ``forward``
    included; see :mod:`zoo.missing`.
    """

    def posterior(self, x: Tensor) -> Distribution:
        """p(z | x), a distribution with batch shape (n,): one per row."""
        ...

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), shape (n,)."""
        ...

    def em_step(self, x: Any) -> Tensor:
        """One step of EM, in place. Returns the total log-likelihood of the parameters it started from."""
        ...


def incomplete(x: Tensor) -> bool:
    """Whether rows have missing entries (NaN), at the price of a sum where they have none."""
    if torch.jit.is_tracing():  # the answer becomes part of what is compiled, as it must
        with pyro.util.ignore_jit_warnings():
            return bool(x.isnan().any())
    return bool(x.sum().isnan()) and bool(x.isnan().any())


def check_rows(x: Any, model: Any = None, *, least: int = 1, name: str = "x") -> Tensor:
    """``x`` as a finite tensor (n, d) of the model's dtype and device.

    NaN stands for an entry that is missing at random, and passes where the model says that it knows what to do with it:
    by the class attribute ``missing = True``. ``model.check`` refuses columns in which too little is observed.

    Raises:
        TypeError: ``x`` holds no numbers.
        ValueError: not two-dimensional, empty, fewer rows than ``least``, another width than the model's, or an
            entry that is infinite or, for a model without support of missing entries, NaN; the message names the row
            and the column, both counted from 0.
    """
    if hasattr(x, "x") and isinstance(getattr(x, "x", None), Tensor):
        x = x.x  # a Dataset
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} holds something that is no number ({error}): pass a tensor (n, d)") from None
    if x.is_complex():
        raise TypeError(f"{name} is complex: pass real numbers")
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: pass one row per observation, (n, d)")
    n, d = x.shape
    if n == 0 or d == 0:
        raise ValueError(f"{name} is empty, {n} rows x {d} columns: nothing to fit")
    if n < least:
        raise ValueError(f"{name} has {n} row{'s' * (n != 1)}: at least {least} are needed")
    width = getattr(model, "data_dim", None)
    if width is not None and d != width:
        raise ValueError(f"{name} has {d} columns, the model {type(model).__name__} was built for data_dim={width}")
    x = like(x, model) if isinstance(model, nn.Module) else like(x, nn.Module())
    if not torch.isfinite(x.sum()):  # one pass; look closer only where something is wrong
        allowed = getattr(model, "missing", False)
        wrong = (x.isinf() if allowed else ~torch.isfinite(x)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ValueError(
                f"{name} holds {x[row, column].item()} in row {row}, column {column}{more}: "
                "drop or fill these rows first"
            )
    return x


def check_whole(value: int, name: str, least: int = 1) -> int:
    """``value`` as a whole number of at least ``least``; the error names the argument."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if isinstance(value, bool) or whole < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return whole
