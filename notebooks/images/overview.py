"""The picture at the top of the README: ``python notebooks/images/overview.py``."""

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import guides
import zoo

figure = Figure(figsize=(10, 3.3), layout="constrained")
FigureCanvasAgg(figure)
left, middle, right = figure.subplots(1, 3)
for ax in (left, middle, right):
    ax.tick_params(labelsize=zoo.plots.TEXT)
    ax.spines[["top", "right"]].set_visible(False)

digits = zoo.data.load("digits", dtype=torch.float64)
two = zoo.PPCA(64, 2).double()
zoo.em(two, digits)
zoo.plots.latent(zoo.Fit(two, guides.Exact(two)), digits, ax=left)
left.set_title("two factors of 1,797 digits", fontsize=9, y=1.12, loc="left")

pupils = zoo.data.load("holzinger", dtype=torch.float64)
factors = zoo.FactorAnalysis(9, 3).double()
zoo.em(factors, pupils)
zoo.plots.loadings(zoo.alignment.bootstrap_loadings(factors, pupils, rotation="varimax", seed=0), ax=middle)
middle.set_title("factor analysis of nine tests, 95% intervals", fontsize=9, y=1.12, loc="left")

torch.manual_seed(0)
vae = zoo.VAE(9, 2).double()
run = zoo.fit(vae, guides.Amortized(vae, pupils.x), pupils, progress=False)
found = zoo.log_evidence_bounds(run, pupils.x, draws=(10, 100, 1000), ais=zoo.posterior.AIS())
zoo.plots.bounds(found, ax=right)
right.set_title("a deep model: bounds on log p(x)", fontsize=9, y=1.12, loc="left")

zoo.plots.save(figure, Path(__file__).with_name("overview.png"), dpi=150)
