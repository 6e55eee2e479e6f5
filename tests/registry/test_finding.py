"""Models and guides by name: built-in ones, those of files and modules, and every way in which that can fail."""

import pickle
import sys

import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import guides
import zoo
from zoo.registry.finding import find_model, named
from zoo.registry.making import guide_maker, model_maker, settings_of

FILE = '''
"""Models and guides of every kind."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import nn

import zoo
from zoo.base import Module, rows


class Mine(zoo.PPCA):
    """One with a setting more."""

    def __init__(self, columns, latent_dim, width=3):
        super().__init__(columns, latent_dim)
        self.width = width


class Short(Module):
    def forward(self, x, index):
        return x


class NoForward(nn.Module):
    pass


class NoModule:
    pass


class Raises(zoo.PPCA):
    def __init__(self, data_dim):
        super().__init__(data_dim, 1)
        self.weight = torch.zeros(2) @ torch.zeros(3)


def build(data_dim, latent_dim=1):
    return zoo.FactorAnalysis(data_dim, latent_dim)


def wrong(data_dim):
    return data_dim


def automatic(model, x):
    return AutoNormal(model)


@config_enumerate
def itself(x=None, index=None, size=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with rows(x, index, size):
        return pyro.sample("x", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=x)


instance = zoo.PPCA(3, 1)
number = 3
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "my models.py"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["ppca", "PPCA", "P-P-C-A", "zoo.models:PPCA", "zoo.models.ppca:PPCA"])
def test_built_in_models(name):
    assert find_model(name) is zoo.PPCA


def test_a_file_is_imported_once_and_shadows_nothing(file, monkeypatch):
    found = named(f"{file}:Mine", "model")
    monkeypatch.chdir(file.parent)
    assert find_model("my models.py:Mine") is found.made is find_model(f"./{file.name}:Mine")
    assert found.origin == f"{file}:Mine"
    module = found.made.__module__
    assert module.startswith("latent_zoo_file_my_models_")
    assert sys.modules[module].Mine is found.made
    (file.parent / "torch.py").write_text("raise RuntimeError('shadowed')", encoding="utf-8")
    (file.parent / "helper_of_mine.py").write_text("import torch\nSIZE = torch.Size([7])", encoding="utf-8")
    (file.parent / "other.py").write_text(
        "from helper_of_mine import SIZE\nimport zoo\nclass Other(zoo.PPCA):\n    size = SIZE\n", encoding="utf-8"
    )
    try:
        assert find_model("other.py:Other").size == torch.Size([7])
        assert str(file.parent) not in sys.path
    finally:
        sys.modules.pop("helper_of_mine", None)


@pytest.mark.parametrize(
    ("name", "role", "kind", "words"),
    [
        ("nosuch", "model", ValueError, "unknown model 'nosuch'.*One of your own is FILE.py:NAME"),
        ("pcca", "model", ValueError, "did you mean 'PPCA'"),
        ("meenfield", "guide", ValueError, "unknown guide 'meenfield'.*did you mean 'MeanField'"),
        ("no file.py:Mine", "model", FileNotFoundError, "no file.py does not exist: give the path of a Python file"),
        ("{file}:Min", "model", ValueError, "has no 'Min': it defines .*Mine.*did you mean .*:Mine"),
        ("{file}", "model", ValueError, r"needs a name, as .*:NAME; it defines Mine"),
        ("{file}:Short", "model", TypeError, "Short.forward lacks size, a default of x, a default of index"),
        ("{file}:NoForward", "model", TypeError, r"NoForward.forward is missing: a model needs forward\(self, x=None"),
        ("{file}:NoModule", "guide", TypeError, "is no torch.nn.Module: derive the class from zoo.base.Module"),
        ("{file}:instance", "model", TypeError, "is an instance: name its class, PPCA"),
        ("{file}:number", "model", TypeError, "is of type int: name a class"),
        ("no_such_package.models:Mine", "model", ImportError, "there is no module no_such_package: install"),
        ("zoo.models:NoSuch", "model", ValueError, "zoo.models has no 'NoSuch'"),
        ("two words:Mine", "model", ValueError, "neither FILE.py:NAME nor PACKAGE.MODULE:NAME"),
    ],
)
def test_refusals(name, role, kind, words, file):
    with pytest.raises(kind, match=words):
        named(name.format(file=file), role)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import zoo\n\nx = 1 / 0\n", "broken.py raises ZeroDivisionError: division by zero .line 3 of .*: x = 1 / 0"),
        ("class Mine(:\n", "broken.py raises SyntaxError: .* .line 1 of .*class Mine"),
        ("import no_such_thing\n", "raises ModuleNotFoundError: No module named 'no_such_thing' .line 1"),
        ("raise SystemExit(3)\n", "raises SystemExit: 3 .line 1"),
    ],
)
def test_a_file_that_raises_is_named_with_the_line(code, words, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(code, encoding="utf-8")
    for _ in range(2):  # it is not taken for imported after its failure
        with pytest.raises(ImportError, match=words):
            find_model(f"{path}:Mine")


def test_makers(file):
    model = model_maker(f"{file}:Mine", {"latent_dim": 2, "width": 5, "noise": None})(4)
    assert (model.weight.shape, model.width) == ((4, 2), 5)
    x = torch.zeros(6, 4, dtype=torch.float64)
    assert isinstance(model_maker(f"{file}:build")(4), zoo.FactorAnalysis)
    assert isinstance(guide_maker("mean-field")(model, x), guides.MeanField)
    assert isinstance(guide_maker(f"{file}:automatic")(model.double(), x), AutoNormal)
    assert model_maker(f"{file}:itself")(3) is find_model(f"{file}:itself")


@pytest.mark.parametrize(
    ("name", "settings", "kind", "words"),
    [
        ("Mine", {}, ValueError, "Mine requires 'latent_dim': pass --latent-dim"),
        ("Mine", {"latent_dim": 1, "widht": 2}, ValueError, "Mine has no setting 'widht': available are latent_dim, w"),
        ("Mine", {"latent_dim": 5}, ValueError, "latent_dim must be below"),
        ("Raises", {}, ValueError, r"Raises cannot be built: it raises RuntimeError: .*self.weight = torch.zeros"),
        ("wrong", {}, TypeError, "wrong returns int: it must build a model"),
        ("itself", {"latent_dim": 1}, ValueError, "itself is a model itself, .* leave 'latent_dim' out"),
        ("build", {"data_dim": 3}, ValueError, "build gets 'data_dim' from the data"),
    ],
)
def test_what_cannot_be_built(name, settings, kind, words, file):
    with pytest.raises(kind, match=words):
        model_maker(f"{file}:{name}", settings)(4)


def test_settings():
    assert settings_of(['a-b={"c": [1]}', "d=x=y"]) == {"a_b": {"c": [1]}, "d": "x=y"}
    for texts, words in (
        (["a"], "--set must be NAME=VALUE"),
        (["=1"], "must be NAME"),
        (["a=1", "a=2"], "twice"),
    ):
        with pytest.raises(ValueError, match=words):
            settings_of(texts)


def test_makers_serve_other_processes(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    pair = model_maker(f"{file.name}:Mine", {"latent_dim": 2}), guide_maker(f"{file.name}:automatic")
    stored, known = pickle.dumps(pair), find_model(f"{file.name}:Mine")
    monkeypatch.chdir(tmp_path)  # another folder, in a process that has not imported the file
    monkeypatch.delitem(sys.modules, known.__module__)
    model, guide = pickle.loads(stored)
    built = model(4)
    assert (type(built).__module__, type(built).__name__) == (known.__module__, "Mine")
    assert type(built) is not known
    assert isinstance(guide(built, torch.zeros(3, 4)), AutoNormal)


def test_plain_modules_are_models(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(
        "from torch import nn\n\nclass Plain(nn.Linear):\n    def forward(self, x=None, index=None, size=None): ...\n",
        encoding="utf-8",
    )
    built = model_maker(f"{path}:Plain", {"out_features": 2})(4)
    assert isinstance(built, nn.Linear)
    assert built.weight.shape == (2, 4)
