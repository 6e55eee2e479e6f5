"""The decisions before the first step of a fit, each with its reason."""

import math
from dataclasses import dataclass

import torch
from pyro.infer import ELBO, JitTrace_ELBO
from pyro.optim import PyroOptim

from zoo.base.callables import undecorated, unwrapped
from zoo.base.checks import check_whole
from zoo.base.protocols import (
    Collapsing,
    Conjugate,
    Delaying,
    Estimating,
    LinearForm,
    Mixture,
    Placed,
    Projection,
    linear_form,
)
from zoo.base.threads import PER_THREAD, enough, work_of
from zoo.infer.asked import Asked
from zoo.infer.captured import not_recorded
from zoo.infer.deep_defaults import CLIP
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.projected import ProjectedELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.pairing import (
    batch_norms,
    check_batches,
    deep,
    default_loss,
    noiseless,
    own_parameters,
    random_layers,
    tight,
)
from zoo.infer.projecting import projection_of
from zoo.infer.settling import Settling

E_STEP = 25  # iterations, at most, in which only the guide moves, where model and guide are fresh
PAYS = 100  # steps from which on recording a graph takes less time than it saves
RATE, DEEP_RATE = 0.03, 0.01  # of Adam
EM_STEPS = 10  # of EM before the line search, where the guide is the posterior of a fresh model
HELD = 1000  # steps, at most, in which a fresh model's delayed parameters are held


@dataclass(frozen=True)
class Answer:
    """One decision.

    Attributes:
        question: what was decided, such as ``"loss"``.
        answer: the choice.
        why: its reason.
    """

    question: str
    answer: str
    why: str


def described(asked: Asked) -> Answer:
    x, device = asked.x, asked.options.device
    n, d = x.shape
    place = x.device if device is None else device
    own = "those of the model's parameters, or of x if it has none"
    why = "device is given" if device is not None else own
    return Answer("rows", f"{n:,} x {d}, {str(x.dtype).removeprefix('torch.')} on {place}", why)


def start_of(asked: Asked) -> tuple[tuple[str, ...], Answer]:
    """The parts that are initialised on the data."""
    parts = {"model": unwrapped(asked.model), "guide": unwrapped(asked.guide)}
    fresh = tuple(name for name, part in parts.items() if isinstance(part, Placed) and part.fresh)
    if not fresh:
        return fresh, Answer("start", "the current parameters", "neither is a fresh module with initialize(x)")
    listed = " and ".join(fresh)
    if "model" in fresh and estimated(asked):
        also = ", then the guide at random" if "guide" in fresh else ""
        return fresh, Answer("start", f"the model's estimate from the data{also}", "unchanged since built")
    return fresh, Answer("start", f"{listed} at random on the data", "unchanged since built; the draws follow seed")


def estimated(asked: Asked) -> bool:
    """Whether a fresh model starts at its own estimate from the data."""
    inner = unwrapped(asked.model)
    linear = not isinstance(inner, LinearForm) or linear_form(inner) is not None  # a deep VAE has no estimate
    return asked.options.start == "data" and isinstance(inner, Estimating) and linear


