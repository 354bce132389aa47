"""Photographs through files: what is kept, what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from invertible.errors import ConfigError, DataError, NonFiniteError, ShapeError
from invertible.restore._orientation import TURNS
from invertible.restore.images import Photo, check_suffix, check_writable, read_image, write_image

RNG = np.random.default_rng(0)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


def png(values: np.ndarray) -> bytes:
    """A 16-bit PNG that uses every filter, written as the standard says."""
    height, width, channels = values.shape
    rows = values.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step, out, above = 2 * channels, bytearray(), np.zeros(2 * channels * width, int)
    for y, row in enumerate(rows):
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (row, above))
        guess = left + above - corner
        distances = np.abs(np.stack([guess - left, guess - above, guess - corner]))
        paeth = np.choose(distances.argmin(0), [left, above, corner])
        kind = y % 5
        out.append(kind)
        out += ((row - [0 * row, left, above, (left + above) // 2, paeth][kind]) % 256).astype(np.uint8).tobytes()
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, COLOURS[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(out))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def values_of(photo: Photo) -> np.ndarray:
    planes = photo.pixels if photo.alpha is None else torch.cat([photo.pixels, photo.alpha])
    return (planes.double() * (2**photo.bits - 1)).round().permute(1, 2, 0).numpy().astype(int)


def random_photo(channels: int, bits: int, size: tuple[int, int] = (5, 7)) -> Photo:
    values = torch.from_numpy(RNG.integers(0, 2**bits, (channels, *size))).float() / (2**bits - 1)
    return Photo(values[:-1], values[-1:], bits) if channels in (2, 4) else Photo(values, None, bits)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "bits"), [("png", 8), ("tif", 8), ("png", 16), ("tiff", 16)])
def test_every_value_survives(tmp_path: Path, channels: int, suffix: str, bits: int) -> None:
    photo = random_photo(channels, bits)
    write_image(tmp_path / f"a.{suffix}", photo.pixels, photo)
    back = read_image(tmp_path / f"a.{suffix}")
    assert back.bits == bits
    assert back.pixels.dtype == torch.float32
    if channels == 2 and suffix.startswith("tif"):  # written as RGB: few readers know the other
        assert torch.equal(back.pixels, photo.pixels.expand(3, -1, -1))
    else:
        assert torch.equal(back.pixels, photo.pixels)
    assert (back.alpha is None) == (photo.alpha is None)
    assert back.alpha is None or torch.equal(back.alpha, photo.alpha)
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_pngs_are_read_whole(tmp_path: Path, channels: int) -> None:
    values = RNG.integers(0, 65536, (11, 7, channels))
    (tmp_path / "a.png").write_bytes(png(values))
    photo = read_image(tmp_path / "a.png")
    assert photo.bits == 16
    np.testing.assert_array_equal(values_of(photo), values)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_our_16_bit_pngs_are_read_by_others(tmp_path: Path, channels: int) -> None:
    photo = random_photo(channels, 16)
    write_image(tmp_path / "a.png", photo.pixels, photo)
    with Image.open(tmp_path / "a.png") as picture:
        theirs = np.asarray(picture)
    ours = values_of(photo)
    np.testing.assert_array_equal(theirs, ours[..., 0] if channels == 1 else ours >> 8)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiffs_of_others(tmp_path: Path, channels: int, order: str, compression: str | None) -> None:
    import tifffile

    values = RNG.integers(0, 65536, (11, 7, channels)).astype(np.uint16)
    kind = "minisblack" if channels == 1 else "rgb"
    extra = ("unassalpha",) if channels == 4 else None
    stored = values[..., 0] if channels == 1 else values
    tifffile.imwrite(
        tmp_path / "a.tif", stored, byteorder=order, compression=compression, photometric=kind, extrasamples=extra
    )
    np.testing.assert_array_equal(values_of(read_image(tmp_path / "a.tif")), values)


PICTURES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "L": lambda picture: picture.convert("L"),
    "LA": lambda picture: picture.convert("LA"),
    "RGB": lambda picture: picture,
    "RGBA": lambda picture: picture.convert("RGBA"),
    "1": lambda picture: picture.convert("1"),
    "P": lambda picture: picture.quantize(8),
}


@pytest.mark.parametrize("mode", PICTURES)
def test_every_kind_of_png(tmp_path: Path, mode: str) -> None:
    picture = PICTURES[mode](Image.fromarray(RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)))
    picture.save(tmp_path / "a.png")
    wanted = {"1": "L", "P": "RGB"}.get(mode, mode)
    expected = np.asarray(picture.convert(wanted))
    photo = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(values_of(photo), expected.reshape(6, 9, -1))


def test_transparent_colours_become_alpha(tmp_path: Path) -> None:
    palette = Image.fromarray(RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)).quantize(4)
    palette.save(tmp_path / "a.png", transparency=0)
    photo = read_image(tmp_path / "a.png")
    assert photo.alpha is not None
    np.testing.assert_array_equal(photo.alpha[0].numpy() == 0, np.asarray(palette) == 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "A.JPEG"])
def test_lossy_files_are_nearly_the_same(tmp_path: Path, name: str) -> None:
    y, x = np.mgrid[:40, :50]
    pixels = torch.from_numpy(np.stack([x / 50, y / 40, (x + y) / 90])).float()
    write_image(tmp_path / name, pixels)
    assert (read_image(tmp_path / name).pixels - pixels).abs().mean() < 0.01


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_stand_upright_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif, picture = Image.Exif(), Image.fromarray(RNG.integers(0, 256, (16, 24, 3)).astype(np.uint8)).resize((48, 32))
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    picture.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert expected.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
    photo = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(values_of(photo), expected)
    assert ("turned upright as its EXIF says" in photo.notes) == (orientation != 1)
    write_image(tmp_path / "b.png", photo.pixels, photo)
    with Image.open(tmp_path / "b.png") as written:
        assert 0x0112 not in written.getexif()
    np.testing.assert_array_equal(values_of(read_image(tmp_path / "b.png")), expected)


def test_a_16_bit_tiff_is_turned_once(tmp_path: Path) -> None:
    import tifffile

    values = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=[(0x0112, 3, 1, 6, True)])
    photo = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(values_of(photo), np.rot90(values, -1))


@pytest.mark.parametrize(
    ("suffix", "bits"), [("jpg", 8), ("png", 8), ("tif", 8), ("webp", 8), ("png", 16), ("tif", 16)]
)
def test_profile_date_and_resolution_are_kept(tmp_path: Path, suffix: str, bits: int) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x0132], exif[0x0112] = "Camera 1", "2020:01:02 03:04:05", 8
    exif[0x8769] = {0x829A: 0.01, 0xA002: 99}
    exif[0x8825] = {1: "N", 2: (50.0, 1.0, 2.0)}
    picture = Image.fromarray(RNG.integers(0, 256, (16, 24, 3)).astype(np.uint8))
    picture.save(tmp_path / "a.jpg", exif=exif, icc_profile=PROFILE, dpi=(300, 300))
    photo = read_image(tmp_path / "a.jpg")
    write_image(tmp_path / f"b.{suffix}", photo.pixels, photo, bits)
    back = read_image(tmp_path / f"b.{suffix}")
    assert back.bits == bits
    assert back.metadata.icc == PROFILE
    if suffix != "webp":  # it has no place for a resolution
        assert back.metadata.dpi == pytest.approx((300, 300), abs=0.1)
    with Image.open(tmp_path / f"b.{suffix}") as written:
        found = written.getexif()
        assert found[0x0110] == "Camera 1"
        assert found[0x0132] == "2020:01:02 03:04:05"
        if suffix != "tif":
            assert float(found.get_ifd(0x8769)[0x829A]) == pytest.approx(0.01)
            assert 0xA002 not in found.get_ifd(0x8769)
            assert found.get_ifd(0x8825)[1] == "N"


def test_damaged_exif_is_left_out(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    photo = read_image(tmp_path / "a.png")
    assert photo.size == (8, 8)
    assert "EXIF data are damaged" in photo.notes[0]


def test_cmyk_loses_its_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=PROFILE)
    photo = read_image(tmp_path / "a.jpg")
    assert photo.metadata.icc is None
    assert "CMYK" in photo.notes[0]
    assert photo.pixels[0].min() > 0.9


def test_several_pictures_in_one_file(tmp_path: Path) -> None:
    pictures = [Image.new("L", (8, 8), level) for level in (10, 20)]
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:])
    photo = read_image(tmp_path / "a.tif")
    assert photo.notes == ("the first of 2 pictures in the file",)
    assert values_of(photo).max() == 10


def test_alpha_follows_an_enlargement(tmp_path: Path) -> None:
    photo = Photo(torch.rand(3, 4, 5), torch.ones(1, 4, 5))
    write_image(tmp_path / "a.png", torch.rand(3, 16, 20), photo)
    back = read_image(tmp_path / "a.png")
    assert back.size == (16, 20)
    assert back.alpha is not None
    assert back.alpha.min() == 1


def test_values_are_rounded_and_cut(tmp_path: Path) -> None:
    image = torch.tensor([[[-0.5, 0.4 / 255, 0.6 / 255, 1.5]]], requires_grad=True)
    write_image(tmp_path / "a.png", image)
    assert values_of(read_image(tmp_path / "a.png")).ravel().tolist() == [0, 0, 1, 255]


# --- errors -----------------------------------------------------------------------------------------------------


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "b.png")
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "c.png").write_bytes(png(RNG.integers(0, 65536, (64, 64, 3)))[:5000])
    Image.new("F", (4, 4)).save(tmp_path / "d.tif")
    for name, words in (("a.png", "not a readable"), ("b.png", "not a readable"), ("c.png", "not a readable"),
                        ("d.tif", "floating point"), ("none.png", "no such file"), ("", "no such file")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "bits", "has_alpha", "words"),
    [
        ("a.gif", 8, False, r"\.png, \.jpg"),
        ("a", 8, False, "unknown kind"),
        ("a.jpg", 16, False, "no 16 bits.*--bits 8"),
        ("a.webp", 16, False, "no 16 bits"),
        ("a.jpeg", 8, True, "no transparency"),
        ("a.png", 12, False, "8 or 16"),
    ],
)
def test_files_that_cannot_hold_it(tmp_path: Path, name: str, bits: int, has_alpha: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_suffix(tmp_path / name, bits, has_alpha)
    photo = random_photo(4 if has_alpha else 3, 8)
    with pytest.raises(ConfigError, match=words):
        write_image(tmp_path / name, photo.pixels, photo, bits)
    assert not list(tmp_path.iterdir())


def test_bad_pixels_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(NonFiniteError, match="first at index"):
        write_image(path, torch.full((3, 4, 4), float("nan")))
    for shape in ((4, 4), (2, 4, 4), (1, 3, 4, 4), (3, 0, 4)):
        with pytest.raises(ShapeError, match="1 or 3, height, width"):
            write_image(path, torch.zeros(shape))
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "deep" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path in (tmp_path, tmp_path / "file" / "a.png", Path("/proc/a.png")):
        with pytest.raises(DataError, match="cannot write"):
            check_writable(path)
    with pytest.raises(DataError, match="cannot write"):
        write_image(tmp_path / "file" / "a.png", torch.zeros(1, 2, 2))
