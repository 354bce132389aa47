"""Glow's affine coupling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import Constant, assert_close
from invertible.errors import ConfigError
from invertible.layers import MarginalSpline, Reshape, SigmoidCoupling
from invertible.layers.spline import rational_quadratic


def test_scale_and_shift_are_the_paper_s() -> None:
    coupling = SigmoidCoupling(Constant(3.0, -1.0), min_scale=0.0)
    y, logdet = coupling.forward_with_logdet(torch.tensor([[5.0, 2.0]], dtype=torch.float64))
    scale = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    assert_close(y, torch.tensor([[5.0, 5.0 * scale]], dtype=torch.float64))
    assert_close(logdet, scale.log()[None])


@pytest.mark.parametrize("raw", [-1e4, -50.0, 50.0])
def test_the_inverse_never_blows_up(raw: float) -> None:
    coupling = SigmoidCoupling(Constant(0.0, raw))
    y = torch.tensor([[0.0, 1.0]])
    assert coupling.inverse(y)[0, 1] <= 10.001
    assert bool(coupling.forward_with_logdet(y)[1].isfinite().all())


def test_bad_floor_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_scale"):
        SigmoidCoupling(nn.Linear(1, 2), min_scale=1.0)


def test_marginal_spline_sends_each_column_through_its_own_curve() -> None:
    layer = MarginalSpline(2, n_bins=4).double()
    nn.init.normal_(layer.parameters_of_splines)
    x = torch.randn(5, 2, dtype=torch.float64)
    y, logdet = layer.forward_with_logdet(x)
    each: list[tuple[Tensor, Tensor]] = [
        rational_quadratic(x[:, i], layer.parameters_of_splines[:, i].expand(5, -1)) for i in range(2)
    ]
    assert_close(y, torch.stack([e[0] for e in each], 1))
    assert_close(logdet, each[0][1] + each[1][1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="equal products"):
        Reshape((2, 3), (5,))
    with pytest.raises(ConfigError, match="2 to 256 bins"):
        MarginalSpline(1, n_bins=1)
