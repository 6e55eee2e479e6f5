"""The list of all checks in their order."""

from zoo.diagnostics.checks.calibration import Calibrated
from zoo.diagnostics.checks.check import Check
from zoo.diagnostics.checks.collapse import Collapse
from zoo.diagnostics.checks.convergence import Convergence
from zoo.diagnostics.checks.floor import Floor
from zoo.diagnostics.checks.gap import Gap
from zoo.diagnostics.checks.importance_weights import ImportanceWeights
from zoo.diagnostics.checks.posterior import Posterior
from zoo.diagnostics.checks.uniquenesses import Uniquenesses

CHECKS: tuple[Check, ...] = (
    Convergence(),
    Gap(),
    ImportanceWeights(),
    Posterior(),
    Calibrated(),
    Collapse(),
    Floor(),
    Uniquenesses(),
)
