"""A factor analysis of the irises, held fixed, for the files that judge a guide against its exact posterior."""

import pytest
import torch

import zoo


@pytest.fixture(scope="module")
def model(iris):
    model = zoo.FactorAnalysis(4, 2).double()
    torch.manual_seed(1)
    model.initialize(iris)
    zoo.em(model, iris, steps=30, accelerate=False)  # any parameters will do
    return model.requires_grad_(False)
