"""Standardize and Logit: statistics by hand, hard columns, ranges."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from invertible import Inverse
from invertible.errors import ConfigError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.layers import Logit, Standardize


@pytest.mark.parametrize("shape", [(50, 3), (20, 3, 4), (5, 3, 2, 7)])
def test_fitted_data_have_mean_0_and_deviation_1(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64) * 30 - 500
    y = Standardize.fit(x)(x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.square().mean(1), torch.ones(3).double(), rtol=1e-12, atol=0)


def test_by_hand() -> None:
    layer = Standardize.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]]))
    y, logdet = layer.forward_with_logdet(torch.tensor([[3.0, 30.0], [3.0 + math.sqrt(8 / 3), 30.0]]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(logdet, torch.full((2,), -math.log(8 / 3) - math.log(10)))


def test_other_dimension() -> None:
    x = torch.randn(50, 4, 3, dtype=torch.float64) * torch.tensor([1.0, 10.0, 100.0])
    layer = Standardize.fit(x, dim=2)
    torch.testing.assert_close(layer(x).flatten(0, 1).std(0, correction=0), torch.ones(3).double())
    assert layer.n_features == 3


def test_constant_columns_are_named_and_left_alone() -> None:
    x = torch.randn(20, 14)
    x[:, 1], x[:, 3] = 0.1, 1e6
    with pytest.warns(UserWarning, match=r"std 1 instead of 0\): column 1, 3$"):
        layer = Standardize.fit(x)
    assert layer.std[[1, 3]].tolist() == [1.0, 1.0]
    y, logdet = layer.forward_with_logdet(x)
    assert y[:, [1, 3]].abs().max() < 1e-6
    assert logdet.isfinite().all()
    with pytest.warns(UserWarning, match=r"column 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more$"):
        Standardize.fit(torch.ones(3, 14))


def test_one_row_is_constant() -> None:
    with pytest.warns(UserWarning, match="column 0, 1$"):
        assert torch.equal(Standardize.fit(torch.tensor([[7.0, 8.0]])).std, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.randn(1000, 2, dtype=dtype)
    x[0], x[1, 0] = 1e6, -1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = Standardize.fit(x)
    assert layer.std.dtype == dtype
    y, logdet = layer.forward_with_logdet(x)
    assert y.isfinite().all()
    assert logdet.isfinite().all()
    assert y.abs().max() < 33  # nothing exceeds sqrt(n) deviations
    huge = Standardize.fit(torch.tensor([[1e30], [-1e30]]))
    torch.testing.assert_close(huge.std, torch.tensor([1e30]))


def test_a_small_spread_round_a_large_mean_is_seen() -> None:
    x = 1e6 + torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    torch.testing.assert_close(Standardize.fit(x).std, torch.tensor([0.5]))


def test_bad_values_are_named() -> None:
    x = torch.randn(6, 4)
    x[2, 3], x[4, 1] = math.nan, math.inf
    with pytest.raises(NonFiniteError, match=r"column 1, 3, the first in row 2, column 3"):
        Standardize.fit(x)


def test_standardize_refuses() -> None:
    with pytest.raises(ShapeError, match="takes data"):
        Standardize.fit(torch.zeros(0, 3))
    with pytest.raises(ShapeError, match="takes data"):
        Standardize.fit(torch.zeros(3))
    with pytest.raises(DtypeError, match=r"x.float\(\)"):
        Standardize.fit(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="two equal vectors"):
        Standardize(torch.zeros(2), torch.ones(3))
    for std in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="stds > 0"):
            Standardize(torch.zeros(2), torch.tensor([1.0, std]))
    with pytest.raises(ShapeError, match="size 2 in dimension 1"):
        Standardize(torch.zeros(2), torch.ones(2))(torch.zeros(4, 3))


def test_numbers_are_saved_and_not_trained(tmp_path: Path) -> None:
    x = torch.randn(9, 2) * 3 + 4
    saved, fresh = Standardize.fit(x), Standardize(torch.zeros(2), torch.ones(2))
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(fresh(x), saved(x))
    assert not list(saved.parameters())


def test_later_changes_of_the_callers_tensor_do_not_matter() -> None:
    mean = torch.zeros(2)
    layer = Standardize(mean, torch.ones(2))
    mean.fill_(5)
    assert layer.mean.tolist() == [0.0, 0.0]


def test_logit_by_hand() -> None:
    x = torch.tensor([[0.0], [0.25], [1.0]], dtype=torch.float64)
    y, logdet = Logit(0.05).forward_with_logdet(x)
    p = 0.05 + 0.9 * x
    torch.testing.assert_close(y, torch.logit(p), rtol=1e-14, atol=0)
    torch.testing.assert_close(logdet, (0.9 / (p * (1 - p))).log().flatten(), rtol=1e-14, atol=0)


def test_logit_and_its_inverse_are_exact_in_the_tails() -> None:
    y = torch.tensor([[-700.0], [30.0]], dtype=torch.float64)
    x, logdet = Logit(0).inverse_with_logdet(y)
    torch.testing.assert_close(logdet, torch.tensor([-700.0, -30.0]).double(), rtol=1e-13, atol=0)
    assert x[0].item() == pytest.approx(math.exp(-700))
    tiny = torch.tensor([[1e-300]], dtype=torch.float64)
    assert Logit(0)(tiny).item() == pytest.approx(math.log(1e-300))


def test_the_inverse_of_alpha_0_is_the_sigmoid() -> None:
    y = torch.randn(3, 4)
    torch.testing.assert_close(Inverse(Logit(0))(y), torch.sigmoid(y))


def test_what_the_inverse_gives_can_come_in_again() -> None:
    y = torch.tensor([[-8.0, 8.0]], dtype=torch.float64)
    x = Logit().inverse(y)
    assert x.min() < 0 < 1 < x.max()
    torch.testing.assert_close(Logit()(x), y, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("alpha", "bad"), [(0.05, 1.2), (0.05, -0.1), (0.05, math.nan), (0.0, 0.0), (0.0, 1.0)])
def test_numbers_outside_are_counted_and_named(alpha: float, bad: float) -> None:
    x = torch.full((2, 3), 0.5)
    x[1, 2] = bad
    with pytest.raises(RangeError, match=r"1 of 6 outside, the first at index \(1, 2\)"):
        Logit(alpha)(x)
    with pytest.raises(RangeError, match="x / 255"):
        Logit(alpha).forward_with_logdet(x)


@pytest.mark.parametrize("alpha", [-0.1, 0.5, math.nan])
def test_logit_refuses(alpha: float) -> None:
    with pytest.raises(ConfigError, match="bad alpha"):
        Logit(alpha)
