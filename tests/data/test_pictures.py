import numpy as np
import pytest
import torch
from PIL import Image

from invertible.data import image_file
from invertible.errors import ConfigError, DataError


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def read(path, channels, height, width):
    pixels, note = image_file(path, (channels, height, width))
    assert pixels.shape == (1, channels, height, width)
    assert pixels.dtype == torch.uint8
    return pixels[0].permute(1, 2, 0).numpy(), note


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_are_read_exactly(tmp_path, suffix):
    colours = noise(5, 7, 3)
    Image.fromarray(colours).save(tmp_path / f"a.{suffix}", lossless=True)
    found, note = read(tmp_path / f"a.{suffix}", 3, 5, 7)
    assert np.array_equal(found, colours)
    assert note is None


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path):
    Image.fromarray(noise(16, 16, 3)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert np.array_equal(read(tmp_path / "a.jpg", 3, 16, 16)[0], np.asarray(picture))


def test_grey_to_colour_and_back(tmp_path):
    Image.fromarray(noise(4, 4)).save(tmp_path / "grey.png")
    found, note = read(tmp_path / "grey.png", 3, 4, 4)
    assert np.array_equal(found, np.repeat(noise(4, 4)[..., None], 3, 2))
    assert note == "converted from grey to colour"
    Image.fromarray(found).save(tmp_path / "colour.png")
    found, note = read(tmp_path / "colour.png", 1, 4, 4)
    assert np.array_equal(found[..., 0], noise(4, 4))
    assert note == "converted from colour to grey"


def test_16_bits_are_scaled_and_rounded_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257], [32768, 65407, 65406, 65535]], dtype=np.uint16)
    expected = np.round(values.astype(float) * 255 / 65535)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        found, note = read(tmp_path / name, 1, 2, 4)
        assert found[..., 0].tolist() == expected.tolist()
        assert note == "scaled from 16 to 8 bits"


def test_1_bit(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", 1, 1, 2)[0].flatten().tolist() == [255, 0]


def test_palette(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    picture.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", 3, 1, 2)[0].tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_palette_with_transparency(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    picture.save(tmp_path / "a.png", transparency=0)
    found, note = read(tmp_path / "a.png", 3, 1, 2)
    assert found.tolist() == [[[0, 0, 0], [200, 100, 50]]]
    assert note == "transparency put on black"


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1)])
def test_transparency_is_composited_on_black(tmp_path, mode, channels):
    values = noise(6, 6, channels + 1)
    Image.fromarray(values).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
    found, note = read(tmp_path / "a.png", channels, 6, 6)
    exact = values[..., :channels].astype(float) * values[..., channels:] / 255
    assert np.abs(found - exact).max() <= 0.51
    assert note == "transparency put on black"


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read(tmp_path / "a.jpg", 3, 8, 8)[0][4, 4].tolist()
    assert red > 200
    assert green < 50
    assert blue < 50


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_exif_orientation(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(4, 6)).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(noise(4, 6), turn)
    found, note = read(tmp_path / "a.png", 1, *upright.shape)
    assert np.array_equal(found[..., 0], upright)
    assert note == (None if turn == 0 else "turned upright as its EXIF says")


def test_resizing_and_cutting_are_reported(tmp_path):
    Image.new("RGB", (64, 48), (9, 8, 7)).save(tmp_path / "a.png")
    found, note = read(tmp_path / "a.png", 3, 16, 16)
    assert (found == (9, 8, 7)).all()
    assert note == "cut to its centre 48x48 of 64x48; resized from 48x48 to 16x16"
    assert read(tmp_path / "a.png", 3, 48, 48)[1] == "cut to its centre 48x48 of 64x48"
    assert read(tmp_path / "a.png", 3, 24, 32)[1] == "resized from 64x48 to 32x24"


def test_the_centre_is_what_remains(tmp_path):
    values = np.zeros((2, 6), dtype=np.uint8)
    values[:, 2:4] = [10, 20]
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", 1, 2, 2)[0][..., 0].tolist() == [[10, 20]] * 2


def test_max_value(tmp_path):
    Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    pixels, note = image_file(tmp_path / "a.png", (1, 1, 3), max_value=16)
    assert pixels.flatten().tolist() == [0, 8, 16]
    assert note == "scaled to 0..16"


def test_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(DataError, match=r"a.png: not a readable image: expected PNG, JPEG, WebP, BMP or TIFF"):
        image_file(tmp_path / "a.png", (3, 8, 8))
    with pytest.raises(DataError, match=r"nothing.png: no such file"):
        image_file(tmp_path / "nothing.png", (3, 8, 8))
    with pytest.raises(DataError, match="no such file"):
        image_file(tmp_path, (3, 8, 8))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_a_truncated_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    whole = path.read_bytes()
    for n_bytes in (0, 20, len(whole) // 2):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(DataError, match=rf"a.{suffix}: not a readable image"):
            image_file(path, (3, 64, 64))


def test_values_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match=r"f.tiff: unknown pixel range: expected 8 or 16 bits, got floating point"):
        image_file(tmp_path / "f.tiff", (1, 2, 2))
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(DataError, match=r"i.tiff: unknown pixel range: expected 0 to 65535, got 70000 to 70000"):
        image_file(tmp_path / "i.tiff", (1, 2, 2))


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 0, 8)])
def test_impossible_shapes(shape):
    with pytest.raises(ConfigError, match="bad image shape: expected"):
        image_file("a.png", shape)
