"""`invertible restore`, with a stand-in for the restoration: files in, files out, what is said, what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from invertible.cli import main
from invertible.cli._restore import add_restore, restore_with
from invertible.errors import ConfigError, DataError, InvertibleError
from invertible.restore.engine import INTERRUPTED, Progress
from invertible.restore.images import read_image
from invertible.restore.operators import Downsample, Identity, Jpeg, Mask, Operator, check_operator
from invertible.restore.restore import Restored
from invertible.restore.trajectory import Moment, Run, Trajectory


class StandIn:
    """Returns the picture it begins from; remembers what it was called with; interrupts itself if told to."""

    def __init__(self, interrupt_at: int | None = None, is_hard: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self.interrupt_at, self.is_hard = interrupt_at, is_hard

    def __call__(self, image: Tensor, operator: Operator, **options: Any) -> Restored:
        self.calls.append({"image": image, "operator": operator, **options})
        check_operator(operator, image.unsqueeze(0))
        is_interrupted = self.interrupt_at == len(self.calls)
        if is_interrupted and self.is_hard:
            raise KeyboardInterrupt
        options["on_step"](Progress(0, 5, 10, 0.5, 0.01, 0.1, None))
        before = operator.start(image.unsqueeze(0))[0]
        reason = INTERRUPTED if is_interrupted else "settled"
        moments = tuple(Moment(0, step, 1, 1 / step, None, 1 / step, None) for step in (1, 2, 3))
        trajectory = Trajectory((), moments, (Run(0, 2, 3, reason, 1.0, None, None, 0),), "rule")
        return Restored(before, None, trajectory, 2, reason, 1.0)


def photograph(size: tuple[int, int] = (40, 56), channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    planes = [np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 9), np.cos((x - y) / 4)]
    noise = np.random.default_rng(0).normal(0, 5, (*size, channels))
    values = (128 + 60 * np.stack(planes[:channels], -1) + noise).clip(0, 255).astype(np.uint8)
    return values[..., 0] if channels == 1 else values


def saved(folder: Path, name: str, values: np.ndarray, **options: Any) -> Path:
    Image.fromarray(values).save(folder / name, **options)
    return folder / name


def run(stand_in: StandIn, *words: object) -> None:
    parser = argparse.ArgumentParser()
    add_restore(parser)
    restore_with(parser.parse_args([str(word) for word in words]), stand_in)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("INVERTIBLE_TRACEBACK", raising=False)


def test_denoising_from_file_to_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = saved(tmp_path, "a.png", photograph()), tmp_path / "new" / "b.png"
    stand_in = StandIn()
    run(stand_in, image, "-o", out, "--task", "denoise", "--truth", image, "--seeds", 3, "--seconds", 60)
    (call,) = stand_in.calls
    assert isinstance(call["operator"], Identity)
    assert 2 / 255 < call["sigma"] < 8 / 255
    assert call["n_seeds"] == 3
    assert 50 < call["seconds"] <= 60
    assert torch.equal(call["truth"], read_image(image).pixels)
    assert torch.equal(read_image(out).pixels, read_image(image).pixels)
    beside = {"b.png", "b-before-after.png", "b-trajectory.png", "b-trajectory.json"}
    assert {path.name for path in out.parent.iterdir()} == beside
    said = capsys.readouterr()
    assert "estimated" in said.out
    assert "kept the picture of step 2 after 1 s: settled" in said.out
    assert "restored identical, SSIM 1.000" in said.out
    assert "step 5 of 10, at most 0 s left, loss 1.00e-02, stopping statistic 0.1" in said.err


def test_a_noise_level_that_is_given(tmp_path: Path) -> None:
    image, stand_in = saved(tmp_path, "a.png", photograph(channels=1)), StandIn()
    run(stand_in, image, "-o", tmp_path / "b.png", "--task", "denoise", "--sigma", 25)
    assert stand_in.calls[0]["sigma"] == 25 / 255
    assert stand_in.calls[0]["image"].shape == (1, 40, 56)


def test_inpainting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, hole = saved(tmp_path, "a.png", photograph()), np.zeros((40, 56), np.uint8)
    hole[10:20, 10:24] = 255
    mask, stand_in = saved(tmp_path, "m.png", hole), StandIn()
    run(stand_in, image, "-o", tmp_path / "b.png", "--task", "inpaint", "--mask", mask)
    run(stand_in, image, "-o", tmp_path / "b.png", "--task", "inpaint", "--mask", mask, "--mask-marks", "known")
    first, second = (call["operator"] for call in stand_in.calls)
    assert isinstance(first, Mask)
    assert torch.equal(first.known[0], torch.from_numpy(hole == 0))
    assert torch.equal(second.known, ~first.known)
    assert stand_in.calls[0]["sigma"] is None
    assert "6.2% of the pixels are missing" in capsys.readouterr().out


def test_super_resolution_keeps_alpha(tmp_path: Path) -> None:
    image, stand_in = saved(tmp_path, "a.png", photograph((20, 28), 4)), StandIn()
    run(stand_in, image, "-o", tmp_path / "b.webp", "--task", "superres", "--factor", 3)
    assert isinstance(stand_in.calls[0]["operator"], Downsample)
    photo = read_image(tmp_path / "b.webp")
    assert photo.size == (60, 84)
    assert photo.alpha is not None


def test_jpeg_is_taken_from_its_file_and_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = saved(tmp_path, "a.jpg", photograph(), quality=20, exif=exif)
    stand_in = StandIn()
    run(stand_in, image, "-o", tmp_path / "b.png", "--task", "jpeg")
    assert isinstance(stand_in.calls[0]["operator"], Jpeg)
    assert read_image(tmp_path / "b.png").size == (56, 40)
    with Image.open(tmp_path / "b.png") as written:
        assert 0x0112 not in written.getexif()


@pytest.mark.parametrize("task", ["denoise", "superres", "jpeg"])
def test_a_large_picture_goes_through_tiles(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    image, stand_in = saved(tmp_path, "a.jpg", photograph((90, 170)), quality=30), StandIn()
    words = ("--tile", 128, "--factor", 2) if task == "superres" else ("--tile", 64)
    run(stand_in, image, "-o", tmp_path / "b.png", "--task", task, "--seconds", 80, *words)
    assert len(stand_in.calls) > 4
    first, *_, last = (call["seconds"] for call in stand_in.calls)
    assert first == pytest.approx(80 / len(stand_in.calls), rel=0.1)
    assert last > 5 * first  # the stand-in takes no time: the last tile gets all that is left
    before, after = read_image(image).pixels, read_image(tmp_path / "b.png").pixels
    if task == "superres":
        before = Downsample(2).start(before.unsqueeze(0))[0]
        assert (before - after).abs().mean() < 0.01
    else:
        assert torch.equal(before, after)
    said = capsys.readouterr()
    assert "tiles of" in said.err
    assert "tile 2 of" in said.err
    assert f"{len(stand_in.calls)} tiles in" in said.out


def test_tiles_without_anything_to_do_are_left_out(tmp_path: Path) -> None:
    values, hole = photograph((64, 200)), np.zeros((64, 200), np.uint8)
    values[:, :70] = 255  # a sky that is white
    hole[20:30, 90:100] = 255
    image, mask, stand_in = saved(tmp_path, "a.png", values), saved(tmp_path, "m.png", hole), StandIn()
    run(stand_in, image, "-o", tmp_path / "b.png", "--task", "inpaint", "--mask", mask, "--tile", 64)
    assert 1 <= len(stand_in.calls) <= 2
    stand_in = StandIn()
    run(stand_in, image, "-o", tmp_path / "b.png", "--task", "denoise", "--sigma", 5, "--tile", 64)
    assert len(stand_in.calls) == 3
    assert torch.equal(read_image(tmp_path / "b.png").pixels, read_image(image).pixels)


def test_16_bits_are_kept(tmp_path: Path) -> None:
    from invertible.restore.images import write_image

    values = torch.from_numpy(photograph()).permute(2, 0, 1).float() / 255
    write_image(tmp_path / "a.tif", values * 0.987, bits=16)
    run(StandIn(), tmp_path / "a.tif", "-o", tmp_path / "b.png", "--task", "denoise", "--sigma", 5)
    assert read_image(tmp_path / "b.png").bits == 16
    assert torch.equal(read_image(tmp_path / "b.png").pixels, read_image(tmp_path / "a.tif").pixels)
    run(StandIn(), tmp_path / "a.tif", "-o", tmp_path / "b.jpg", "--task", "denoise", "--sigma", 5, "--bits", 8)
    with pytest.raises(ConfigError, match="16 bits"):
        run(StandIn(), tmp_path / "a.tif", "-o", tmp_path / "c.jpg", "--task", "denoise", "--sigma", 5)


def test_ctrl_c_writes_the_best_so_far(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = saved(tmp_path, "a.png", photograph((64, 160)))
    for words in ((), ("--tile", 64)):
        stand_in, out = StandIn(interrupt_at=1 if not words else 2), tmp_path / f"b{len(words)}.png"
        with pytest.raises(KeyboardInterrupt):
            run(stand_in, image, "-o", out, "--task", "denoise", "--sigma", 5, *words)
        assert torch.equal(read_image(out).pixels, read_image(image).pixels)
        assert len(stand_in.calls) == (1 if not words else 2)
        assert "is the best so far" in capsys.readouterr().err


def test_ctrl_c_before_there_is_anything_writes_nothing(tmp_path: Path) -> None:
    image = saved(tmp_path, "a.png", photograph())
    with pytest.raises(KeyboardInterrupt):
        run(StandIn(1, is_hard=True), image, "-o", tmp_path / "b.png", "--task", "denoise", "--sigma", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def bad_commands(folder: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    image = saved(folder, "a.png", photograph())
    text = folder / "text.png"
    text.write_text("no picture")
    cut = folder / "cut.png"
    cut.write_bytes(image.read_bytes()[:300])
    small = saved(folder, "small.png", np.zeros((4, 4), np.uint8))
    white = saved(folder, "white.png", np.full((40, 56), 255, np.uint8))
    alpha, out = saved(folder, "alpha.png", photograph(channels=4)), folder / "out" / "b.png"
    denoise = ("--task", "denoise")
    return {
        "no image": ((text, "-o", out, *denoise), "not a readable image"),
        "truncated": ((cut, "-o", out, *denoise), "not a readable image"),
        "missing": ((folder / "none.png", "-o", out, *denoise), "no such file"),
        "constant": ((white, "-o", out, *denoise), "all pixels are equal"),
        "no mask": ((image, "-o", out, "--task", "inpaint"), "--mask with --task inpaint"),
        "mask elsewhere": ((image, "-o", out, *denoise, "--mask", small), "--mask with --task inpaint"),
        "mask size": ((image, "-o", out, "--task", "inpaint", "--mask", small), "another size"),
        "all masked": ((image, "-o", out, "--task", "inpaint", "--mask", white), "hides every pixel"),
        "no folder": ((image, "-o", text / "b.png", *denoise), "cannot write"),
        "folder": ((image, "-o", folder / "new.png" / "", *denoise, "--truth", small), "another size"),
        "suffix": ((image, "-o", folder / "b.gif", *denoise), "unknown kind"),
        "alpha": ((alpha, "-o", folder / "b.jpg", *denoise), "no transparency"),
        "itself": ((image, "-o", image, *denoise), "would replace the image"),
        "truth itself": ((image, "-o", small, *denoise, "--truth", small), "would replace the truth"),
        "sigma": ((image, "-o", out, *denoise, "--sigma", 0), "no noise level"),
        "auto": ((image, "-o", out, "--task", "inpaint", "--mask", image, "--sigma", "auto"), "with pixels missing"),
        "factor": ((image, "-o", out, "--task", "superres", "--factor", 1), "nothing to enlarge"),
        "seconds": ((image, "-o", out, *denoise, "--seconds", 0), "no time"),
        "seeds": ((image, "-o", out, *denoise, "--seeds", 0), "nothing to do"),
        "tile": ((image, "-o", out, *denoise, "--tile", 8), "tiles too small"),
        "device": ((image, "-o", out, *denoise, "--device", "gpux"), "no such --device"),
        "no jpeg": ((image, "-o", out, "--task", "jpeg"), "no JPEG file"),
    }


def test_what_is_refused_writes_nothing(tmp_path: Path) -> None:
    commands = bad_commands(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name, (words, message) in commands.items():
        stand_in = StandIn()
        with pytest.raises(InvertibleError, match=message):
            run(stand_in, *words)
        assert not stand_in.calls, name
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_hole_as_large_as_a_tile(tmp_path: Path) -> None:
    hole = np.zeros((100, 200), np.uint8)
    hole[:, 10:] = 255
    image, mask = saved(tmp_path, "a.png", photograph((100, 200))), saved(tmp_path, "m.png", hole)
    with pytest.raises(ConfigError, match="a hole as large as a tile"):
        run(StandIn(), image, "-o", tmp_path / "b.png", "--task", "inpaint", "--mask", mask, "--tile", 64)


def test_a_truth_of_other_colours(tmp_path: Path) -> None:
    grey, colour = saved(tmp_path, "g.png", photograph(channels=1)), saved(tmp_path, "c.png", photograph())
    for image, truth, channels in ((grey, colour, 1), (colour, grey, 3)):
        stand_in = StandIn()
        run(stand_in, image, "-o", tmp_path / "b.png", "--task", "denoise", "--sigma", 5, "--truth", truth)
        assert stand_in.calls[0]["truth"].shape == (channels, 40, 56)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", str(tmp_path / "none.png"), "-o", str(tmp_path / "b.png"), "--task", "denoise"]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["restore", "a.png", "-o", "b.png", "--task", "denoise", "--sigma", "much"])
    assert ended.value.code == 2
    assert "neither a number nor auto" in capsys.readouterr().err


def test_an_unwritable_neighbour_is_found_before_the_work(tmp_path: Path) -> None:
    image, stand_in = saved(tmp_path, "a.png", photograph()), StandIn()
    (tmp_path / "b-trajectory.png").mkdir()
    with pytest.raises(DataError, match="a folder"):
        run(stand_in, image, "-o", tmp_path / "b.png", "--task", "denoise")
    assert not stand_in.calls
