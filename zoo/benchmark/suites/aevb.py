"""The experiments of Kingma and Welling (2014): auto-encoding variational Bayes against wake-sleep.

About 1.5 minutes at ``quick``, 25 minutes at ``cpu`` with two processes, a few hours on one GPU at ``full``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

import guides
from zoo import data
from zoo.base.module import Module
from zoo.base.schedules import cosine
from zoo.benchmark.curves import Curve, bound, log_spaced
from zoo.benchmark.suite import Case, Cell, Data, GuideMaker, Measure, Method, ModelMaker, Own, Point, Suite
from zoo.benchmark.suites.aevb_page import TEXT, claims, draw
from zoo.infer.fitting import fit
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.wake_sleep import WakeSleep
from zoo.infer.optim.fused import Fused
from zoo.infer.run import Fit
from zoo.models.vae import VAE
from zoo.networks.perceptron import mlp
from zoo.posterior.annealing import AIS
from zoo.posterior.evidence import log_evidence_bounds

BATCH = 100
SHOWN = 2_000  # rows on which the bound is evaluated along the way, of either part
FLOOR = 0.01  # of a decoder's variances, as a fraction of the pixel's variance in the data


@dataclass(frozen=True)
class Effort:
    """What a budget spends.

    Attributes:
        mnist, frey, small: training samples, for the curves on MNIST, on Frey's faces, and for the marginal likelihood.
        pixels: numbers of latent variables N_z on MNIST; likewise ``faces`` on Frey's.
        few: training rows of the cases for the marginal likelihood.
        points: of a curve.
        draws: K of the importance-weighted bound.
        rows: of either part on which log p(x) is evaluated.
        chains, temperatures: of annealed importance sampling.
    """

    mnist: int
    frey: int
    small: int
    pixels: tuple[int, ...] = (3, 5, 10, 20, 200)
    faces: tuple[int, ...] = (2, 5, 10, 20)
    few: tuple[int, ...] = (1_000, 50_000)
    points: int = 16
    draws: int = 500
    rows: int = 200
    chains: int = 8
    temperatures: int = 50


EFFORTS = {
    "quick": Effort(40_000, 50_000, 30_000, (3, 20), (2, 10), (1_000,), 6, 50, 100, 2, 10),
    "cpu": Effort(1_500_000, 1_500_000, 1_000_000),
    "full": Effort(
        100_000_000, 10_000_000, 50_000_000, points=30, draws=5_000, rows=1_000, chains=16, temperatures=500
    ),
}

MEASURES = (
    Measure("held_out", "nats per row", "higher", 2, "Evidence lower bound of held-out rows, one draw per row."),
    Measure("train", "nats per row", "higher", 2, "The same of training rows."),
    Measure("evidence", "nats per row", "higher", 2, "log p(x) of held-out rows, the tighter of IWAE and AIS."),
    Measure("evidence_train", "nats per row", "higher", 2, "The same of training rows."),
    Measure("iwae", "nats per row", "higher", 2, "log p(x) of held-out rows by the encoder's weights alone, IWAE."),
)


class Decoder(nn.Sequential):
    """One layer of tanh units from which means and variances are read off."""

    def __init__(self, latent_dim: int, hidden: int, data_dim: int) -> None:
        super().__init__(*mlp(latent_dim, (hidden,), 2 * data_dim, "tanh"))
        self.outputs = 2 * data_dim


def paper_model(protocol: Mapping[str, Any], data_dim: int) -> VAE:
    """The decoder of a case: Bernoulli pixels, or Gaussian ones whose mean and variance share a hidden layer."""
    k, hidden = protocol["latent_dim"], protocol["hidden"]
    if protocol["likelihood"] == "bernoulli":
        return VAE(data_dim, k, (hidden,), likelihood="bernoulli", activation="tanh")
    return VAE(data_dim, k, floor=FLOOR, decoder=Decoder(k, hidden, data_dim))


@dataclass(frozen=True)
class Training:
    """Trains a pair along a curve.

    Attributes:
        loss: makes the objective.
        effort: of the measures along the way.
        paper: whether to start and step as the paper does, by Adagrad from weights with variance 0.01.
        model: a user's model in place of the case's decoder.
        guide: a user's guide in place of the encoder with one tanh layer.
    """

    loss: Callable[[], ELBO]
    effort: Effort
    paper: bool = False
    model: ModelMaker | None = None
    guide: GuideMaker | None = None

    def __call__(self, data: Data, cell: Cell) -> list[dict[str, Any]]:
        """The points of the curve."""
        p, x = cell.case.protocol, data.train
        steps = p["samples"] // BATCH
        model, guide = self._pair(data, cell)
        points = self.effort.points // (2 if p["evidence"] else 1)
        curve = Curve(log_spaced(max(10, steps // 150), steps, points), BATCH, self._measure(data, cell))
        optim, schedule = (torch.optim.Adagrad, None) if self.paper else (torch.optim.Adam, cosine(steps))
        fit(
            model,
            guide,
            x,
            steps=steps,
            batch_size=BATCH,
            loss=self.loss(),
            optim=Fused(optim, {"lr": rate(p, self.paper)}, schedule=schedule),
            seed=cell.seed,
            device=None if cell.device == "cpu" else cell.device,
            patience=0,
            transform=torch.bernoulli if p["binarised"] else None,
            progress=False,
            callbacks=[curve],
        )
        return curve.points

    def _pair(self, data: Data, cell: Cell) -> tuple[Module, Module]:
        """Model and guide of a case, fresh from its seed."""
        p, x = cell.case.protocol, data.train
        torch.manual_seed(cell.seed)
        model = paper_model(p, x.shape[1]) if self.model is None else self.model(x.shape[1]).to(x.dtype)
        if self.guide is not None:
            return model, self.guide(model, x)
        guide = guides.Amortized(model, x, (p["hidden"],), activation="tanh")
        if self.paper and isinstance(model, VAE):
            model.initialize(x)
            guide.initialize(x)
            with torch.no_grad():
                for own in (*model.parameters(), *guide.parameters()):
                    own.normal_(0.0, 0.1)
        return model, guide

    def _measure(self, data: Data, cell: Cell) -> Callable[[Fit], Point]:
        """The measures of a fit in progress."""
        parts = {"held_out": data.test, "train": data.extra["shown"]}

        def bounds(run: Fit) -> Point:
            found = {name: bound(run, x) for name, x in parts.items()}
            if not cell.case.protocol["evidence"]:
                return found
            for part, name in (("held_out", "evidence"), ("train", "evidence_train")):
                by_guide, annealed = log_p(run, parts[part][: self.effort.rows], self.effort)
                found[name] = max(by_guide, annealed)
                if part == "held_out":
                    found["iwae"] = by_guide
            return found

        return bounds


def log_p(run: Fit, x: Tensor, effort: Effort) -> tuple[float, float]:
    """log p(x) in nats per row, by the importance-weighted bound and by annealed importance sampling."""
    ais = AIS(temperatures=effort.temperatures, chains=effort.chains)
    ladder = log_evidence_bounds(run, x, draws=(effort.draws,), ais=ais)
    return ladder[f"IWAE-{effort.draws}"].mean, ladder["AIS"].mean


def rate(protocol: Mapping[str, Any], paper: bool) -> float:
    """The learning rate, the same for both methods: the paper's for Adagrad, or one that serves both for Adam.

    On MNIST (10 latents, 3,000 steps) 0.003 ends 6 and 8 nats above 0.001. On Frey's faces (10 latents, 4,000 steps)
    0.003 ends 13 nats above 0.001 for AEVB, of 1,221, but wake-sleep then collapses, 216 nats lower.
    """
    return 0.02 if paper else {"bernoulli": 3e-3, "gaussian": 1e-3}[protocol["likelihood"]]


def mnist(rows: int, seed: int) -> Data:
    """Rows of MNIST's training file as grey values, and every fifth of its test file as zeros and ones."""
    parts = data.load_parts("mnist", dtype=torch.float32).binarised("dynamic", seed=0)
    train = parts.train.x[:rows]
    shown = data.binarised(train[:: max(1, rows // SHOWN)][:SHOWN], "fixed", seed=0, stream=9)
    return Data(train, parts.test.x[::5], extra={"shown": shown})


def frey(seed: int) -> Data:
    """Four fifths of Frey's faces to train on."""
    x = data.load("frey_faces", dtype=torch.float32).x
    split = data.split_rows(len(x), {"train": 0.8, "test": 0.2}, seed=0)
    train, test = (x[torch.from_numpy(split[name])] for name in ("train", "test"))
    return Data(train, test, extra={"shown": train})


def pixel_case(latent_dim: int, samples: int, rows: int = 50_000, *, hidden: int = 500, evidence: bool = False) -> Case:
    """MNIST with some number of latent variables."""
    few = f", {rows:,} rows" if evidence else ""
    return Case(
        f"MNIST{few}, N_z = {latent_dim}",
        partial(mnist, rows),
        {
            "data": "mnist",
            "split": f"the first {rows:,} rows of the training file; every fifth of the test file held out",
            "binarised": "dynamic: training rows at every step, evaluated rows once with seed 0",
            "likelihood": "bernoulli",
            "latent_dim": latent_dim,
            "hidden": hidden,
            "samples": samples,
            "evidence": evidence,
        },
        data=("mnist",),
    )


def face_case(latent_dim: int, samples: int) -> Case:
    """Frey's faces with some number of latent variables."""
    return Case(
        f"Frey faces, N_z = {latent_dim}",
        frey,
        {
            "data": "frey_faces",
            "split": "four fifths of the rows, at random with seed 0; one fifth held out",
            "binarised": "",
            "likelihood": "gaussian",
            "floor": FLOOR,
            "latent_dim": latent_dim,
            "hidden": 200,
            "samples": samples,
            "evidence": False,
        },
        data=("frey_faces",),
    )


def suite(budget: str) -> Suite:
    """The suite ``aevb`` at a budget."""
    effort, paper = EFFORTS[budget], budget == "full"
    protocol = {
        "batch": BATCH,
        "draws": 1,
        "optimizer": "Adagrad, 0.02" if paper else "Adam, decayed along half a cosine; 0.003 on MNIST, 0.001 on faces",
        "start": "weights N(0, 0.01)" if paper else "as zoo.fit",
        "evaluated": f"{effort.points} points, {SHOWN:,} rows of either part, one draw; "
        f"log p(x) on {effort.rows} by IWAE-{effort.draws} and AIS "
        f"({effort.temperatures} temperatures, {effort.chains} chains)",
    }

    def method(name: str, loss: Callable[[], ELBO], cite: tuple[str, ...], own: Own | None = None) -> Method:
        model, guide = (None, None) if own is None else (own.model, own.guide)
        training = Training(loss, effort, paper, model, guide)
        return Method(name, training, {"loss": loss().__class__.__name__, **protocol}, cite=cite)

    cases = [pixel_case(k, effort.mnist) for k in effort.pixels]
    cases += [face_case(k, effort.frey) for k in effort.faces]
    cases += [pixel_case(3, effort.small, rows, hidden=100, evidence=True) for rows in effort.few]
    return Suite(
        name="aevb",
        question="How high is the bound after so many training samples, by AEVB and by wake-sleep?",
        cases=cases,
        methods=[
            method("AEVB", AnnealedELBO, ("VAE", "Amortized", "AEVB figures")),
            method("wake-sleep", WakeSleep, ("VAE", "Amortized", "WakeSleep")),
        ],
        measures=MEASURES,
        measure=lambda points, data, cell: points,
        along=("samples",),
        budget=budget,
        own=lambda own: method(own.name, AnnealedELBO, (), own),
        claims=partial(claims, budget=budget),
        text=TEXT,
        draw=draw,
    )
