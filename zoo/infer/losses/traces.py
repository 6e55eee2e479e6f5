"""What losses read from a pair of traces."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan


def reported(loss: float) -> float:
    """A loss, with Pyro's warning where it is NaN."""
    warn_if_nan(loss, "loss")
    return loss


def latent_names(trace: Any) -> list[str]:
    """The latent sites of a trace without those that draw subsamples."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    ]


def check_drawn(name: str, guide_trace: Any) -> None:
    """Raise where the guide leaves out a latent site of the model, which Pyro would draw from the prior.

    Raises:
        ValueError: names the site.
    """
    if name not in guide_trace.nodes:
        raise ValueError(
            f"the guide has no site '{name}': it would be drawn from the prior without a word. Add it to the guide, or "
            "sum it out of the model (by TraceEnum_ELBO where it is discrete)"
        )


def plates_of(site: dict[str, Any]) -> list[str]:
    """The names of the plates of a site, without that of the draws."""
    return [frame.name for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != "draws"]


def rows_plate(model_trace: Any) -> str:
    """The name of the plate of the rows: that at dim -1 in which the data stand."""
    for site in model_trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"]:
            for frame in site["cond_indep_stack"]:
                if frame.vectorized and frame.dim == -1:
                    return str(frame.name)
    return "rows"


@contextmanager
def one_plate(loss: str) -> Iterator[None]:
    """A block in which a loss runs model and guide inside a plate of draws, next to that of the rows.

    Raises:
        ValueError: model or guide has a plate of its own in that place; says so in place of Pyro's dimensions.
    """
    try:
        yield
    except ValueError as error:
        if "collide at dim" not in str(error):
            raise
        pair = str(error).splitlines()[0].strip()
        raise ValueError(
            f"{loss} takes its draws in a plate next to the rows, at dim -2, and a plate of the model or guide stands "
            f"there already ({pair}): use Trace_ELBO(max_plate_nesting=2), or make it an event dimension (.to_event)"
        ) from error
