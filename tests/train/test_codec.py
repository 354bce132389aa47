"""Pictures through an exact network and back: every pixel the same, or an error and no picture."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from invertible._files import read_tensors
from invertible.errors import CheckpointError, ConfigError, DataError, RangeError, ReconstructionError
from invertible.lattice import Lattice
from invertible.train import Encoding, decode_image, encode_image, load_run, read_recipe, train
from invertible.train.codec import _coder
from invertible.train.encoding import fingerprint
from invertible.train.lossless import read_lossless, write_lossless
from invertible.train.run import Run
from invertible.train.tiles import batch_of, cut, join, n_tiles

RANDOM = np.random.default_rng(0)
BIJECTIVE = {"n_blocks": [1, 1], "strides": [2, 2], "channels": None, "hidden": [8, 8], "init_squeeze": 2}
PADDED = {"n_blocks": [2, 2], "strides": [1, 2], "channels": [8, 32], "hidden": [8, 8], "init_squeeze": 2}


def trained(folder: Path, arguments: dict, *overrides: str) -> Run:
    recipe = read_recipe("irevnet/digits", ["--training.epochs=2", "--data.n_train=400", *overrides])
    recipe.model.name, recipe.model.arguments = "irevnet", {"in_shape": [1, 8, 8], "dropout": 0.0} | arguments
    train(recipe, folder, quiet=True)
    return load_run(folder, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("codec") / "run", BIJECTIVE)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network for three channels, trained on grey pictures saved in colour."""
    folder = tmp_path_factory.mktemp("colour")
    for i in range(40):
        path = folder / "pictures" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (8, 16, 3), dtype=np.uint8)).save(path)
    recipe = read_recipe("irevnet/digits", ["--training.epochs=1", "--training.batch_size=8", "--data.crop=0"])
    recipe.model.name = "irevnet"
    recipe.model.arguments = {"in_shape": [3, 8, 16], "n_classes": 2, "dropout": 0.0} | BIJECTIVE
    recipe.data.name, recipe.data.data_dir = "folder", str(folder / "pictures")
    train(recipe, folder / "run", quiet=True)
    return load_run(folder / "run", device="cpu")


def picture(mode: str, width: int, height: int) -> Image.Image:
    n_bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = RANDOM.integers(0, 256, (height, width, n_bands), dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if n_bands == 1 else pixels)


def there_and_back(run: Run, image: Image.Image, folder: Path, suffix: str = ".png") -> Image.Image:
    image.save(folder / "before.png")
    encoding, _ = encode_image(run, folder / "before.png")
    encoding.save(folder / "z.safetensors")
    pixels, mode = decode_image(load_run(run.folder, device="cpu"), Encoding.load(folder / "z.safetensors"))
    write_lossless(pixels, mode, folder / f"after{suffix}")
    with Image.open(folder / f"after{suffix}") as after:
        after.load()
        return after


# Round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 9), (200, 131)])
@pytest.mark.parametrize("network", ["run", "coloured"])
def test_every_pixel_comes_back(
    network: str, mode: str, size: tuple[int, int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = picture(mode, *size)
    after = there_and_back(request.getfixturevalue(network), before, tmp_path)
    assert (after.mode, after.size) == (mode, size)
    assert np.array_equal(np.array(after), np.array(before))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_tiff_keeps_them_too(run: Run, mode: str, tmp_path: Path) -> None:
    before = picture(mode, 9, 5)
    assert np.array_equal(np.array(there_and_back(run, before, tmp_path, ".tif")), np.array(before))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**31))
def test_any_pixels_any_size(width: int, height: int, bands: int, seed: int) -> None:
    pixels = torch.randint(256, (bands, height, width), generator=torch.Generator().manual_seed(seed)).byte()
    for shape in ((1, 8, 8), (3, 4, 6), (2, 5, 7)):
        tiles = cut(pixels, shape)
        assert tiles.shape == (n_tiles(bands, (height, width), shape), *shape)
        assert torch.equal(join(tiles, bands, (height, width)), pixels)


