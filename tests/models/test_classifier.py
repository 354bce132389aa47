"""Classifier and its head."""

import pytest
import torch
from torch import nn

from invertible import Chain
from invertible.errors import DtypeError, ShapeError
from invertible.layers import AdditiveCoupling, Squeeze
from invertible.models import Classifier, PoolingHead


def make(in_shape=(1, 4, 4)):
    torch.manual_seed(0)
    body = Chain(Squeeze(2), AdditiveCoupling(nn.Conv2d(2, 2, 3, padding=1)))
    return Classifier(body, PoolingHead(4, 3), in_shape).double().eval()


def test_logits_are_the_head_of_the_representation():
    net, x = make(), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(net(x), net.head(net.representation(x)))
    assert torch.equal(net.representation(x), net.body(x))


def test_reconstruct_undoes_representation():
    net, x = make(), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(net.reconstruct(net.representation(x)), x, atol=1e-12, rtol=0)


def test_without_in_shape_any_size_goes():
    net = make(in_shape=None)
    assert net(torch.randn(2, 1, 6, 8, dtype=torch.float64)).shape == (2, 3)


def test_representation_of_the_wrong_size_is_refused():
    with pytest.raises(ShapeError, match="result"):
        make().reconstruct(torch.zeros(1, 4, 3, 3, dtype=torch.float64))


def test_representation_of_the_wrong_dtype_is_refused():
    with pytest.raises(DtypeError, match="float64"):
        make().reconstruct(torch.zeros(1, 4, 2, 2))


def test_pooling_head_against_its_definition():
    torch.manual_seed(0)
    head = PoolingHead(3, 2).double().train()
    z = torch.randn(6, 3, 4, 5, dtype=torch.float64)
    mean, var = z.mean(dim=(0, 2, 3), keepdim=True), z.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    pooled = torch.relu((z - mean) / (var + 1e-5).sqrt()).mean(dim=(2, 3))
    torch.testing.assert_close(head(z), pooled @ head[4].weight.T + head[4].bias, atol=1e-12, rtol=0)


def test_pooling_head_moves_its_mean_by_the_momentum():
    head, z = PoolingHead(3, 2, momentum=0.9).train(), torch.randn(6, 3, 4, 4)
    head(z)
    torch.testing.assert_close(head[0].running_mean, 0.9 * z.mean(dim=(0, 2, 3)))


def test_pooling_head_names_the_wrong_number_of_channels():
    with pytest.raises(ShapeError, match="PoolingHead"):
        PoolingHead(3, 2)(torch.zeros(1, 4, 2, 2))
