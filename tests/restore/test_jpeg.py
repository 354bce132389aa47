"""JPEG's intervals against files that Pillow's encoder wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from invertible.errors import ConfigError, DataError, ShapeError
from invertible.restore._orientation import TURNS, as_stored, stored_piece, upright
from invertible.restore.operators import Jpeg, check_operator

SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0"]
SIZES = [(48, 64), (43, 61)]


def scene(size: tuple[int, int], low: float = 40, high: float = 215) -> Image.Image:
    """Smooth colours with a little noise; no pixel of a decoding at black or white unless low or high say so."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.stack([np.sin(x / 7 + y / 11), np.cos(x / 5 - y / 13), np.sin((x + y) / 9)], -1)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return Image.fromarray((low + (high - low) * (0.5 + 0.4 * waves + noise)).clip(0, 255).astype(np.uint8))


def tensor(picture: Image.Image) -> Tensor:
    pixels = np.atleast_3d(np.array(picture))
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).double() / 255


def grey_levels(errors: Tensor) -> float:
    return 255 * float(errors.mean()) ** 0.5


def saved(picture: Image.Image, path: Path, **options: object) -> Tensor:
    picture.save(path, **options)
    with Image.open(path) as decoded:
        return tensor(decoded)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [10, 60])
def test_the_original_of_a_file_fits_it(tmp_path: Path, size: tuple, subsampling: str, quality: int) -> None:
    original = scene(size)
    decoded = saved(original, tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    jpeg = Jpeg.from_file(tmp_path / "a.jpg")
    lost = grey_levels((jpeg(tensor(original)) - jpeg(decoded)) ** 2)
    assert lost > 0.8  # there was something to lose
    assert grey_levels(jpeg.misfit(jpeg(tensor(original)), decoded)) < 0.02 * lost
    assert grey_levels(jpeg.misfit(jpeg((tensor(original) + 0.1).clamp(0, 1)), decoded)) > 5


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_coefficients_are_the_file_s(tmp_path: Path, subsampling: str) -> None:
    original = scene((43, 61))
    decoded = saved(original, tmp_path / "a.jpg", quality=50, subsampling=subsampling)
    jpeg = Jpeg.from_file(tmp_path / "a.jpg")
    middles, halves = jpeg._intervals(decoded)
    steps = jpeg(tensor(original)) / (2 * halves)
    wrong = ((middles / (2 * halves)).round() != steps.round()).double().mean()
    assert wrong < 0.005  # the encoder rounds the colours to 8 bits first


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_decoded_file_fits_itself(tmp_path: Path, size: tuple, mode: str) -> None:
    decoded = saved(scene(size).convert(mode), tmp_path / "a.jpg", quality=30, subsampling="4:4:4")
    jpeg = Jpeg.from_file(tmp_path / "a.jpg")
    errors = jpeg.misfit(jpeg(decoded), decoded)
    # Where a block reaches beyond the picture, the encoder would fill it in its own way once more.
    assert errors.max() < 1e-9 if size == SIZES[0] else grey_levels(errors) < 1
    assert jpeg.n_measured(decoded) == len(decoded[0]) * 64 * -(-size[0] // 8) * -(-size[1] // 8)


def test_interpolated_colour_fits_nearly(tmp_path: Path) -> None:
    decoded = saved(scene((48, 64)), tmp_path / "a.jpg", quality=30)
    jpeg = Jpeg.from_file(tmp_path / "a.jpg")
    assert jpeg.sampling == (2, 2)
    assert grey_levels(jpeg.misfit(jpeg(decoded), decoded)) < 0.3


def test_progressive_files_hold_the_same(tmp_path: Path) -> None:
    original = scene((43, 64))
    saved(original, tmp_path / "a.jpg", quality=40, subsampling="4:4:4")
    decoded = saved(original, tmp_path / "b.jpg", quality=40, subsampling="4:4:4", progressive=True)
    one, other = (Jpeg.from_file(tmp_path / name)._intervals(decoded)[0] for name in ("a.jpg", "b.jpg"))
    assert torch.equal(one, other)


def test_cut_whites_do_not_bend_the_intervals(tmp_path: Path) -> None:
    original = scene((48, 64), -150, 400)
    decoded = saved(original, tmp_path / "a.jpg", quality=30, subsampling="4:4:4")
    jpeg, from_pixels = Jpeg.from_file(tmp_path / "a.jpg"), Jpeg(30, "4:4:4")
    exact = grey_levels(jpeg.misfit(jpeg(tensor(original)), decoded))
    assert exact < 0.25 * grey_levels(from_pixels.misfit(from_pixels(tensor(original)), decoded))
    assert exact < 0.3


@pytest.mark.parametrize("quality", [10, 75, 95])
def test_standard_tables_are_the_encoder_s(tmp_path: Path, quality: int) -> None:
    saved(scene((16, 16)), tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as picture:
        expected = [torch.tensor(picture.quantization[i]).view(8, 8) for i in (0, 1)]  # pyright: ignore
    ours = Jpeg(quality).tables * 255
    torch.testing.assert_close(ours, torch.stack(expected).double())
    assert quality != 75 or ours[0, 0, 7] != ours[0, 7, 0]  # rows are rows
    torch.testing.assert_close(Jpeg.from_file(tmp_path / "a.jpg").tables[:2] * 255, ours)


def test_without_a_file_the_decoded_pixels_tell(tmp_path: Path) -> None:
    original = scene((48, 64))
    decoded = saved(original, tmp_path / "a.jpg", quality=20, subsampling="4:4:4")
    jpeg = Jpeg(20, "4:4:4")
    assert grey_levels(jpeg.misfit(jpeg(tensor(original)), decoded)) < 0.1


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_file(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    original, exif = scene((40, 56)), Image.Exif()
    exif[0x0112] = orientation
    saved(original, tmp_path / "a.jpg", quality=40, subsampling="4:4:4", exif=exif)
    with Image.open(tmp_path / "a.jpg") as picture:
        decoded = tensor(ImageOps.exif_transpose(picture))
    wanted = upright(tensor(original), orientation)
    assert wanted.shape == decoded.shape
    assert (wanted - decoded).abs().mean() < 0.1
    torch.testing.assert_close(as_stored(wanted, orientation), tensor(original))
    jpeg = Jpeg.from_file(tmp_path / "a.jpg")
    check_operator(jpeg, decoded)
    assert grey_levels(jpeg.misfit(jpeg(wanted), decoded)) < 0.1
    piece = (slice(8, 32), slice(3, 29))
    rows, columns = stored_piece(*piece, (wanted.shape[2], wanted.shape[3]), orientation)
    torch.testing.assert_close(upright(tensor(original)[..., rows, columns], orientation), wanted[..., *piece])
    part = jpeg.crop(*piece)
    assert grey_levels(part.misfit(part(wanted[..., *piece]), decoded[..., *piece])) < 0.1
    assert grey_levels(part.misfit(part(1 - wanted[..., *piece]), decoded[..., *piece])) > 10


def test_pieces_without_a_file() -> None:
    jpeg, image = Jpeg(50), torch.rand(1, 3, 48, 50)
    part = jpeg.crop(slice(16, 48), slice(32, 50))
    assert part.n_measured(image[..., 16:48, 32:50]) == 32 * 24 + 2 * 16 * 16
    with pytest.raises(ConfigError, match="piece of a piece"):
        part.crop(slice(0, 16), slice(0, 16))


def test_files_that_are_none(tmp_path: Path) -> None:
    picture = scene((48, 64))
    picture.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no JPEG file.*denoise"):
        Jpeg.from_file(tmp_path / "a.png")
    with pytest.raises(DataError, match="no such file"):
        Jpeg.from_file(tmp_path / "b.jpg")
    picture.convert("CMYK").save(tmp_path / "c.jpg")
    with pytest.raises(DataError, match=r"unusual JPEG.*4 planes"):
        Jpeg.from_file(tmp_path / "c.jpg")
    picture.save(tmp_path / "d.jpg", keep_rgb=True)
    with pytest.raises(DataError, match=r"unusual JPEG.*RGB"):
        Jpeg.from_file(tmp_path / "d.jpg")
    picture.save(tmp_path / "e.jpg")
    whole = (tmp_path / "e.jpg").read_bytes()
    for length in (3, 100, 400, len(whole) // 2):
        (tmp_path / "e.jpg").write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a readable image"):
            Jpeg.from_file(tmp_path / "e.jpg")


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    saved(scene((48, 64)), tmp_path / "a.jpg")
    with pytest.raises(ShapeError, match="64x48 pixels"):
        Jpeg.from_file(tmp_path / "a.jpg")(torch.rand(1, 3, 64, 48))
    with pytest.raises(ShapeError, match="3 channels"):
        Jpeg.from_file(tmp_path / "a.jpg")(torch.rand(1, 1, 48, 64))
