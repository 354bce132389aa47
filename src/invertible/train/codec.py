"""Pictures through an exact network and back, pixel by pixel the same, or an error.

A picture is cut into tiles of the network's size, and each tile's representation is stored as whole multiples of the
lattice's step. Decoding runs the network backwards. What floating-point sums can depend on (the batch's size, threads,
device, torch) is kept the same or written down, and no pixels are given out that are not proven to be the right ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from invertible._console import progress
from invertible.data import Normalize
from invertible.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    NotInImageError,
    RangeError,
    ReconstructionError,
)
from invertible.lattice import Lattice
from invertible.models import Classifier
from invertible.train.encoding import Circumstances, Description, Encoding, fingerprint, pixel_digest
from invertible.train.lossless import MODES, read_lossless
from invertible.train.run import Run
from invertible.train.threads import use_threads
from invertible.train.tiles import batch_of, cut, join, n_tiles

_BATCH_NUMBERS, _LARGEST_BATCH = 2**18, 1024  # of the representation: bounds the memory of a batch
_SECONDS_UNSEEN = 2.0


@dataclass(frozen=True)
class _Coder:
    """An exact network between 8-bit tiles and whole numbers."""

    classifier: Classifier
    lattice: Lattice
    normalize: Normalize
    in_shape: tuple[int, int, int]
    device: torch.device

    @property
    def batch_size(self) -> int:
        n = math.prod(self.classifier.representation_shape or self.in_shape)
        return max(1, min(_LARGEST_BATCH, _BATCH_NUMBERS // n))

    def prepare(self, tiles: Tensor) -> Tensor:
        return self.lattice.quantise(self.normalize(tiles).to(self.device))

    def encode(self, tiles: Tensor) -> Tensor:
        x = self.prepare(tiles)
        if not torch.equal(self.normalize.to_uint8(x).cpu(), tiles):
            got = f"steps of 2^-{self.lattice.k}"
            raise ConfigError("the lattice is too coarse for 8 bits", expected="a larger k", got=got, hint="exact: 18")
        z = self.classifier.representation(x)
        if not torch.equal(self.classifier.reconstruct(z), x):
            hint = "the CPU, or torch.use_deterministic_algorithms(True)"
            raise ReconstructionError("this device does not repeat its own sums", got=str(self.device), hint=hint)
        return z.mul(1 / self.lattice.step).to(torch.int32).cpu()

    def decode(self, values: Tensor) -> Tensor:
        # Only a tile that comes back on the very points that pixels lie on is one that was encoded.
        x = self.classifier.reconstruct(values.to(self.device, torch.float32) * self.lattice.step)
        tiles = self.normalize.to_uint8(x).cpu()
        if not torch.equal(self.prepare(tiles), x):
            raise ReconstructionError("what comes back lies between the pixels")
        return tiles


@torch.no_grad()
def encode_image(run: Run, image: str | Path) -> tuple[Encoding, str | None]:
    """Encode a picture of any size. Every batch is decoded again at once, so that what is returned can be decoded.

    Args:
        run: A trained exact network, in float32. Its batches and the threads in use become part of the encoding.
        image: Grey or RGB, with or without alpha, 8 bits. Only pixels count: colour profiles and other metadata are
            not kept, and the EXIF orientation is applied.

    Returns:
        The encoding, and a note on what was changed without loss, or None.

    Raises:
        ConfigError: If the network is not exact, or its lattice too coarse for 8 bits.
        RangeError: If the network's sums leave its lattice's range for this picture.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from invertible.train import load_run, read_recipe, train
        >>> options = ["--data.n_train", "64", "--training.epochs", "1", "--model.exact", "true"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(read_recipe("irevnet/digits", options), f"{folder}/run", quiet=True)
        ...     Image.new("RGB", (20, 10), (250, 128, 7)).save(f"{folder}/orange.png")
        ...     encoding, note = encode_image(load_run(f"{folder}/run"), f"{folder}/orange.png")
        ...     pixels, mode = decode_image(load_run(f"{folder}/run"), encoding)
        >>> encoding.values.shape, mode, pixels[:, 9, 19].tolist()
        (torch.Size([18, 64, 1, 1]), 'RGB', [250, 128, 7])
    """
    coder = _coder(run)
    pixels, mode, changes = read_lossless(Path(image))
    tiles = cut(pixels, coder.in_shape)
    size = min(coder.batch_size, len(tiles))
    values = torch.empty(len(tiles), *(coder.classifier.representation_shape or coder.in_shape), dtype=torch.int32)
    try:
        _by_batches(coder.encode, tiles, values, size, "encoding")
    except RangeError as error:
        k = coder.lattice.k - 4
        hint = f"model.exact: {k} in {run.folder}/recipe.yaml; the weights stay as they are"
        raise RangeError(f"{image}: {error.problem}", expected=error.expected, got=error.got, hint=hint) from error
    return Encoding(values, _describe(run, coder, pixels, mode, size)), "; ".join(changes) or None


@torch.no_grad()
def decode_image(run: Run, encoding: Encoding) -> tuple[Tensor, str]:
    """Decode a picture, under the number of threads it was encoded with.

    Args:
        run: The network it was encoded with, in float32.
        encoding: What `encode_image` returned.

    Returns:
        The pixels, uint8 of shape (bands, height, width), and their mode: "L", "LA", "RGB" or "RGBA".

    Raises:
        CheckpointError: If the network is another one, or the encoding has another size than it says.
        ReconstructionError: If the pixels are not, every one, those that were encoded; nothing is given out then.
    """
    about, coder = encoding.description, _coder(run)
    _check_network(run, about)
    size, bands = (about.height, about.width), MODES[about.mode]
    shape = (n_tiles(bands, size, coder.in_shape), *(coder.classifier.representation_shape or coder.in_shape))
    if (tuple(encoding.values.shape), about.k) != (shape, coder.lattice.k) or about.batch_size > shape[0]:
        got = f"{tuple(encoding.values.shape)} in batches of {about.batch_size}, k={about.k}"
        expected = f"{shape}, k={coder.lattice.k}"
        raise CheckpointError("the encoding does not fit its own description", expected=expected, got=got)
    tiles = torch.empty(shape[0], *coder.in_shape, dtype=torch.uint8)
    with use_threads(about.threads):
        here = Circumstances.now(coder.device)
        try:
            _by_batches(coder.decode, encoding.values, tiles, about.batch_size, "decoding")
        except (ReconstructionError, RangeError, NotInImageError, NonFiniteError) as error:
            _refuse(about, here, error)
    pixels = join(tiles, bands, size)
    if pixel_digest(pixels, about.mode) != about.pixels:
        _refuse(about, here)
    return pixels, about.mode


def _coder(run: Run) -> _Coder:
    classifier, weight = run.classifier, next(run.model.parameters())
    lattice, shape = classifier.body.lattice, classifier.in_shape
    if lattice is None:
        hint = "a network of couplings (an i-RevNet) trained with --model.exact true; i-ResNets are never exact"
        got = f"{run.recipe.model.name} in plain floating point"
        raise ConfigError(f"{run.folder} would lose bits", expected="an exact network", got=got, hint=hint)
    if weight.dtype != torch.float32:
        raise ConfigError("encodings are made in float32", got=weight.dtype, hint="load_run(folder)")
    if shape is None or len(shape) != 3:
        raise ConfigError("the network takes no images", expected="(channels, height, width)", got=shape)
    # Any picture's white shall be the network's white, whatever number its training images had for it.
    normalize = replace(run.normalize, max_value=255)
    return _Coder(classifier, lattice, normalize, (shape[0], shape[1], shape[2]), weight.device)


def _describe(run: Run, coder: _Coder, pixels: Tensor, mode: str, batch_size: int) -> Description:
    return Description(
        mode=mode,
        height=pixels.shape[1],
        width=pixels.shape[2],
        pixels=pixel_digest(pixels, mode),
        network=fingerprint(run),
        title=run.recipe.title,
        k=coder.lattice.k,
        batch_size=batch_size,
        **asdict(Circumstances.now(coder.device)),
    )


def _check_network(run: Run, about: Description) -> None:
    found = fingerprint(run)
    if found != about.network:
        hint = f"the run it was encoded with, called {about.title!r}; training on changes the weights"
        expected, got = f"the network {about.network[:16]}", f"{found[:16]} in {run.folder}"
        raise CheckpointError("encoded with another network", expected=expected, got=got, hint=hint)


def _refuse(about: Description, here: Circumstances, cause: Exception | None = None) -> NoReturn:
    then = about.circumstances
    hint = f"decode it with {then}" if then != here else "the file as `invertible encode` wrote it: it was changed"
    expected, got = f"the pixels encoded with {then}", f"others with {here}"
    raise ReconstructionError("the picture did not come back", expected=expected, got=got, hint=hint) from cause


def _by_batches(work: Callable[[Tensor], Tensor], given: Tensor, out: Tensor, size: int, title: str) -> None:
    with _late_bar(title, math.ceil(len(given) / size)) as advance:
        for start in range(0, len(given), size):
            out[start : start + size] = work(batch_of(given, start, size))[: len(given) - start]
            advance()


@contextmanager
def _late_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    # Most pictures are done before anyone could read a bar.
    began = time.monotonic()
    with progress() as display:
        task = display.add_task(title, total=total, visible=False)

        def advance() -> None:
            display.update(task, advance=1, visible=time.monotonic() - began > _SECONDS_UNSEEN)

        yield advance
