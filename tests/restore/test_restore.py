"""The engine: what is fitted, what is kept, when it stops, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from invertible.errors import ConfigError, NonFiniteError, RangeError, ShapeError
from invertible.restore import (
    NETWORKS,
    Discrepancy,
    Downsample,
    Jpeg,
    Mask,
    MovingVariance,
    Pyramid,
    Settings,
    Sight,
    Trajectory,
    WindowedVariance,
    as_operator,
    restore,
)
from invertible.restore.clipping import clipped_moments

SHORT = Settings(steps=30, coarse_steps=20, precision="float32")


def picture(height: int = 24, width: int = 32, channels: int = 3) -> torch.Tensor:
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    waves = [0.5 + 0.4 * torch.sin(5 * (k + 1) * columns + 3 * rows) for k in range(channels)]
    return torch.stack(waves)


def noisy(sigma: float = 0.15, **size: int) -> torch.Tensor:
    clean = picture(**size)
    return (clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def mean_square(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean())


def test_noise_is_taken_away_and_the_discrepancy_stops() -> None:
    measured, clean = noisy(0.2, height=48, width=64), picture(48, 64)
    settings = Settings(steps=400, coarse_steps=60, input_noise=(0.3, 0.8), precision="float32")
    found = restore(measured, sigma=0.2, truth=clean, settings=settings)
    assert mean_square(found.image, clean) < 0.25 * mean_square(measured, clean)
    assert "discrepancy" in found.stop_reason
    run = found.trajectory.runs[0]
    assert run.psnr is not None
    assert run.psnr == pytest.approx(-10 * math.log10(mean_square(found.image.clamp(0, 1), clean)), abs=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(16, 16), (17, 33)])
def test_every_network_runs_on_every_size(network: str, size: tuple[int, int]) -> None:
    settings = Settings(steps=3, coarse_steps=1)
    found = restore(noisy(height=size[0], width=size[1], channels=1), sigma=0.15, network=network, settings=settings)
    assert found.image.shape == (1, *size)
    assert found.image.isfinite().all()
    assert found.uncertainty is None


def test_a_network_of_ones_own_is_copied() -> None:
    network = nn.Conv2d(32, 3, 3, padding=1)
    before = network.weight.detach().clone()
    restore(noisy(), sigma=0.1, network=network, settings=SHORT)
    assert torch.equal(network.weight, before)


def test_one_seed_is_one_result_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, second = (restore(noisy(), sigma=0.15, settings=SHORT, seed=3) for _ in range(2))
    other = restore(noisy(), sigma=0.15, settings=SHORT, seed=4)
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.image, other.image)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_are_averaged_and_their_spread_is_told() -> None:
    both = restore(noisy(), sigma=0.15, settings=SHORT, n_seeds=2)
    single = [restore(noisy(), sigma=0.15, settings=SHORT, seed=seed).image for seed in (0, 1)]
    torch.testing.assert_close(both.image, (single[0] + single[1]) / 2)
    assert both.uncertainty is not None
    torch.testing.assert_close(both.uncertainty, torch.stack(single).std(0).mean(0))
    assert [run.seed for run in both.trajectory.runs] == [0, 1]


def test_known_pixels_stay_and_holes_are_filled() -> None:
    clean = picture(48, 64)
    known = torch.rand(48, 64, generator=torch.Generator().manual_seed(1)) < 0.6
    measured = torch.where(known, clean, torch.nan)
    found = restore(measured, Mask(known), settings=Settings(steps=120, coarse_steps=50, stop="never"))
    assert torch.equal(found.image[:, known], clean[:, known])
    filled = torch.where(known, clean, clean.mean((1, 2), keepdim=True))
    assert mean_square(found.image, clean) < 0.2 * mean_square(filled, clean)


def test_super_resolution_has_the_larger_size_and_explains_the_small_picture() -> None:
    small = Downsample(2)(picture(32, 40)[None])[0]
    found = restore(small, Downsample(2), settings=Settings(steps=100, coarse_steps=50, stop="never"))
    assert found.image.shape == (3, 32, 40)
    assert mean_square(Downsample(2)(found.image[None])[0], small) < 3e-3


def test_operators_of_ones_own_and_jpeg_are_fitted() -> None:
    darker = as_operator(lambda x: 0.5 * x)
    found = restore(0.5 * picture(), darker, settings=Settings(steps=150, coarse_steps=50, stop="never"))
    assert mean_square(found.image, picture()) < 0.02
    assert restore(noisy(), Jpeg(30, pull=0.3), settings=SHORT).image.shape == (3, 24, 32)


def test_the_trajectory_is_complete_and_is_saved(tmp_path) -> None:
    seen = []
    found = restore(noisy(), sigma=0.15, settings=SHORT, on_step=seen.append, truth=picture())
    assert [moment.step for moment in found.trajectory.moments] == [progress.step for progress in seen]
    assert {moment.factor for moment in found.trajectory.moments} == {1, 2}
    found.trajectory.save(tmp_path / "way.json")
    assert Trajectory.load(tmp_path / "way.json").table == found.trajectory.table
    assert found.trajectory.plot().get_xlabel() == "step"


def test_time_runs_out_with_the_best_so_far() -> None:
    found = restore(noisy(), sigma=0.15, settings=Settings(steps=10**6, stop="never"), seconds=2.0)
    assert "time limit of" in found.stop_reason
    assert found.image.isfinite().all()
    assert any("more time" in finding.sentence for finding in found.trajectory.findings)
    assert {moment.factor for moment in found.trajectory.moments} == {1, 2}


def test_too_little_time_is_an_error_not_a_picture() -> None:
    with pytest.raises(ConfigError, match="too little time"):
        restore(noisy(height=64, width=64), sigma=0.15, seconds=1e-4)


@pytest.mark.parametrize("at", [1, 31])
def test_ctrl_c_gives_the_best_so_far(at: int) -> None:
    def press(progress) -> None:
        if progress.step >= at:
            raise KeyboardInterrupt

    found = restore(noisy(), sigma=0.15, settings=SHORT, n_seeds=2, on_step=press)
    assert found.stop_reason == "interrupted"
    assert len(found.trajectory.runs) == 1
    assert found.image.shape == (3, 24, 32)


def test_a_jump_of_the_loss_is_taken_back() -> None:
    class Jumps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls = nn.Conv2d(32, 1, 1), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            made = self.conv(x)
            return made + 50 if 95 < self.calls < 110 else made - 50 * self.training * 0

    found = restore(noisy(channels=1) * 0.2, sigma=0.15, network=Jumps, settings=Settings(steps=200, stop="never"))
    assert found.trajectory.runs[0].n_reverts == 1
    assert any("jumped" in finding.sentence for finding in found.trajectory.findings)


def test_clipped_moments_are_those_of_clipped_noise() -> None:
    levels = torch.tensor([-0.1, 0.0, 0.05, 0.5, 0.97, 1.2], dtype=torch.float64)
    draws = 0.2 * torch.randn(400_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = (levels + draws).clamp(0, 1)
    mean, variance = clipped_moments(levels, 0.2)
    torch.testing.assert_close(mean, seen.mean(0), atol=1.5e-3, rtol=0)
    torch.testing.assert_close(variance, seen.var(0), atol=3e-4, rtol=0)
    x = levels.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_moments(x, 0.2), (x,))


def test_the_window_s_variance_is_the_dense_one() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(1, 1, 4, 5, generator=generator) / (1 + abs(k - 12)) for k in range(25)]
    rule, values = WindowedVariance(window=6, patience=7), []
    for k, seen in enumerate(pictures):
        rule.see(Sight(k + 1, seen, seen))
        values.append(rule.statistic)
        if k >= 5:
            window = torch.stack(pictures[k - 5 : k + 1]).double()
            assert rule.statistic == pytest.approx(float((window - window.mean(0)).square().mean()), rel=1e-6)
    assert all(map(math.isnan, values[:5]))
    assert rule.best_step == 6 + min(range(len(values[5:])), key=lambda i: values[5 + i])


def test_the_moving_variance_follows_its_recursion_and_waits() -> None:
    rule = MovingVariance(rate=0.5, patience=3)
    mean = variance = 0.0
    for k in range(12):
        value = 1.0 if k < 6 else float(k)
        rule.see(Sight(k + 1, torch.full((1, 1, 2, 2), value), torch.zeros(1, 1, 2, 2)))
        if not k:
            mean = value
            continue
        deviation = value - mean
        mean += 0.5 * deviation
        variance = 0.5 * (variance + 0.5 * deviation**2)
        if k >= 4:
            assert rule.statistic == pytest.approx(variance)
    assert rule.best_step == 5
    assert "no better for 3 steps" in rule.reason


def test_the_discrepancy_stops_at_its_ratio() -> None:
    rule, blank = Discrepancy(0.9), torch.zeros(1, 1, 2, 2)
    assert rule.see(Sight(1, blank, blank, 1.5))
    assert not rule.reason
    assert rule.see(Sight(2, blank, blank, 0.89))
    assert "0.89" in rule.reason
    with pytest.raises(ConfigError, match="noise level"):
        rule.see(Sight(3, blank, blank))


def test_a_pyramid_grows_from_its_coarse_picture() -> None:
    pyramid = Pyramid((40, 56), channels=1).eval()
    inputs = pyramid.draw((40, 56), torch.Generator().manual_seed(0))
    coarse, full = pyramid(pyramid.coarser(inputs, 2)), pyramid(inputs)
    up = nn.functional.interpolate(torch.logit(coarse), size=(40, 56), mode="bilinear").sigmoid()
    torch.testing.assert_close(full, up, atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="no such scale"):
        pyramid.coarser(inputs, 16)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": torch.full((3, 16, 16), 0.5)}, RangeError, "constant"),
        ({"image": 255 * torch.rand(3, 16, 16)}, RangeError, "image / 255"),
        ({"image": torch.rand(2, 3, 16, 16)}, ShapeError, "one picture"),
        ({"image": torch.full((3, 16, 16), math.nan)}, NonFiniteError, "picture to restore"),
        ({"sigma": 25.0}, ConfigError, "sigma / 255"),
        ({"n_seeds": 0}, ConfigError, "n_seeds >= 1"),
        ({"image": torch.rand(64, 64, 3)}, ShapeError, "permute"),
        ({"image": torch.rand(3, 1, 1)}, ShapeError, "too small"),
        ({"truth": 255 * torch.rand(3, 16, 16)}, RangeError, "as truth"),
        ({"truth": torch.full((3, 16, 16), math.nan)}, NonFiniteError, "truth"),
        ({"seconds": -1.0}, ConfigError, "seconds > 0"),
        ({"network": "unet"}, ConfigError, "skip"),
        ({"network": nn.Conv2d(32, 3, 3)}, ShapeError, "another picture"),
        ({"truth": torch.rand(3, 8, 8)}, ShapeError, "truth"),
        ({"sigma": None, "settings": Settings(stop="discrepancy")}, ConfigError, "noise level"),
        ({"operator": Mask(torch.ones(8, 8))}, ShapeError, "differ in size"),
        ({"operator": as_operator(lambda x: x.detach())}, ConfigError, "not differentiable"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], words: str) -> None:
    arguments = {"image": noisy(height=16, width=16), "sigma": 0.1, "settings": SHORT} | change
    with pytest.raises(error, match=words):
        restore(arguments.pop("image"), arguments.pop("operator", None), **arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"input_noise": (-1.0, 0.0)}, "input_noise >= 0"),
        ({"average": 1.0}, "average < 1"),
        ({"ratio": 0.0}, "ratio > 0"),
        ({"decay": 2.0}, "decay <= 1"),
        ({"coarse_steps": -1}, "coarse_steps >= 0"),
    ],
)
def test_bad_settings(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(**change)
