"""Permute: any size, and its documented errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invertible.errors import ConfigError, ShapeError
from invertible.layers import Permute


@given(st.integers(1, 8), st.integers(0, 2**32))
def test_permutation_of_any_size(n: int, seed: int) -> None:
    layer, x = Permute.random(n, seed), torch.randn(2, n, 2)
    assert torch.equal(layer(x), x[:, layer.permutation.tolist()])
    assert torch.equal(layer.inverse(layer(x)), x)


def test_random_order_comes_from_its_own_seed() -> None:
    orders = [Permute.random(20, seed).permutation.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    state = torch.get_rng_state()
    Permute.random(20)
    assert torch.equal(torch.get_rng_state(), state)


def test_output_channel_i_is_input_channel_permutation_i() -> None:
    x = torch.tensor([[10.0, 11.0, 12.0, 13.0]])
    assert Permute([2, 0, 3, 1])(x).tolist() == [[12, 10, 13, 11]]
    assert Permute([2, 0, 3, 1]).inverse(x).tolist() == [[11, 13, 10, 12]]
    assert Permute.reverse(4)(x).tolist() == [[13, 12, 11, 10]]


def test_the_order_is_saved_with_the_weights() -> None:
    other = Permute.reverse(4)
    other.load_state_dict(Permute([2, 0, 3, 1]).state_dict())
    assert other.permutation.tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("permutation", "words"),
    [
        ([0, 0, 1], r"expected each of 0 ... n-1 once, got \[0, 0, 1\]"),
        ([1, 2, 3], r"got \[1, 2, 3\]"),
        ([0, -1], r"got \[0, -1\]"),
        ([], r"got \[\]"),
        (torch.tensor([0.0, 1.0]), "no permutation"),
        (torch.tensor([[0, 1]]), "no permutation"),
    ],
)
def test_bad_permutation(permutation: list[int] | torch.Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Permute(permutation)


def test_bad_dim() -> None:
    with pytest.raises(ConfigError, match="expected dim >= 1, got 0"):
        Permute([0, 1], dim=0)


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 3), (3,)])
def test_wrong_number_of_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"^Permute got .*expected size 3 in dimension 1, got shape .*Try: "):
        Permute([2, 1, 0])(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"^Permute\.inverse got the wrong number of channels: expected size 3"):
        Permute([2, 1, 0]).inverse(torch.zeros(shape))


def test_wrong_number_of_channels_in_another_dimension() -> None:
    with pytest.raises(ShapeError, match=r"expected size 3 in dimension 2, got shape \(2, 3, 4\)"):
        Permute([2, 1, 0], dim=2)(torch.zeros(2, 3, 4))


def test_repr_tells_the_size() -> None:
    assert repr(Permute.reverse(4)) == "Permute(4 channels, dim=1)"
