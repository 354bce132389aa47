"""Values that are not finite are traced to a column, a layer or the base, in both directions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flow._make import conditional, couplings, plane
from invertible import Bijection, Chain, Flow, Inverse
from invertible.errors import NonFiniteError


class Breaks(Bijection):
    """The identity, except that one direction gives infinity."""

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.on_forward = forward

    def _forward(self, x: Tensor, context: Any) -> Tensor:
        return x / 0 if self.on_forward else x

    def _inverse(self, y: Tensor, context: Any) -> Tensor:
        return y if self.on_forward else y / 0

    def _forward_with_logdet(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return self._forward(x, context), x.new_zeros(len(x))

    def _inverse_with_logdet(self, y: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return self._inverse(y, context), y.new_zeros(len(y))


def test_the_column_is_named() -> None:
    x = torch.randn(5, 2)
    x[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match="nan in column 1 of row 3; 1 of 10 values"):
        plane().log_prob(x)
    flow = Flow(Chain(), (1, 2, 2))
    image = torch.zeros(2, 1, 2, 2)
    image[1, 0, 1, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"inf in element \(0, 1, 0\) of row 1"):
        flow.log_prob(image)


def test_the_layer_is_named_by_its_path() -> None:
    nested = Chain(couplings(), Chain(couplings(), Breaks(forward=True)), couplings())
    with pytest.raises(NonFiniteError, match=r"first layer to give one is 1\.1 \(Breaks\)"):
        Flow(nested, 2).log_prob(torch.ones(3, 2))
    with pytest.raises(NonFiniteError, match=r"the bijection \(Breaks\)"):
        Flow(Breaks(forward=True), 2).log_prob(torch.ones(3, 2))


def test_the_layer_is_named_when_sampling() -> None:
    nested = Chain(couplings(), Chain(Breaks(forward=False), couplings()), couplings())
    for draw in (Flow(nested, 2).sample, Flow(nested, 2).rsample):
        with pytest.raises(NonFiniteError, match=r"3 of 3 samples.*is 1\.0 \(Breaks\)"):
            draw(3)


def test_through_turned_chains() -> None:
    turned = Chain(couplings(), Inverse(Chain(Breaks(forward=False), couplings())))
    with pytest.raises(NonFiniteError, match=r"is 1\.0 \(Breaks\)"):
        Flow(turned, 2).log_prob(torch.ones(3, 2))


def test_weights_that_are_nan_are_found_with_a_context_too() -> None:
    flow = conditional()
    with torch.no_grad():
        flow.get_parameter("bijection.1.network.net.0.weight").fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"is 1 \(AffineCoupling\)"):
        flow.log_prob(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(NonFiniteError, match="2 of 2 samples"):
        flow.sample(2, torch.zeros(3))


def test_the_base_is_named() -> None:
    flow = plane()
    with pytest.raises(NonFiniteError, match="every layer is finite: the base's"):
        flow.log_prob(torch.full((1, 2), 1e25))


def test_an_outlier_at_a_million_stays_finite() -> None:
    flow, x = plane(), torch.tensor([[1e6, -1e6], [0.0, 0.0]])
    flow(x).backward()
    assert all(bool(p.grad.isfinite().all()) for p in flow.parameters() if p.grad is not None)
