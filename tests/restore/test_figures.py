"""Pictures of a restoration, and the numbers in them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from invertible.errors import ShapeError
from invertible.restore.figures import detail, save_figure, strip, trajectory_figure
from invertible.restore.quality import quality
from invertible.restore.trajectory import Moment, Run, Trajectory


def trajectory(psnr: float | None, n_seeds: int = 2) -> Trajectory:
    moments = tuple(
        Moment(seed, step, 1, 1 / step, None, None if step == 1 else 2 / step, psnr)
        for seed in range(n_seeds)
        for step in range(1, 40, 10)
    )
    runs = tuple(Run(seed, 20 + seed, 31, "settled", 1.0, psnr, psnr, 0) for seed in range(n_seeds))
    return Trajectory((), moments, runs, "moving variance")


def test_quality_is_scikit_image_s() -> None:
    truth = torch.rand(3, 20, 30)
    found = quality(truth + 0.1 * (torch.rand(3, 20, 30) - 0.5), truth.requires_grad_())
    assert 25 < found.psnr < 35
    assert found.ssim is not None
    assert 0.9 < found.ssim < 1
    assert str(found) == f"{found.psnr:.2f} dB, SSIM {found.ssim:.3f}"
    assert math.isinf(quality(truth, truth).psnr)
    assert str(quality(truth, truth)) == "identical, SSIM 1.000"
    assert quality(torch.zeros(1, 3, 3), torch.ones(1, 3, 3)) == (0.0, None)
    with pytest.raises(ShapeError, match="differ"):
        quality(truth, truth[:, :5])


@pytest.mark.parametrize(("channels", "size"), [(1, (2, 3)), (3, (31, 80)), (1, (1000, 20))])
def test_a_strip(tmp_path: Path, channels: int, size: tuple) -> None:
    before, after = torch.rand(channels, *size), torch.rand(channels, *size)
    figure = strip({"input": before, "restored": after}, after)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == [f"input\n{quality(before, after)}", f"restored\n{quality(after, after)}", "truth"]
    save_figure(figure, tmp_path / "a.png", dpi=40)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 300
    with pytest.raises(ShapeError, match="different sizes"):
        strip({"input": before, "restored": after[:, :1]})


def test_the_detail_is_where_the_detail_is() -> None:
    image = torch.zeros(3, 200, 300)
    image[:, 120:150, 210:240] = torch.rand(3, 30, 30)
    top, left, side = detail(image)
    assert side == 40
    assert 105 <= top <= 125
    assert 195 <= left <= 215


@pytest.mark.parametrize("psnr", [None, 27.5])
def test_a_trajectory(tmp_path: Path, psnr: float | None) -> None:
    figure = trajectory_figure(trajectory(psnr))
    assert [axes.get_ylabel() for axes in figure.axes][1:] == ["moving variance", "PSNR (dB)"][: len(figure.axes) - 1]
    assert len(figure.axes) == (2 if psnr is None else 3)
    title = figure.axes[0].get_title()
    assert "seed 1: kept step 21 of 31" in title
    assert ("27.50 dB" in title) == (psnr is not None)
    assert all(len(axes.lines) == 4 for axes in figure.axes)
    save_figure(figure, tmp_path / "a.png", dpi=40)


def test_a_trajectory_of_nothing() -> None:
    assert len(trajectory_figure(Trajectory(())).axes) == 2
