"""The likelihoods by name."""

from collections.abc import Callable
from typing import Any

from zoo.likelihoods.bernoulli import Bernoulli
from zoo.likelihoods.gaussian import Gaussian
from zoo.likelihoods.pixels import Logistic256
from zoo.likelihoods.poisson import Poisson
from zoo.likelihoods.student_t import StudentT

LIKELIHOODS: dict[str, Callable[[int, float], Any]] = {  # each module is a zoo.likelihoods.shared.Likelihood
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
    "student_t": StudentT,
    "logistic_256": Logistic256,
}
