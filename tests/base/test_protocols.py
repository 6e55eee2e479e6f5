"""Hooks are found by attribute, whatever the version of Python."""

import inspect
import typing

import pytest

import zoo
from guides import MeanField
from zoo.base import protocols
from zoo.base.protocols import Conjugate, HoldsRows, Hook, LinearGaussian, members

HOOKS = [value for value in vars(protocols).values() if isinstance(value, type) and issubclass(type(value), type(Hook))]


@pytest.fixture
def rules_of_python_3_12(monkeypatch):
    """``isinstance`` of runtime protocols as from Python 3.12 on."""

    def check(cls, instance):
        for name in typing._get_protocol_attrs(cls):
            try:
                inspect.getattr_static(instance, name)
            except AttributeError:
                return False
        return True

    monkeypatch.setattr(type(typing.Protocol), "__instancecheck__", check)


@typing.runtime_checkable
class Static(typing.Protocol):
    """A hook of plain typing."""

    weight: typing.Any


@pytest.mark.usefixtures("rules_of_python_3_12")
def test_parameters_are_members_of_a_hook():
    model = zoo.PPCA(4, 2)
    assert not isinstance(model, Static)  # the rules that the test is about
    assert isinstance(model, LinearGaussian)
    assert not isinstance(zoo.GMM(4, 2), LinearGaussian)


@pytest.mark.usefixtures("rules_of_python_3_12")
def test_methods_and_attributes_are_members_of_a_hook(some):
    model = zoo.PPCA(4, 2).double()
    assert isinstance(model, Conjugate)
    assert isinstance(MeanField(model, some), HoldsRows)
    assert not isinstance(model, HoldsRows)


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook is not Hook], ids=lambda hook: hook.__name__)
def test_every_hook_requires_something(hook):
    assert members(hook)
    assert not isinstance(object(), hook)


def test_a_class_that_inherits_from_a_hook_is_no_protocol():
    class Own(LinearGaussian):
        pass

    assert not isinstance(zoo.PPCA(4, 2), Own)
