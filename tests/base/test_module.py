"""zoo.base.module: what a constructor leaves on record, and whether parameters are still those it drew."""

import copy
import inspect
import pickle

import pyro
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import zoo
from guides import Amortized, MeanField
from zoo.base.module import Module


class Small(Module):
    """With a network, a parameter and a start."""

    def __init__(self, width: int = 2, *names: str, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = PyroParam(scale * torch.randn(width))
        self.network = nn.Linear(width, 1)

    def initialize(self, x):
        """Not called here."""


class Wide(Small):
    def __init__(self, factor: int) -> None:
        super().__init__(2 * factor, "a", scale=0.5)
        self.late = PyroParam(torch.zeros(1))


class Same(Small):
    """Inherits its constructor."""


# What is on record


@pytest.mark.parametrize("cls", [zoo.PPCA, zoo.VAE, zoo.GMM, Amortized, MeanField, Small, Wide, Same])
def test_the_signature_is_that_of_the_constructor(cls):
    given = inspect.signature(cls)
    own = inspect.signature(inspect.unwrap(cls.__init__))
    assert list(given.parameters.values()) == list(own.parameters.values())[1:]


def test_arguments_are_recorded_with_their_defaults():
    assert Small().settings == {"width": 2, "names": [], "scale": 1.0}
    assert Same(3, "a", scale=2.0).settings == {"width": 3, "names": ["a"], "scale": 2.0}
    assert Wide(2).settings == {"factor": 2}  # the outer constructor, and not the one it calls


def test_wrong_arguments_are_refused_in_pythons_words():
    with pytest.raises(TypeError, match=r"PPCA\.__init__\(\) missing 1 required positional argument: 'latent_dim'"):
        zoo.PPCA(4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank'"):
        zoo.PPCA(4, 2, rank=3)


def test_a_model_inside_handlers_is_recorded_by_its_class(iris):
    guide = Amortized(config_enumerate(zoo.GMM(4, 2).double()), iris)
    assert guide.settings["model"] == {"module": "zoo.models.gmm:GMM"}
    assert guide.settings["x"] == {"tensor": [150, 4]}


def test_no_data_are_held(iris):
    guide = Amortized(zoo.PPCA(4, 2).double(), iris)
    assert not any(isinstance(value, torch.Tensor) for value in guide.settings.values())


# Fresh


def steps(optimizer):
    def touch(module):
        optim = optimizer(module.parameters())

        def closure():
            optim.zero_grad()
            loss = sum((p**2).sum() for p in module.parameters())
            loss.backward()
            return loss

        optim.step(closure)

    return touch


def assign(module):
    module.weight = torch.zeros(2)


def copy_data(module):
    module.get_parameter("weight_unconstrained" if hasattr(module, "weight_unconstrained") else "weight").data.copy_(
        torch.zeros(2)
    )


def replace_data(module):
    module.network.bias.data = torch.zeros(1)


def nudge_one_entry(module):
    with torch.no_grad():
        module.network.weight[0, 1] += 1e-6


def load_another(module):
    module.load_state_dict(Small().state_dict())


def freeze(module):
    module.network.bias.requires_grad_(False)


def grow(module):
    module.more = nn.Parameter(torch.zeros(1))


def replace_network(module):
    module.network = nn.Linear(2, 1)


def by_pyro(module):
    with pyro.get_param_store().scope():
        optim = pyro.optim.Adam({"lr": 0.1})
        module.weight.sum().backward()
        optim([module.weight])


TOUCHES = [
    steps(lambda p: torch.optim.Adam(p, lr=1e-3)),
    steps(lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True)),
    steps(lambda p: torch.optim.Adam(p, lr=1e-3, fused=True)),
    steps(lambda p: torch.optim.SGD(p, lr=1e-3)),
    steps(lambda p: torch.optim.LBFGS(p, max_iter=2)),
    assign,
    copy_data,
    replace_data,
    nudge_one_entry,
    load_another,
    freeze,
    grow,
    replace_network,
    by_pyro,
    Small.keep,
]


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("before", [lambda m: m, lambda m: m.double(), copy.deepcopy], ids=["", "double", "copied"])
def test_any_change_is_seen(touch, before):
    module = before(Small())
    assert module.fresh
    if touch is load_another:
        module.float()
    touch(module)
    assert not module.fresh
    assert not copy.deepcopy(module).fresh
    assert not module.double().fresh
    assert not module.float().fresh


def nested(module):
    nn.ModuleDict({"inner": nn.ModuleList([module])}).double()
    return module


def deterministic(module):
    """All that reads: a forward pass, a gradient, a state dict, a change of mode."""
    module.network(torch.zeros(1, 2)).sum().backward()
    module.zero_grad()
    module.eval()
    module.train()
    module.load_state_dict(module.state_dict())
    return module


UNTOUCHED = {
    "double": lambda m: m.double(),
    "half and back": lambda m: m.half().float(),
    "bfloat16": lambda m: m.bfloat16(),
    "cpu": lambda m: m.cpu(),
    "to": lambda m: m.to(torch.float64),
    "nested": nested,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickled double": lambda m: pickle.loads(pickle.dumps(m.double())),
    "reading": deterministic,
}


@pytest.mark.parametrize("change", UNTOUCHED.values(), ids=UNTOUCHED)
def test_another_dtype_device_or_copy_is_as_fresh(change):
    module = change(Small())
    assert module.fresh
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert not module.fresh


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_as_fresh():
    module = Small().cuda()
    assert module.fresh
    assert module.cpu().fresh
    with torch.device("cuda"):
        assert Small().fresh


def test_values_put_back_are_fresh_again():
    module = Small()
    before = copy.deepcopy(module.state_dict())
    replace_data(module)
    assert not module.fresh
    module.load_state_dict(before)
    assert module.fresh


def test_what_has_no_start_is_not_fresh():
    class Plain(Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = PyroParam(torch.zeros(1))

    assert not Plain().fresh


def test_no_second_copy_of_the_parameters_is_held():
    module = Small(1000)
    held = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert not held
    assert len(pickle.dumps(module)) < 1.5 * sum(p.numel() * 4 for p in module.parameters()) + 3000


def test_parameters_on_the_meta_device():
    with torch.device("meta"):
        assert Small().fresh


def test_a_model_without_parameters_is_fresh_while_its_buffers_are():
    for model in (zoo.BayesianPCA(4, 1), zoo.BayesianGMM(1, 2, "spherical")):
        assert model.fresh
        assert model.double().fresh
        model.location = model.location + 1.0
        assert not model.fresh


class Constrained(Module):
    """A parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.real = PyroParam(torch.randn(3))
        self.positive = PyroParam(torch.ones(2), constraints.positive)
        self.lower = PyroParam(torch.eye(2), constraints.lower_cholesky)
        self.plain = nn.Parameter(torch.randn(2))


def test_parameters_outside_of_models_are_those_that_pyro_returns():
    module = Constrained()
    for name in ("real", "positive", "lower", "plain"):
        value, pyros = getattr(module, name), PyroModule.__getattr__(module, name)
        assert torch.equal(value, pyros)
        assert value.requires_grad
    assert module.positive.unconstrained() is module.positive_unconstrained
    module.positive.sum().backward()
    assert torch.equal(module.positive_unconstrained.grad, torch.ones(2))


def test_a_parameter_is_set_in_place_to_a_constrained_value():
    module = Constrained()
    before, value = module.lower_unconstrained, torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    module.lower = value
    assert module.lower_unconstrained is before
    torch.testing.assert_close(module.lower, value)
    module.lower = PyroParam(torch.eye(3), constraints.lower_cholesky)
    assert module.lower.shape == (3, 3)


def test_a_module_that_has_run_survives_pickling():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = zoo.cavi(zoo.BayesianPCA(3, 1).double(), x, restarts=1)  # its guide has modules within modules
    bound = zoo.evaluate(run, x, draws=30).total
    again = pickle.loads(pickle.dumps(run))
    assert zoo.evaluate(again, x, draws=30).total == bound
    assert zoo.evaluate(copy.deepcopy(run), x, draws=30).total == bound
