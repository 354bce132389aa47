"""Networks for couplings: zero at the start, with contexts of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from cases import assert_close
from invertible.errors import ConfigError, ContextError, DtypeError, RangeError
from invertible.layers.conditioner import MLP, ClassEmbedding, ConvNet, NormedConv2d, ResidualNet


def awake(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.double()


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "elu"])
def test_mlp_is_what_a_sequential_of_its_layers_is(activation: str) -> None:
    network = awake(MLP(3, 2, (8, 5), activation))
    kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "elu": nn.ELU}
    kind = kinds[activation]
    plain = nn.Sequential(network.first, kind(), network.rest[0], kind(), network.last)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert_close(network(x), plain(x))
    ours = torch.autograd.grad(network(x).square().sum(), [x, *network.parameters()])
    theirs = torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


def test_mlp_heeds_hooks_and_other_layers_in_the_place_of_its_own() -> None:
    network, seen = awake(MLP(2, 2, (4,))), []
    handle = network.last.register_forward_hook(lambda *_: seen.append(1))
    network(torch.zeros(1, 2, dtype=torch.float64))
    handle.remove()
    assert seen == [1]
    network.last = nn.Sequential(nn.Linear(4, 7)).double()
    assert network(torch.zeros(1, 2, dtype=torch.float64)).shape == (1, 7)


@pytest.mark.parametrize(
    "network",
    [MLP(2, 3), ConvNet(2, 3, 4), ConvNet(2, 3, 4, actnorm=True), ResidualNet(2, 3, 4, 1)],
    ids=["mlp", "conv", "conv-actnorm", "residual"],
)
def test_networks_start_at_zero(network: nn.Module) -> None:
    x = torch.randn(5, 2) if isinstance(network, MLP) else torch.randn(5, 2, 4, 4)
    assert not network(x).any()


def test_a_context_vector_joins_the_first_layer() -> None:
    network = awake(MLP(2, 1, (4,), n_context=3))
    x, c = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    weight = torch.cat([network.first.weight, network.context.linear.weight], 1)
    joined = functional.linear(torch.cat([x, c], 1), weight, network.first.bias)
    assert_close(network(x, c), network.last(torch.relu(joined)))


@pytest.mark.parametrize("make", [lambda n: ConvNet(2, 3, 4, n), lambda n: ResidualNet(2, 3, 4, 1, n)])
def test_context_images_of_another_size_are_resized(make) -> None:
    network = awake(make(2)).eval()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    flat = torch.randn(3, 2, dtype=torch.float64)
    constant = flat[:, :, None, None].expand(3, 2, 8, 8)
    assert_close(network(x, constant), network(x, flat))  # a constant image is a vector
    assert not torch.allclose(network(x, torch.randn(3, 2, 4, 4, dtype=torch.float64)), network(x, flat))


def test_a_context_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ContextError, match=r"\(batch, 3\)"):
        MLP(2, 1, n_context=3)(torch.zeros(5, 2), torch.zeros(5, 4))


def test_weight_normalisation_is_pytorch_s() -> None:
    ours = NormedConv2d(2, 3).double()
    with torch.no_grad():
        ours.norm *= 1.5
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3, padding=1).double())
    theirs.parametrizations.weight.original0 = nn.Parameter(ours.norm[:, None, None, None].detach())
    theirs.parametrizations.weight.original1 = nn.Parameter(ours.weight.detach())
    theirs.bias = ours.bias
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    assert_close(ours(x), theirs(x))


def test_embedding_checks_its_labels() -> None:
    embedding = ClassEmbedding(3, 2)
    assert torch.equal(embedding(torch.tensor([2, 0])), embedding.weight[[2, 0]])
    with pytest.raises(RangeError, match="0 to 2"):
        embedding(torch.tensor([3]))
    with pytest.raises(DtypeError, match="int64"):
        embedding(torch.tensor([1.0]))


@pytest.mark.parametrize("make", [lambda: MLP(2, 2, ()), lambda: MLP(0, 2), lambda: ConvNet(1, 2, 0),
                                  lambda: ResidualNet(1, 2, 4, 0), lambda: ClassEmbedding(0, 2)])  # fmt: skip
def test_bad_sizes_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.usefixtures("unchecked")
def test_a_bad_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="relu, tanh, silu, elu"):
        MLP(2, 2, activation="swish")
