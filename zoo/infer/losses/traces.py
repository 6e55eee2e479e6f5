"""What losses read from a pair of traces."""

from typing import Any

from pyro.util import warn_if_nan


def reported(loss: float) -> float:
    warn_if_nan(loss, "loss")
    return loss


def latent_names(model_trace: Any) -> list[str]:
    """The latent sites of a trace without those that draw subsamples."""
    return [name for name, site in model_trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]]


def check_drawn(name: str, guide_trace: Any) -> None:
    if name not in guide_trace.nodes:
        raise ValueError(
            f"the guide has no site '{name}': it would be drawn from the prior without a word. Add it to the guide, or "
            "sum it out of the model"
        )
