"""What are models and guides built from: modules with their own parameters, the plate ``rows``, the latent sites."""

from zoo.base.checks import check_rows, check_whole, incomplete
from zoo.base.latent_sites import Latent, latents
from zoo.base.module import Module, like
from zoo.base.plates import rows, spread
from zoo.base.protocols import Conjugate
from zoo.base.random import seeded

__all__ = [
    "Conjugate",
    "Latent",
    "Module",
    "check_rows",
    "check_whole",
    "incomplete",
    "latents",
    "like",
    "rows",
    "seeded",
    "spread",
]
