"""Squeeze against torch's own, naive loops and its documented errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invertible.errors import ConfigError, ShapeError
from invertible.layers import Squeeze


def test_squeeze_by_channel_is_pixel_unshuffle() -> None:
    x = torch.randn(2, 3, 6, 9)
    assert torch.equal(Squeeze(3)(x), torch.pixel_unshuffle(x, 3))
    y = torch.randn(2, 18, 2, 3)
    assert torch.equal(Squeeze(3).inverse(y), torch.pixel_shuffle(y, 3))


def test_squeeze_by_offset_is_the_naive_loop() -> None:
    x = torch.randn(2, 3, 4, 9)
    y = Squeeze((2, 3), order="offset")(x)
    for i in range(2):
        for j in range(3):
            for c in range(3):
                assert torch.equal(y[:, (i * 3 + j) * 3 + c], x[:, c, i::2, j::3])


def test_squeeze_by_channel_is_the_naive_loop_in_3d() -> None:
    x = torch.randn(1, 2, 2, 4, 3)
    y = Squeeze((1, 2, 3))(x)
    for c in range(2):
        for j in range(2):
            for k in range(3):
                assert torch.equal(y[:, (c * 2 + j) * 3 + k], x[:, c, :, j::2, k::3])


def test_the_two_orders_differ_by_a_permutation_of_the_channels() -> None:
    x = torch.randn(1, 3, 4, 4)
    by_channel, by_offset = Squeeze(2)(x), Squeeze(2, order="offset")(x)
    assert not torch.equal(by_channel, by_offset)
    assert torch.equal(by_channel.reshape(1, 3, 4, 2, 2).transpose(1, 2).reshape(1, 12, 2, 2), by_offset)


@given(
    st.integers(0, 3),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=3),
    st.sampled_from(["channel", "offset"]),
)
def test_squeeze_of_any_shape(batch: int, channels: int, sizes: list[tuple[int, int]], order: str) -> None:
    squeeze = Squeeze(tuple(factor for factor, _ in sizes), order=order)
    x = torch.randn(batch, channels, *[factor * blocks for factor, blocks in sizes])
    y = squeeze(x)
    assert y.shape[2:] == tuple(blocks for _, blocks in sizes)
    assert sorted(y.flatten().tolist()) == sorted(x.flatten().tolist())
    assert torch.equal(squeeze.inverse(y), x)


@pytest.mark.parametrize(
    ("squeeze", "shape", "words"),
    [
        (
            Squeeze(2),
            (1, 3, 5, 4),
            r"expected spatial sizes that are multiples of \(2, 2\), got shape \(1, 3, 5, 4\)",
        ),
        (Squeeze(2), (1, 3, 4, 5), r"Try: pad or resize the input"),
        (Squeeze((1, 3)), (1, 3, 5, 4), r"multiples of \(1, 3\)"),
        (Squeeze(2), (3, 4, 4), r"expected 4 dimensions .*got shape \(3, 4, 4\).*Try: x.unsqueeze\(0\)"),
        (
            Squeeze(2, n_dims=1),
            (1, 3, 4, 4),
            r"expected 3 dimensions .*got shape \(1, 3, 4, 4\) and dtype float32$",
        ),
    ],
)
def test_bad_input(squeeze: Squeeze, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        squeeze(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 6, 2, 2), r"expected a multiple of 4 channels, got shape \(1, 6, 2, 2\)"),
        ((8, 2, 2), r"expected 4 dimensions .*got shape \(8, 2, 2\).*Try: x.unsqueeze\(0\)"),
    ],
)
def test_bad_output(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        Squeeze(2).inverse(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"factor": 0}, "expected whole numbers >= 1, got 0"),
        ({"factor": (2, -1)}, r"expected whole numbers >= 1, got \(2, -1\)"),
        ({"factor": ()}, r"expected whole numbers >= 1, got \(\)"),
        ({"n_dims": 0}, "bad factor"),
        ({"order": "rows"}, "expected 'channel' or 'offset', got 'rows'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Squeeze(**arguments)


def test_repr_tells_factors_and_order() -> None:
    assert repr(Squeeze((2, 3), order="offset")) == "Squeeze((2, 3), order='offset')"
