"""The estimate of the noise, on photographs, against scikit-image's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.restoration import estimate_sigma as theirs
from torch import Tensor

from invertible.errors import NonFiniteError, ShapeError
from invertible.restore.noise_level import estimate_sigma

NAMES = ("astronaut", "chelsea", "camera", "coins", "gravel", "moon", "grass")


def photograph(name: str, side: int = 256) -> Tensor:
    pixels = np.atleast_3d(getattr(data, name)())
    top, left = ((n - side) // 2 for n in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1).double() / 255


def noisy(image: Tensor, sigma: float, clipped: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    image = image + sigma * torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return (image.clamp(0, 1) * 255).round() / 255 if clipped else image


def errors(sigma: float, clipped: bool) -> tuple[Tensor, Tensor]:
    """Ours and scikit-image's minus the truth, per photograph, in grey levels."""
    ours, reference = [], []
    for name in NAMES:
        image = noisy(photograph(name), sigma / 255, clipped)
        ours.append(255 * estimate_sigma(image) - sigma)
        reference.append(255 * theirs(image.permute(1, 2, 0).numpy(), channel_axis=-1, average_sigmas=True) - sigma)
    return torch.tensor(ours), torch.tensor(reference)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(("sigma", "allowed"), [(5, 0.9), (25, 0.6), (75, 3.5)])
def test_photographs_in_all_kinds_of_noise(sigma: float, allowed: float, clipped: bool) -> None:
    ours, reference = errors(sigma, clipped)
    assert ours.square().mean().sqrt() < allowed
    if sigma < 75 or clipped:  # without clipping and with much noise both are good
        assert ours.square().mean() < reference.square().mean()


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_a_flat_picture_is_exact(sigma: float) -> None:
    image = noisy(torch.full((3, 256, 256), 0.5, dtype=torch.float64), sigma)
    assert math.isclose(estimate_sigma(image), sigma, rel_tol=0.04)


def test_no_noise_is_none() -> None:
    assert estimate_sigma(torch.full((1, 32, 32), 0.3)) < 1e-6
    assert estimate_sigma(torch.ones(3, 16, 17)) < 1e-6


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (17, 300)])
def test_small_pictures(size: tuple) -> None:
    image = noisy(torch.full((3, *size), 0.5, dtype=torch.float64), 0.1)
    assert 0.05 < estimate_sigma(image.float()) < 0.15


def test_it_is_repeatable_and_leaves_the_input_alone() -> None:
    image = noisy(torch.full((1, 500, 500), 0.5, dtype=torch.float64), 0.1).requires_grad_()
    state, before = torch.random.get_rng_state(), image.detach().clone()
    assert estimate_sigma(image) == estimate_sigma(image)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(image, before)


def test_bad_pictures() -> None:
    with pytest.raises(ShapeError, match="8x8"):
        estimate_sigma(torch.zeros(3, 7, 20))
    with pytest.raises(ShapeError, match="8x8"):
        estimate_sigma(torch.zeros(1, 3, 20, 20))
    with pytest.raises(NonFiniteError, match="NaN"):
        estimate_sigma(torch.full((1, 9, 9), math.nan))
