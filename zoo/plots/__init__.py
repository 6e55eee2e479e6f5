"""Figures of runs and results: matplotlib axes at column width, in colours that the colour-blind can distinguish.

Every function draws on ``ax``, or on a new figure if it is None, and returns the axes. Figures are created without
pyplot, so none stays in memory after its last reference; ``ax.figure`` is the figure, and :func:`save` writes it.
"""

from zoo.plots.decoded import interpolation, intervention, manifold, traversal
from zoo.plots.latents import ellipses, latent, responsibilities
from zoo.plots.loading_plots import loadings, scree
from zoo.plots.predicted import imputation, reconstruction, samples
from zoo.plots.probing import probe
from zoo.plots.quality import coverage, khat, ranks, row_gaps
from zoo.plots.selection_plots import bounds, marginals, predictive, relevance, selection
from zoo.plots.style import GREY, MARKERS, PALETTE, SIZE, TEXT, save
from zoo.plots.training import gap, loss

__all__ = [
    "GREY",
    "MARKERS",
    "PALETTE",
    "SIZE",
    "TEXT",
    "bounds",
    "coverage",
    "ellipses",
    "gap",
    "imputation",
    "interpolation",
    "intervention",
    "khat",
    "latent",
    "loadings",
    "loss",
    "manifold",
    "marginals",
    "predictive",
    "probe",
    "ranks",
    "reconstruction",
    "relevance",
    "responsibilities",
    "row_gaps",
    "samples",
    "save",
    "scree",
    "selection",
    "traversal",
]
