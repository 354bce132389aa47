"""Noise impedance: which networks resist noise, and that the control has none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments import NoiseImpedance, noise_impedance


def picture(side: int = 16) -> torch.Tensor:
    ramp = torch.linspace(0, 1, side)
    return torch.sin(6 * ramp)[:, None] * ramp + 0.3 * ramp


def smooth_network(channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    up = nn.Upsample(scale_factor=4, mode="bilinear")
    coarse = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(coarse, nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), up, nn.Conv2d(32, 1, 1))


def test_a_network_of_coarse_pixels_resists_noise() -> None:
    found = noise_impedance(smooth_network(), picture()[None], steps=150, quiet=True)
    assert found.half_steps["image"] is not None
    assert found.half_steps["uniform noise"] is None
    assert found.half_steps["shuffled pixels"] is None
    assert found.impedance == float("inf")
    assert found.losses["image"][-1] < 0.1 < found.losses["uniform noise"][-1]


def test_without_a_network_everything_goes_equally_fast() -> None:
    found = noise_impedance(smooth_network(), picture()[None], steps=150, quiet=True)
    assert found.control["image"] == found.control["shuffled pixels"]  # Adam does not see where a pixel lies
    noise, image = found.control["uniform noise"], found.control["image"]
    assert noise is not None
    assert image is not None
    assert 0.5 < noise / image < 2


def test_the_first_loss_is_that_of_the_given_weights() -> None:
    network = smooth_network()
    read = 0.1 * torch.rand(1, 4, 16, 16)
    found = noise_impedance(network, picture()[None], inputs=read, steps=1, quiet=True)
    with torch.no_grad():
        error = (network(read) - picture()).square().mean() / picture().var(correction=0)
    assert found.losses["image"][0] == pytest.approx(float(error), rel=1e-5)


def test_network_image_and_random_state_are_untouched() -> None:
    network, image = smooth_network(), picture()[None].requires_grad_()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    noise_impedance(network.eval(), image, steps=3, quiet=True)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert image.grad is None
    assert not network.training


def test_result_is_saved_drawn_and_repeatable(tmp_path) -> None:
    found = noise_impedance(smooth_network(), picture()[None], steps=3, quiet=True, output=torch.sigmoid)
    again = noise_impedance(smooth_network(), picture()[None], steps=3, quiet=True, output=torch.sigmoid)
    assert found.losses == again.losses
    found.save(tmp_path / "a.json")
    assert NoiseImpedance.load(tmp_path / "a.json").losses == found.losses
    assert len(found.plot().lines) == 5
    assert len(found.table) == 4 * 4


def test_a_budget_ends_it() -> None:
    found = noise_impedance(smooth_network(), picture()[None], steps=10**6, seconds=0.2, quiet=True)
    assert found.is_partial


def test_double_precision_under_no_grad() -> None:
    with torch.no_grad():
        found = noise_impedance(smooth_network().double(), picture()[None].double(), steps=3, quiet=True)
    assert found.losses["image"][-1] < found.losses["image"][0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"steps": 0}, ConfigError, "steps >= 1"),
        ({"learning_rate": 0.0}, ConfigError, "above 0"),
        ({"noise": float("inf")}, ConfigError, "above 0"),
        ({"image": torch.zeros(2, 1, 8, 8)}, ShapeError, "one picture"),
        ({"image": torch.zeros(1, 8, 8)}, ConfigError, "constant"),
        ({"image": torch.full((1, 8, 8), float("nan"))}, NonFiniteError, "picture"),
        ({"image": torch.rand(3, 16, 16)}, ShapeError, "another picture"),
        ({"network": nn.Linear(3, 3)}, ConfigError, "inputs="),
        ({"network": nn.Conv2d(1, 1, 1).requires_grad_(False), "learning_rate": 1e30}, NonFiniteError, "diverged"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], words: str) -> None:
    arguments = {"network": smooth_network(), "image": picture()[None], "steps": 20, "quiet": True} | change
    with pytest.raises(error, match=words):
        noise_impedance(arguments.pop("network"), arguments.pop("image"), **arguments)