def test_tiles_repeat_the_edge_and_deal_out_bands() -> None:
    pixels = torch.arange(4 * 2 * 3).view(4, 2, 3)
    tiles = cut(pixels, (3, 2, 2))
    assert torch.equal(tiles[0], pixels[:3, :, :2])
    assert torch.equal(tiles[1], pixels[:3][:, :, [2, 2]])
    assert torch.equal(tiles[2], pixels[[3, 3, 3], :, :2])
    assert batch_of(tiles, 3, 3).shape == (3, 3, 2, 2)
    assert torch.equal(batch_of(tiles, 3, 3), tiles[[3, 3, 3]])


def test_a_padded_network_whose_inverse_explodes_in_plain_float32(tmp_path: Path) -> None:
    # Channels of zeros have no variance, and BatchNorm amplifies rounding 300-fold: docs/results.md.
    metrics = {}
    for exact in ("false", "true"):
        run = trained(tmp_path / exact, PADDED, "--training.epochs=4", "--data.n_train=null", f"--model.exact={exact}")
        metrics[exact] = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["false"]["reconstruction_dtype"] == "float64", "the test needs a network that explodes"
    assert not metrics["false"]["bit_exact"]
    assert metrics["true"]["reconstruction_dtype"] == "float32"
    assert metrics["true"]["bit_exact"]
    assert metrics["true"]["reconstruction_max_abs_error"] == metrics["true"]["reconstruction_mean_abs_error"] == 0
    before = picture("RGB", 30, 20)
    assert np.array_equal(np.array(there_and_back(load_run(tmp_path / "true"), before, tmp_path)), np.array(before))


