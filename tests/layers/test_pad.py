"""InjectivePad: what it appends, and how closely `inverse` looks at what comes back."""

from __future__ import annotations

import pytest
import torch

from invertible.errors import ConfigError, NotInImageError, ShapeError
from invertible.layers import InjectivePad

DEFAULTS = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


def padded(padding: float, kept: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One element with channels (kept, -kept / 2, 0, padding)."""
    return torch.tensor([[kept, -kept / 2, 0.0, padding]], dtype=dtype)


def test_it_appends_zeros() -> None:
    x = torch.randn(2, 3, 4, 5)
    y = InjectivePad(3, 2)(x)
    assert torch.equal(y[:, :3], x)
    assert torch.equal(y[:, 3:], torch.zeros(2, 2, 4, 5))


def test_padding_with_nothing_gives_a_copy() -> None:
    x = torch.randn(2, 3)
    y = InjectivePad(3, 0)(x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", DEFAULTS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_default_tolerance_scales_with_what_is_kept(dtype: torch.dtype, sign: int, scale: float) -> None:
    pad, limit = InjectivePad(2, 2), DEFAULTS[dtype] * scale
    kept = pad.inverse(padded(0.9 * limit * sign, scale, dtype))
    assert kept.tolist() == [[scale, -scale / 2]]
    with pytest.raises(NotInImageError, match="InjectivePad cannot be undone"):
        pad.inverse(padded(1.1 * limit * sign, scale, dtype))


def test_tolerance_does_not_shrink_below_one() -> None:
    pad = InjectivePad(2, 2, tolerance=0.1)
    pad.inverse(padded(0.09, kept=0.001))
    with pytest.raises(NotInImageError):
        pad.inverse(padded(0.11, kept=0.001))


def test_negative_values_count_towards_the_scale() -> None:
    assert InjectivePad(2, 2, tolerance=0.1).inverse(padded(0.9, kept=-10.0)).tolist() == [[-10.0, 5.0]]


def test_tolerance_zero_accepts_only_zeros() -> None:
    pad = InjectivePad(2, 2, tolerance=0.0)
    assert pad.inverse(padded(0.0)).tolist() == [[1.0, -0.5]]
    with pytest.raises(NotInImageError):
        pad.inverse(padded(1e-30))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_padding_that_is_not_finite(value: float) -> None:
    with pytest.raises(NotInImageError, match=r"got (nan|inf)"):
        InjectivePad(2, 2).inverse(padded(value))


def test_one_bad_element_of_a_batch_is_enough() -> None:
    y = torch.zeros(4, 3, 2, 2)
    y[3, 2, 1, 1] = 0.01
    with pytest.raises(NotInImageError):
        InjectivePad(2, 1).inverse(y)


def test_message_tells_expected_got_and_what_to_try() -> None:
    with pytest.raises(NotInImageError) as caught:
        InjectivePad(2, 2, tolerance=0.01).inverse(padded(3.0, kept=8.0))
    assert str(caught.value).startswith(
        "InjectivePad cannot be undone: expected padding channels of at most 0.08, got 3. Try: "
    )
    assert "train/eval mode" in caught.value.hint


def test_both_directions_of_inverse_check() -> None:
    with pytest.raises(NotInImageError):
        InjectivePad(2, 2).inverse_with_logdet(padded(3.0))


@pytest.mark.parametrize(
    ("n_channels", "n_pad", "tolerance"),
    [(0, 1, None), (-1, 1, None), (1, -1, None), (1, 1, -0.1), (1, 1, float("nan"))],
)
def test_bad_arguments(n_channels: int, n_pad: int, tolerance: float | None) -> None:
    words = f"the others >= 0, got n_channels={n_channels}, n_pad={n_pad}, tolerance={tolerance}"
    with pytest.raises(ConfigError, match=words):
        InjectivePad(n_channels, n_pad, tolerance)


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 3), (3,)])
def test_wrong_number_of_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ShapeError, match=r"InjectivePad got the wrong number of channels: expected size 3 in dimension 1"
    ):
        InjectivePad(3, 2)(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"InjectivePad\.inverse got the wrong number of channels: expected size 5"):
        InjectivePad(3, 2).inverse(torch.zeros(shape))


def test_repr_tells_the_sizes() -> None:
    assert repr(InjectivePad(3, 2)) == "InjectivePad(3 + 2)"
