"""A photograph restored from file to file: what `invertible restore` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from invertible.errors import ConfigError, DataError
from invertible.restore.images import Photo, check_suffix, check_writable, read_image
from invertible.restore.masks import Marks, read_mask
from invertible.restore.noise_level import estimate_sigma
from invertible.restore.operators import Downsample, Identity, Jpeg, Mask, Operator

Task = Literal["denoise", "inpaint", "superres", "jpeg"]
LITTLE_NOISE = 1 / 255
MOST_NOISE = 200 / 255
SMALLEST = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to restore and how.

    Args:
        image: The photograph at hand.
        out: Where the restored one goes.
        task: What happened to it.
        mask: Which pixels are missing; for "inpaint".
        mask_marks: What white in the mask means.
        factor: How many times larger along each axis; for "superres".
        sigma: Standard deviation of the noise in grey levels of 255; "auto": estimated; None: "auto" for "denoise",
            none for the others.
        truth: The undamaged photograph, to compare with.
        bits: 8 or 16 per value of the result; None: as the photograph has.

    Raises:
        ConfigError: If options contradict each other or are out of range.
    """

    image: Path
    out: Path
    task: Task
    mask: Path | None = None
    mask_marks: Marks = "missing"
    factor: int = 4
    sigma: float | Literal["auto"] | None = None
    truth: Path | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ConfigError("no such task", expected=", ".join(get_args(Task)), got=repr(self.task))
        if (self.mask is None) == (self.task == "inpaint"):
            hint = "--task inpaint --mask MASK"
            got = "none" if self.mask is None else f"one for --task {self.task}"
            raise ConfigError(
                "a mask tells what to paint in", expected="--mask with --task inpaint", got=got, hint=hint
            )
        if self.task == "superres" and self.factor < 2:
            raise ConfigError("nothing to enlarge", expected="--factor 2 or more", got=self.factor)
        if isinstance(self.sigma, float | int) and not 0 < self.sigma < 255:
            expected = "a number above 0 and below 255 (grey levels), or auto"
            raise ConfigError("no noise level", expected=expected, got=f"--sigma {self.sigma:g}")
        check_suffix(self.out, self.bits or 8)
        for name in ("image", "mask", "truth"):
            own = getattr(self, name)
            for path in (self.out, *beside(self.out)):
                if own is not None and own.resolve() == path.resolve():
                    raise ConfigError(f"--out would replace the {name}", expected="another file", got=str(path))


def beside(out: Path) -> tuple[Path, Path, Path]:
    """What is written beside a result.

    Args:
        out: The result.

    Returns:
        The pictures of before and after and of the way, and the way as numbers.
    """
    way = out.with_name(f"{out.stem}-trajectory.png")
    return out.with_name(f"{out.stem}-before-after.png"), way, way.with_suffix(".json")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job whose files are read and whose options are decided: all that can be wrong has been found.

    Args:
        photo: The photograph at hand.
        operator: What happened to it.
        sigma: Of its noise, in units of the pixel range; None: there is none.
        truth: Shape of the wanted picture; None: not known.
        bits: Of the result.
        notes: What was changed or found out.
    """

    photo: Photo
    operator: Operator
    sigma: float | None
    truth: Tensor | None
    bits: int
    notes: tuple[str, ...]

    @property
    def scale(self) -> int:
        """How many times larger the wanted picture is."""
        return self.operator.image_size((1, 1))[0] if isinstance(self.operator, Downsample) else 1

    @property
    def before(self) -> Tensor:
        """The damaged picture at full size, shape (channels, height, width)."""
        return self.operator.start(self.photo.pixels.unsqueeze(0))[0]


def prepare(job: Job) -> Prepared:
    """Read the files of a job and decide what was left open; nothing is written.

    Args:
        job: What to restore and how.

    Returns:
        All that the restoration needs.

    Raises:
        ConfigError: If the result cannot be written as such a file, or the mask leaves nothing.
        DataError: If a file is missing, damaged, of another size or constant, or the result cannot be written.
    """
    check_writable(job.out)
    photo = read_image(job.image)
    bits = job.bits or photo.bits
    check_suffix(job.out, bits, photo.alpha is not None)
    if photo.pixels.min() == photo.pixels.max():
        hint = "is it the right file?"
        raise DataError(f"{job.image}: all pixels are equal", expected="a photograph", got="one colour", hint=hint)
    operator, notes = _operator(job, photo)
    sigma, more = _sigma(job, photo)
    truth, about_truth = _truth(job, photo, operator)
    notes = [*photo.notes, *notes, *more, *about_truth]
    if photo.alpha is not None:
        notes.append("transparency is kept as it is" if job.task != "superres" else "transparency is enlarged")
    return Prepared(photo, operator, sigma, truth, bits, tuple(notes))


def _operator(job: Job, photo: Photo) -> tuple[Operator, list[str]]:
    if job.task == "inpaint" and job.mask is not None:
        known, notes = read_mask(job.mask, photo.size, job.mask_marks)
        return Mask(known), [*notes, f"{float((~known).float().mean()):.1%} of the pixels are missing"]
    if job.task == "superres":
        return Downsample(job.factor), []
    if job.task == "jpeg":
        return Jpeg.from_file(job.image, pull=1.0), []
    return Identity(), []


def _sigma(job: Job, photo: Photo) -> tuple[float | None, list[str]]:
    if isinstance(job.sigma, float | int):
        return job.sigma / 255, []
    if job.sigma is None and job.task != "denoise":
        return None, []
    if job.task == "inpaint":
        hint = "a number, or leave it out if there is no noise"
        raise ConfigError("noise cannot be estimated with pixels missing", expected="--sigma 25", got="auto", hint=hint)
    if min(photo.size) < SMALLEST:
        got = f"{photo.size[1]}x{photo.size[0]} pixels"
        expected = f"sides of {SMALLEST} pixels or more to estimate the noise from"
        raise ConfigError(f"{job.image} is too small", expected=expected, got=got, hint="--sigma 25")
    sigma = estimate_sigma(photo.pixels)
    if sigma > MOST_NOISE:
        got = f"{255 * sigma:.0f} grey levels"
        raise ConfigError("the noise cannot be estimated", expected="a photograph", got=got, hint="--sigma 25")
    notes = [f"noise: sigma {255 * sigma:.1f} of 255, estimated (--sigma says otherwise)"]
    if sigma < LITTLE_NOISE:
        notes.append("there is hardly any noise: little will change")
    return max(sigma, LITTLE_NOISE / 4), notes


def _truth(job: Job, photo: Photo, operator: Operator) -> tuple[Tensor | None, list[str]]:
    if job.truth is None:
        return None, []
    found = read_image(job.truth)
    size = operator.image_size(photo.size)
    if found.size != size:
        expected, got = f"{size[1]}x{size[0]} pixels", f"{found.size[1]}x{found.size[0]}"
        raise DataError(f"{job.truth}: the truth has another size", expected=expected, got=got)
    channels = len(photo.pixels)
    if len(found.pixels) == channels:
        return found.pixels, []
    if channels == 3:
        return found.pixels.expand(3, -1, -1).clone(), ["the truth is grey"]
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R BT.601, as image tools turn colours to grey
    return (found.pixels * weights).sum(0, keepdim=True), ["the truth was turned grey, as the photograph is"]