def held_steps(asked: Asked, fresh: tuple[str, ...], loss: ELBO, noise: str) -> int:
    """The first steps, which hold what a fresh model delays. (In a compiled trace it would be held for good.)"""
    inner, given = unwrapped(asked.model), asked.options.optim
    if "model" not in fresh or isinstance(given, LBFGS) or isinstance(loss, JitTrace_ELBO):
        return 0
    if given is None and not noise:  # a line search
        return 0
    return min(HELD, asked.most // 4) if isinstance(inner, Delaying) and inner.delays else 0


@dataclass(frozen=True)
class First:
    """What precedes the first step of the whole pair.

    Attributes:
        em_steps: steps of EM on a fresh model.
        e_step: the most iterations in which only the guide moves.
        held_steps: steps in which a fresh model holds the parameters that it delays.
    """

    em_steps: int
    e_step: int
    held_steps: int

    @property
    def answer(self) -> Answer:
        """The decision."""
        moves, reasons = [], []
        if self.em_steps:
            moves.append(f"{self.em_steps} steps of EM")
            reasons.append("from a random start, the long steps of a line search may lead to a lower maximum")
        if self.e_step:
            moves.append(f"the guide alone, for up to {self.e_step} iterations")
            reasons.append("a fresh guide does not fit the model's start yet and would lead the model away from it")
        if self.held_steps:
            moves.append(f"{self.held_steps:,} steps with the correlations of the noise held")
            reasons.append("noise with any covariance would explain what the factors should")
        if moves:
            return Answer("first", ", then ".join(moves), "; ".join(reasons))
        return Answer("first", "nothing", "only a default line search on a fresh model needs more")


def first_moves(asked: Asked, fresh: tuple[str, ...], loss: ELBO, optimizer: PyroOptim, held: int) -> First:
    """What precedes the first step of the whole pair."""
    if asked.options.optim is not None or not isinstance(optimizer, LBFGS):
        return First(0, 0, held)
    inner, most = undecorated(asked.model), asked.most // 4
    climbs = isinstance(inner, Mixture) or isinstance(loss, ProjectedELBO) or tight(asked.model, asked.guide)
    random = "model" in fresh and not estimated(asked)
    em_steps = min(EM_STEPS, most) if random and climbs and isinstance(inner, Conjugate) else 0
    waits = len(fresh) == 2 and not isinstance(loss, ProjectedELBO) and own_parameters(asked.model, asked.guide)
    return First(em_steps, min(E_STEP, most) if waits else 0, held)


def modes(asked: Asked) -> Answer:
    layers = random_layers(asked.model, asked.guide) + batch_norms(asked.model, asked.guide)
    kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
    why = f"{kinds} differ between the two" if kinds else "no layer differs between the two"
    return Answer("modes", "training for steps, evaluation for held-out rows, restored afterwards", why)


def batches(asked: Asked) -> Answer:
    """How many rows a step uses.

    Raises:
        ValueError: more than there are, or a last batch of one row under batch normalisation.
    """
    n, size = len(asked.x), asked.options.batch_size
    why = "many rows, a deep model" if asked.batched else "batch_size is given"
    if size is None:
        return Answer("batches", f"all {n:,} rows at every step", "batch_size is None")
    if check_whole(size, "batch_size") > n:
        raise ValueError(f"batch_size={size} exceeds the {n} rows of x: take at most {n}, or None for all rows")
    if size == n:
        return Answer("batches", f"all {n:,} rows at every step", "batch_size is the number of rows")
    check_batches(asked.model, asked.guide, n, size)
    return Answer("batches", f"{size:,} rows, {math.ceil(n / size):,} steps per epoch", why)


def held_out(asked: Asked) -> Answer:
    """The rows that decide which parameters are kept."""
    if asked.validation is None:
        return Answer("held out", "none", "validation is None, and the pair is no deep model with a guide for new rows")
    why = "a deep model, and no validation is given" if asked.held_out else "validation is given"
    kept = ", whose best parameters are kept" if asked.options.patience is not None else ""
    return Answer("held out", f"{len(asked.validation):,} rows{kept}", why)


def objective(asked: Asked) -> tuple[ELBO, Answer]:
    """The objective."""
    if asked.options.loss is not None:
        return asked.options.loss, Answer("loss", type(asked.options.loss).__name__, "loss is given")
    chosen = default_loss(asked.model, asked.guide, asked.layout)
    if (projection := _projection(asked)) is not None:
        why = "the best q of the guide has a closed form given the model's parameters, and so has the bound there"
        return ProjectedELBO(projection, chosen), Answer("loss", ProjectedELBO.__name__, why)
    if isinstance(chosen, QuadratureELBO):
        why = "the model declares quadratic, the guide gaussian: a quadrature rule gives the bound without noise"
    elif isinstance(chosen, ClosedFormELBO):
        why = "the model is conditionally conjugate and the guide holds factors of its families: no draws are needed"
    elif tight(asked.model, asked.guide):
        why = "the guide declares tight: every draw gives log p(x)"
    else:
        why = "works for any pair, with one draw per step"
    return chosen, Answer("loss", type(chosen).__name__, why)


def _projection(asked: Asked) -> Projection | None:
    """The best q in closed form, for a default fit whose steps all see the same rows."""
    options = asked.options
    if options.optim is not None or asked.subsampled or options.transform is not None or options.weights is not None:
        return None
    if random_layers(asked.model, asked.guide) or batch_norms(asked.model, asked.guide):
        return None
    return projection_of(asked.model, asked.guide, asked.x)


def moved(loss: ELBO) -> Answer:
    """Which parameters a step moves."""
    if isinstance(loss, ProjectedELBO):
        return Answer("step", "the model's parameters; the guide follows in closed form", "variable projection")
    return Answer("step", "the parameters of model and guide together", "the best q has no closed form here")


def search(asked: Asked, noise: str, held: int) -> tuple[PyroOptim, Settling | None, tuple[Answer, Answer]]:
    """The optimizer and its schedule."""
    given = asked.options.optim
    if given is not None:
        row = Answer("optimizer", type(given).__name__, "optim is given")
        return given, None, (row, Answer("schedule", "its own", "optim is given"))
    if not noise:
        row = Answer("optimizer", "LBFGS", "the bound has no noise, and every step uses all rows")
        return LBFGS(), None, (row, Answer("schedule", "none", "a line search chooses the length of every step"))
    settling = Settling(asked.most, patient=asked.options.steps is None, since=held)
    rate, networks = (DEEP_RATE, "has") if deep(asked.model) else (RATE, "has no")
    adam = Answer("optimizer", f"Fused Adam, learning rate {rate}", f"{noise}; the model {networks} networks")
    if asked.options.steps is None:
        how = Answer("schedule", "halved, once the bound has settled, while that raises it", "steps is None")
    else:
        how = Answer("schedule", f"half a cosine over {asked.options.steps:,} steps", "steps is given")
    clip = CLIP * len(asked.x) if deep(asked.model) else None
    return Fused(torch.optim.Adam, {"lr": rate}, schedule=settling, clip_norm=clip), settling, (adam, how)


def noise_of(asked: Asked, loss: ELBO) -> str:
    """Why the loss of a step is noisy; empty where it is not, and where an optimizer is given."""
    if asked.options.optim is not None:
        return ""
    if asked.subsampled:
        return "minibatches are noisy"
    if asked.options.transform is not None:
        return "transform may be random"
    if layers := random_layers(asked.model, asked.guide):
        return f"{type(layers[0]).__name__} draws at every step"
    return "" if noiseless(asked.model, asked.guide, loss) else f"{type(loss).__name__} draws at every step"


def floors(asked: Asked) -> tuple[Answer, ...]:
    """The floor under the covariances of a mixture."""
    inner = undecorated(asked.model)
    if not isinstance(inner, Collapsing):
        return ()
    if not inner.floor:
        return (Answer("floor", "none under the covariances", "the model's floor is 0: the likelihood is unbounded"),)
    why = "the model's floor; below it the likelihood is unbounded, and a fit that gets there ends and says so"
    return (Answer("floor", f"{inner.floor:g} of the columns' variances, in any direction", why),)


def capture(asked: Asked, loss: ELBO, optimizer: PyroOptim) -> tuple[bool, Answer]:
    """Whether steps are recorded as a graph.

    A recording takes as long as 20 to 50 steps' own machinery, which the graph saves; a first one loads code as well.
    """
    given, most = asked.options.capture, asked.most
    if given is False:
        return False, Answer("graph", "none", "capture is False")
    if isinstance(optimizer, LBFGS):
        return False, Answer("graph", "none", "a line search takes few steps")
    if obstacle := not_recorded(loss, optimizer):
        return False, Answer("graph", "none", obstacle)
    layers = batch_norms(asked.model, asked.guide)
    if layers:
        return False, Answer("graph", "none", f"{type(layers[0]).__name__} writes to its statistics at every step")
    if given:
        return True, Answer("graph", "recorded at the first step, run by the later ones", "capture is True")
    shapes = 1 if not asked.subsampled or len(asked.x) % (asked.options.batch_size or 1) == 0 else 2
    if most < PAYS * shapes:
        why = f"a graph pays from {PAYS * shapes:,} steps on" + ", as batches have two sizes" * (shapes - 1)
        return False, Answer("graph", "none", why)
    why = f"it pays from {PAYS * shapes:,} steps on"
    return True, Answer("graph", "recorded at the first step, run by the later ones", why)


def threads(asked: Asked) -> tuple[float, Answer]:
    """The multiply-adds of a step, and the number of torch's threads that it runs on."""
    work = work_of(asked.x.shape, asked.model, asked.guide, rows=asked.options.batch_size)
    set_by_caller = torch.get_num_threads()
    if torch.device(asked.options.device or asked.x.device).type != "cpu":
        return work, Answer("threads", f"{set_by_caller}, as set", "the steps run on another device")
    count = min(set_by_caller, enough(work))
    why = f"{work:.1e} multiply-adds per step, of which a thread takes {PER_THREAD:.0e}, and {set_by_caller} are set"
    return work, Answer("threads", str(count), why)


def end(asked: Asked, optimizer: PyroOptim, settling: Settling | None) -> Answer:
    """When training ends."""
    options = asked.options
    ends = [f"after {asked.most:,} steps"]
    if isinstance(optimizer, LBFGS) or (settling is not None and settling.patient):
        ends.insert(0, "when the bound has settled")
    if options.patience is not None:
        looks = f"{options.patience} evaluations, {options.every} steps apart"
        ends.insert(0, f"when the held-out bound has not improved in {looks}")
    return Answer("end", ", or ".join(ends), "steps is None" if options.steps is None else "steps is given")
