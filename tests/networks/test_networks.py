"""The blocks of encoders and decoders: what a layer computes, images of every size, networks of the user's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from zoo.networks.convolution import check_image, image_decoder, image_encoder
from zoo.networks.perceptron import ACTIVATIONS, Constant, activation_name, mlp, reset
from zoo.networks.standardize import Standardize
from zoo.networks.user_module import check_network

IMAGES = [(1, 28, 28), (1, 8, 8), (3, 7, 5), (2, 1, 1), (1, 13, 1)]
OPTIONS = [{}, {"normalize": True}, {"gated": True}, {"normalize": True, "gated": True}]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name_and_class(name):
    x = torch.randn(5, 3).double()
    network = mlp(3, (4,), 2, name).double()
    first, last = network[0], network[-1]
    expected = last(getattr(functional, name)(first(x)))
    close(network(x), expected)
    by_class = mlp(3, (4,), 2, ACTIVATIONS[name]).double()
    by_class.load_state_dict(network.state_dict())
    close(by_class(x), expected)
    assert activation_name(ACTIVATIONS[name]) == name
    assert activation_name(name) == name


def test_any_class_of_modules_is_an_activation():
    assert isinstance(mlp(3, (4,), 2, nn.Mish)[1], nn.Mish)
    assert activation_name(nn.Mish) is nn.Mish
    for wrong in ("swish", nn.SiLU(), 3, dict):
        with pytest.raises(ValueError, match="activation must be one of silu, relu, tanh, elu, gelu, softplus or"):
            mlp(3, (4,), 2, wrong)


def test_the_norm_stands_before_the_activation_and_sees_one_row():
    x = torch.randn(5, 3).double()
    network = mlp(3, (4,), 2, "tanh", normalize=True).double()
    inner = network[0](x)
    inner = (inner - inner.mean(-1, keepdim=True)) / (inner.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    close(network(x), network[-1](inner.tanh()))
    close(network(x)[2], network(x[2]))


def test_a_gate_is_a_product():
    x = torch.randn(5, 3).double()
    network = mlp(3, (4,), 2, gated=True).double()
    value, gate = network[0](x).split(4, -1)
    close(network(x), network[-1](value * torch.sigmoid(gate)))


@every_option
def test_without_hidden_layers_all_is_linear(options):
    for network in (mlp(3, (), 4, **options), image_encoder((1, 3, 1), (), 4, **options)):
        assert [type(m) for m in network.modules() if next(m.parameters(recurse=False), None) is not None] == [
            nn.Linear
        ]
    decoder = image_decoder(2, (), (1, 3, 1), **options)
    close(decoder(torch.ones(2)), decoder[0](torch.ones(2)))


# Images.


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("hidden", [(6,), (4, 6), (3, 4, 5)])
def test_images_of_every_size(image, hidden):
    d = image[0] * image[1] * image[2]
    encoder, decoder = image_encoder(image, hidden, 5).double(), image_decoder(2, hidden, image).double()
    x, z = torch.randn(4, d).double(), torch.randn(4, 2).double()
    assert encoder(x).shape == (4, 5)
    assert decoder(z).shape == (4, d)
    assert encoder(x[:0]).shape == (0, 5)
    # One row at a time, and under any leading dimensions, is the same.
    close(torch.stack([encoder(row) for row in x]), encoder(x))
    close(encoder(x.view(2, 1, 2, d)).flatten(0, 2), encoder(x))
    close(torch.stack([decoder(row) for row in z]), decoder(z))
    close(decoder(z.view(2, 1, 2, 2)).flatten(0, 2), decoder(z))


@every_option
def test_images_take_the_options(options):
    image = (2, 5, 4)
    encoder, decoder = image_encoder(image, (4, 6), 5, "tanh", **options), image_decoder(2, (6, 4), image, **options)
    x, z = torch.randn(3, 40, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    for network, value in ((encoder, x), (decoder, z)):
        (gradient,) = torch.autograd.grad(network(value)[1].sum(), value)
        assert (gradient[1] != 0).any()
        assert (gradient[[0, 2]] == 0).all()  # a row does not see its neighbours
        kinds = {type(layer) for layer in network.modules()}
        assert (nn.GroupNorm in kinds) == options.get("normalize", False)
        assert (nn.GLU in kinds) == options.get("gated", False)


def test_a_convolution_sees_the_image():
    """Channels come one after the other, each row by row: a pixel reaches its neighbours alone."""
    encoder = image_encoder((2, 6, 6), (1,), 1)
    half = encoder[:2]  # the view as an image, and the first convolution
    x = torch.zeros(1, 2, 6, 6)
    base = half[1](half[0](x.flatten(1)))
    x[0, 1, 5, 0] = 1.0
    moved = (half[1](half[0](x.flatten(1))) != base).nonzero().tolist()
    assert moved == [[0, 0, 2, 0]]


@pytest.mark.parametrize("wrong", [(28, 28), 784, "1,28,28", None, [1, 2, 3, 4]])
def test_images_are_three_numbers(wrong):
    with pytest.raises(ValueError, match=r"image must be \(channels, height, width\), got"):
        check_image(wrong)


def test_images_fit_the_columns():
    assert check_image([1, 28, 28], 784) == (1, 28, 28)
    with pytest.raises(ValueError, match=r"image=\(1, 28, 28\) has 784 entries, but a row has 64: pass"):
        check_image((1, 28, 28), 64)
    for wrong in ((1, 0, 28), (1, 2.0, 3)):
        with pytest.raises(ValueError, match="image must be a whole number of at least 1"):
            check_image(wrong)


def test_widths_are_checked():
    for build in (
        lambda hidden, **more: mlp(2, hidden, 3, **more),
        lambda hidden, **more: image_encoder((1, 4, 4), hidden, 3, **more),
        lambda hidden, **more: image_decoder(2, hidden, (1, 4, 4), **more),
    ):
        with pytest.raises(ValueError, match="hidden must be a whole number of at least 1, got 0"):
            build((4, 0))
        with pytest.raises(ValueError, match="layer of width 1, which normalize=True makes constant"):
            build((4, 1), normalize=True)


# Networks of the user's.


class Wide(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], -1)


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten()


class Deaf(nn.Module):
    def forward(self, x):
        return x.mean(-1), x


def test_a_network_of_the_users_is_tried(untouched):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(4, 5)).double()
    network[2].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with untouched():
        assert check_network(network, "decoder", 3, 5, "a, b and c") is network
    assert network.training
    assert network[0].training
    assert not network[2].training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(3, 4), r"decoder returns width 4 for zeros of shape \(2, 3, 3\)"),
        (Wide(), "decoder returns width 6"),
        (Flat(), r"decoder returns shape \(18,\)"),
        (nn.Linear(4, 5), r"decoder fails on zeros of shape \(2, 3, 3\), mat1 and mat2"),
        (Deaf(), "decoder returns a tuple, not a tensor"),
        (nn.Linear, "decoder is the class Linear, not a module"),
        (len, "decoder is a len, not a module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_network_that_does_not_fit_hears_what_is_expected(network, message):
    with pytest.raises(ValueError, match=message + r".*: decoder must map \(\.\.\., 3\) to \(\.\.\., 5\), 5 things"):
        check_network(network, "decoder", 3, 5, "5 things")


# Fresh starts.


def test_reset_draws_anew_but_what_is_kept():
    kept = nn.Linear(2, 2)
    network = nn.ModuleList([mlp(2, (3,), 2, normalize=True), kept, Constant(4)])
    before = {name: value.clone() for name, value in network.named_parameters()}
    reset(network, keep=kept)
    same = {name for name, value in network.named_parameters() if torch.equal(value, before[name])}
    assert same == {"1.weight", "1.bias", "0.1.weight", "0.1.bias"}  # the norm starts at 1 and 0


def test_a_constant_is_the_same_everywhere():
    network = Constant(3)
    assert torch.equal(network(torch.randn(5, 2)), network.value)
    assert network.value.abs().min() > 0  # a factor of 0 would never leave it


def test_columns_are_whitened_by_their_own_correlations():
    torch.manual_seed(0)
    x = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 5.0
    x = torch.cat([x, x[:, :1], torch.full((500, 1), 2.0, dtype=torch.float64)], 1)  # two equal columns, a constant one
    columns = Standardize(5, whiten=True).double()
    columns.place(x)
    seen = columns(x)
    values = torch.linalg.eigvalsh(torch.cov(seen.T, correction=0))
    assert torch.allclose(seen.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(values, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64), atol=1e-9)
    again = Standardize(5, whiten=True).double()
    again.load_state_dict(columns.state_dict())
    assert torch.equal(again(x), seen)
    hole = x.clone()
    hole[0, 0] = torch.nan
    assert torch.isfinite(columns(hole)).all()


def test_constant_data_are_whitened_to_nothing():
    columns = Standardize(2, whiten=True)
    columns.place(torch.ones(10, 2))
    assert torch.equal(columns(torch.ones(10, 2)), torch.zeros(10, 2))


def test_pixels_are_seen_as_they_are():
    torch.manual_seed(0)
    x = torch.rand(200, 3, dtype=torch.float64)
    columns = Standardize(3, pixels=True).double()
    columns.place(x)
    assert torch.equal(columns(x), x)
    hole = x.clone()
    hole[0, 1] = torch.nan
    assert columns(hole)[0, 1].item() == pytest.approx(x[:, 1].mean().item())  # where it was placed
    columns.place(2 * x)  # not pixels
    assert torch.allclose(columns(2 * x).std(0, correction=0), torch.ones(3, dtype=torch.float64))