def test_all_batches_but_none_beyond_the_last_tile(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("invertible.train.codec._LARGEST_BATCH", 5)
    sizes = []
    run.classifier.body.register_forward_hook(lambda module, x, y: sizes.append(len(y)))
    before = picture("L", 50, 17)
    try:
        after = there_and_back(run, before, tmp_path)
    finally:
        run.classifier.body._forward_hooks.clear()
    assert sizes == [5] * 5, "21 tiles in batches of one size"
    assert np.array_equal(np.array(after), np.array(before))
    assert Encoding.load(tmp_path / "z.safetensors").values.shape == (21, 64, 1, 1)


def test_the_threads_are_those_written_down_and_set_back(run: Run, tmp_path: Path) -> None:
    picture("L", 9, 9).save(tmp_path / "a.png")
    torch.set_num_threads(2)
    try:
        encoding, _ = encode_image(run, tmp_path / "a.png")
    finally:
        torch.set_num_threads(1)
    assert encoding.description.threads == 2
    seen = []
    block = next(member for member in run.classifier.body if hasattr(member, "residual"))
    hook = block.residual.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    decode_image(run, encoding)
    hook.remove()
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1


# Pictures -----------------------------------------------------------------------------------------------------------


def test_pictures_that_convert_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.save(path)
    pixels, mode, changes = read_lossless(path)
    assert (mode, pixels[:, 0, 0].tolist(), changes) == (
        "RGB",
        [4, 5, 6],
        ["converted from mode P to RGB, all colours kept"],
    )
    palette.save(path, transparency=1)
    pixels, mode, _ = read_lossless(path)
    assert (mode, pixels[:, 0, 0].tolist()) == ("RGBA", [4, 5, 6, 0])
    Image.new("L", (2, 1), 9).save(path, transparency=9)
    pixels, mode, _ = read_lossless(path)
    assert (mode, pixels[:, 0, 0].tolist()) == ("LA", [9, 0])
    Image.new("1", (2, 1), 1).save(path)
    pixels, mode, _ = read_lossless(path)
    assert (mode, pixels[:, 0, 0].tolist()) == ("L", [255])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    before = picture("RGB", 6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    before.save(tmp_path / "a.png", exif=exif)
    pixels, _, changes = read_lossless(tmp_path / "a.png")
    assert changes == ["turned upright as its EXIF says"]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.rot90(np.array(before), -1))


def deep_colour_png(path: Path) -> None:
    """A PNG with 16 bits per channel, which Pillow cannot write but reads as 8 bits."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header, rows = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), zlib.compress(b"\0" + b"\1\2\3\4\5\6")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_pictures_that_would_lose_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RANDOM.integers(0, 65536, (2, 2), dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"its pixels would not survive: expected 8 bits, .*got mode I;16"):
        read_lossless(path)
    deep_colour_png(path)
    with pytest.raises(DataError, match=r"its pixels would not survive: .*got mode RGB, 16 bits"):
        read_lossless(path)
    Image.new("CMYK", (2, 2)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"got mode CMYK"):
        read_lossless(tmp_path / "a.jpg")
    frames = [Image.new("L", (2, 2), i) for i in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"too many pictures: expected one, got 3 pictures"):
        read_lossless(tmp_path / "a.tif")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable image"):
        read_lossless(tmp_path / "b.png")


def test_a_jpeg_s_pixels_are_those_it_decodes_to(run: Run, tmp_path: Path) -> None:
    picture("RGB", 20, 20).save(tmp_path / "a.jpg")
    encoding, _ = encode_image(run, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as decoded:
        assert np.array_equal(decode_image(run, encoding)[0].permute(1, 2, 0).numpy(), np.array(decoded))


# Whatever was changed is noticed ------------------------------------------------------------------------------------


@pytest.fixture
def encoding(run: Run, tmp_path: Path) -> Encoding:
    picture("RGB", 21, 13).save(tmp_path / "a.png")
    return encode_image(run, tmp_path / "a.png")[0]


@pytest.mark.parametrize("step", [1, -1, 1000, 2**23, -(2**31)])
def test_a_changed_number(run: Run, encoding: Encoding, step: int) -> None:
    decode_image(run, encoding)
    for place in (0, encoding.values.numel() // 2, encoding.values.numel() - 1):
        values = encoding.values.clone()
        values.view(-1)[place] += step
        with pytest.raises(ReconstructionError, match=r"did not come back: .*Try: the file as .*: it was changed"):
            decode_image(run, replace(encoding, values=values))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"pixels": "0" * 64}, ReconstructionError),
        ({"width": 22}, ReconstructionError),  # as many tiles
        ({"width": 220}, CheckpointError),
        ({"mode": "L"}, CheckpointError),
        ({"k": 17}, CheckpointError),
        ({"batch_size": 10**9}, CheckpointError),
        ({"network": "0" * 64}, CheckpointError),
    ],
)
def test_a_changed_description(run: Run, encoding: Encoding, change: dict, error: type[Exception]) -> None:
    changed = replace(encoding, description=replace(encoding.description, **change))
    with pytest.raises(error):
        decode_image(run, changed)


def test_other_circumstances_are_named(run: Run, encoding: Encoding) -> None:
    about = replace(encoding.description, torch="1.0", hardware="ABACUS", pixels="0" * 64)
    words = r"expected the pixels encoded with torch 1\.0, 1 thread, cpu \(ABACUS\), got others with .*Try: decode it"
    with pytest.raises(ReconstructionError, match=words):
        decode_image(run, replace(encoding, description=about))


def test_sums_that_do_not_repeat_are_an_error_and_no_pixels(run: Run, encoding: Encoding) -> None:
    # What another device or number of threads may do: the last bit of one block's sums differs.
    body = run.classifier.body
    block = next(member for member in body if hasattr(member, "residual"))
    hook = block.residual.register_forward_hook(lambda module, x, y: y + body.lattice.step)
    try:
        with pytest.raises(ReconstructionError, match="the picture did not come back"):
            decode_image(run, encoding)
    finally:
        hook.remove()


def test_the_network_is_looked_at_first(run: Run, encoding: Encoding, tmp_path: Path) -> None:
    other = trained(tmp_path / "other", BIJECTIVE, "--training.seed=1")
    words = rf"another network: expected the network {fingerprint(run)[:16]}, got {fingerprint(other)[:16]} in "
    with pytest.raises(CheckpointError, match=words):
        decode_image(other, encoding)
    text = (run.folder / "recipe.yaml").read_text()
    assert "exact: true" in text
    coarse = replace(run, recipe=read_recipe(run.folder / "recipe.yaml", ["--model.exact", "14"]))
    assert fingerprint(coarse) != fingerprint(run)
    assert fingerprint(load_run(run.folder, device="cpu")) == fingerprint(run)


@pytest.mark.parametrize("n", [0, 7, 100, -1])
def test_a_truncated_file(encoding: Encoding, tmp_path: Path, n: int) -> None:
    path = tmp_path / "z.safetensors"
    encoding.save(path)
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(CheckpointError, match=r"z\.safetensors is corrupt"):
        Encoding.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 10**6}, "threads=1000000"),
        ({"threads": 0}, "threads=0"),
        ({"height": -1}, "height=-1"),
        ({"height": True}, "height=True"),
        ({"width": "9"}, "width='9'"),
        ({"mode": "CMYK"}, "mode='CMYK'"),
        ({"extra": 1}, "unexpected keyword argument 'extra'"),
    ],
)
def test_a_description_that_cannot_be(encoding: Encoding, tmp_path: Path, change: dict, words: str) -> None:
    header = {"invertible encoding": "1", "description": json.dumps(asdict(encoding.description) | change)}
    save_file({"representation": encoding.values}, tmp_path / "z.safetensors", header)
    with pytest.raises(CheckpointError, match=f"is no encoded picture: got a problem with .*{words}"):
        Encoding.load(tmp_path / "z.safetensors")


def test_a_file_of_another_kind(encoding: Encoding, tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    for header in ({}, {"invertible encoding": "2"}, {"invertible encoding": "1", "description": "{"}):
        save_file({"representation": encoding.values}, path, header)
        with pytest.raises(CheckpointError, match="is no encoded picture"):
            Encoding.load(path)
    header = {"invertible encoding": "1", "description": json.dumps(asdict(encoding.description))}
    save_file({"representation": encoding.values.float()}, path, header)
    with pytest.raises(CheckpointError, match=r"its numbers, torch\.float32"):
        Encoding.load(path)
    save_file({"other": encoding.values}, path, header)
    with pytest.raises(CheckpointError, match="is no encoded picture"):
        Encoding.load(path)


def test_saved_and_loaded_it_is_the_same(encoding: Encoding, tmp_path: Path) -> None:
    encoding.save(tmp_path / "z.safetensors")
    again = Encoding.load(tmp_path / "z.safetensors")
    assert torch.equal(again.values, encoding.values)
    assert again.description == encoding.description
    assert set(read_tensors(tmp_path / "z.safetensors")[0]) == {"representation"}


# Networks that cannot -----------------------------------------------------------------------------------------------


def test_networks_that_cannot(run: Run, tmp_path: Path) -> None:
    picture("L", 9, 9).save(tmp_path / "a.png")
    rounded = trained(tmp_path / "rounded", BIJECTIVE, "--model.exact=false")
    with pytest.raises(ConfigError, match=r"would lose bits: expected an exact network.*--model\.exact true"):
        encode_image(rounded, tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"encodings are made in float32: got torch\.float64"):
        encode_image(load_run(run.folder, "float64", "cpu"), tmp_path / "a.png")
    coarse = trained(tmp_path / "coarse", BIJECTIVE, "--model.exact=3")
    with pytest.raises(ConfigError, match="the lattice is too coarse for 8 bits"):
        encode_image(coarse, tmp_path / "a.png")


def test_a_picture_that_leaves_the_range(run: Run, tmp_path: Path) -> None:
    picture("L", 9, 9).save(tmp_path / "a.png")
    tight = load_run(run.folder, device="cpu")
    for member in tight.model.modules():
        if getattr(member, "lattice", None) is not None:
            member.lattice = Lattice(23)  # |x| < 2
    with pytest.raises(RangeError, match=r"a\.png: .*Try: model\.exact: 19 in .*recipe\.yaml; the weights stay"):
        encode_image(tight, tmp_path / "a.png")


def test_white_is_white_whatever_the_training_images_had(run: Run) -> None:
    assert run.normalize.max_value == 16
    white = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    digit_white = torch.full((1, 1, 8, 8), 16, dtype=torch.uint8)
    torch.testing.assert_close(_coder(run).prepare(white), run.prepare(digit_white), atol=1e-5, rtol=0)
