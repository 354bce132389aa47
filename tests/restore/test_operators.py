"""Operators against dense matrices, Pillow and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from invertible.errors import ConfigError, DtypeError, NonFiniteError, ShapeError
from invertible.restore.operators import (
    Blur,
    Composed,
    Downsample,
    Identity,
    Jpeg,
    Mask,
    Operator,
    as_operator,
    check_operator,
    gaussian_kernel,
)

KNOWN = torch.arange(12 * 16).view(12, 16) % 3 > 0
ALL = {
    "identity": Identity(),
    "mask": Mask(KNOWN),
    "downsample": Downsample(4),
    "downsample phase 0": Downsample(2, "bicubic", 0.0),
    "blur": Blur(gaussian_kernel(0.8)),
    "composed": Composed(Blur(gaussian_kernel(0.5)), Downsample(2, "box")),
    "jpeg": Jpeg(50),
    "jpeg 4:2:2": Jpeg(75, "4:2:2"),
    "own": as_operator(lambda image: image**2),
}
LINEAR = ("identity", "mask", "downsample", "downsample phase 0", "blur", "composed")


def picture(channels: int = 3, height: int = 12, width: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(1, channels, height, width, dtype=dtype)


def measured_of(operator: Operator, image: Tensor) -> Tensor:
    return image if isinstance(operator, Jpeg) else operator(image)


@pytest.mark.parametrize("name", ALL)
def test_the_contract(name: str) -> None:
    operator, image = ALL[name], picture()
    measured = measured_of(operator, image)
    assert operator.image_size((measured.shape[2], measured.shape[3])) == (12, 16)
    before = operator.start(measured)
    assert before.shape == image.shape
    assert before.min() >= 0
    assert before.max() <= 1
    errors = operator.misfit(operator(image), measured)
    assert errors.shape == operator(image).shape
    assert errors.sum() < 1e-20
    assert 0 < operator.n_measured(measured) <= errors.numel()
    assert operator.misfit(operator(1 - image), measured).sum() > 0.01
    check_operator(operator, measured)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    operator = ALL[name]
    measured = measured_of(operator, picture(1))
    other = picture(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: operator.misfit(operator(x), measured).sum(), other, atol=1e-4)


@pytest.mark.parametrize("name", LINEAR)
def test_the_backward_pass_is_the_adjoint(name: str) -> None:
    operator, image = ALL[name], picture(1).requires_grad_()
    predicted = operator(image)
    other = torch.rand_like(predicted)
    (back,) = torch.autograd.grad(predicted, image, other)
    torch.testing.assert_close((predicted * other).sum(), (image * back).sum())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept_and_the_input_is_not_changed(name: str, dtype: torch.dtype) -> None:
    operator, image = ALL[name], picture(dtype=dtype).transpose(2, 3).contiguous().transpose(2, 3)
    before = image.clone()
    measured = measured_of(operator, image)
    assert operator(image).dtype == operator.misfit(operator(image), measured).dtype == dtype
    assert operator.start(measured).dtype == dtype
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_its_pictures(name: str) -> None:
    operator, images = ALL[name], torch.cat([picture(), picture()])
    each = torch.cat([operator(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(operator(images), each)


def test_no_gradient_is_needed_to_measure() -> None:
    down, jpeg = Downsample(2), Jpeg(20)
    with torch.inference_mode():
        image = picture()
        check_operator(down, down(image))
        check_operator(jpeg, image)


# --- what is measured -------------------------------------------------------------------------------------------


def papers_kernel(factor: int) -> Tensor:
    """Of the released down-sampler: Lanczos with two lobes, phase .5, 4 factor taps along each axis."""
    width = 4 * factor
    at = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) / factor
    row = torch.sinc(at) * torch.sinc(at / 2)
    kernel = torch.outer(row, row)
    return kernel / kernel.sum()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downsampling_is_the_paper_s(factor: int) -> None:
    image = picture(1, 4 * factor, 6 * factor)
    pad = (4 * factor - factor) // 2
    padded = torch.nn.functional.pad(image, (pad, pad, pad, pad), mode="replicate")
    expected = torch.nn.functional.conv2d(padded, papers_kernel(factor)[None, None], stride=factor)
    torch.testing.assert_close(Downsample(factor)(image), expected)


FILTERS = {
    "lanczos3": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downsampling_is_pillow_s_inside(kernel: str, factor: int) -> None:
    image = picture(1, 20 * factor, 20 * factor, torch.float32)
    ours = Downsample(factor, kernel)(image)[0, 0]
    theirs = torch.from_numpy(np.array(Image.fromarray(image[0, 0].numpy()).resize((20, 20), FILTERS[kernel])))
    torch.testing.assert_close(ours[4:-4, 4:-4], theirs[4:-4, 4:-4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlarging_is_pillow_s_up_to_the_border(factor: int) -> None:
    small = picture(1, 7, 11, torch.float32) * 0.4 + 0.3  # no overshoot is cut
    ours = Downsample(factor).start(small)[0, 0]
    size = (11 * factor, 7 * factor)
    theirs = np.array(Image.fromarray(small[0, 0].numpy()).resize(size, Image.Resampling.LANCZOS))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("factor", [1, 3, 4])
@pytest.mark.parametrize("kernel", ["lanczos2", "lanczos3", "bicubic", "box"])
def test_a_small_pixel_lies_where_its_phase_says(factor: int, phase: float, kernel: str) -> None:
    down = Downsample(factor, kernel, phase)
    ramp = torch.arange(40.0 * factor, dtype=torch.float64).expand(1, 1, 4 * factor, -1)
    expected = torch.arange(40, dtype=torch.float64) * factor + phase * (factor - 1)
    middle = down(ramp)[0, 0, 0, 5:-5]
    # Lanczos does not reproduce lines exactly; box only to half a pixel where its edge falls on one.
    torch.testing.assert_close(middle, expected[5:-5], atol=0.51 if kernel == "box" else 0.05, rtol=0)
    back = down.start(ramp / 200)
    assert back.shape[3] == ramp.shape[3] * factor


def test_a_blur_is_a_convolution_and_keeps_brightness() -> None:
    from scipy.signal import convolve2d

    kernel = torch.rand(3, 5, dtype=torch.float64)
    image = picture(1)
    ours = Blur(kernel)(image)[0, 0, 1:-1, 2:-2]
    theirs = convolve2d(image[0, 0].numpy(), (kernel / kernel.sum()).numpy(), mode="valid")
    torch.testing.assert_close(ours, torch.from_numpy(theirs))
    torch.testing.assert_close(Blur(kernel)(torch.full((1, 1, 2, 2), 0.7)), torch.full((1, 1, 2, 2), 0.7))


def test_a_gaussian_kernel_has_its_width() -> None:
    kernel = gaussian_kernel(1.5)
    at = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    assert math.isclose(float((kernel.sum(0) * at**2).sum()), 1.5**2, rel_tol=2e-3)


def test_holes_are_never_looked_at() -> None:
    mask, image = Mask(KNOWN), picture()
    damaged = torch.where(KNOWN, image, math.nan)
    predicted = picture().requires_grad_()
    errors = mask.misfit(mask(predicted), damaged)
    (gradient,) = torch.autograd.grad(errors.sum(), predicted)
    assert torch.isfinite(errors).all()
    assert not gradient[..., ~KNOWN].any()
    torch.testing.assert_close(errors[..., KNOWN], ((predicted - image) ** 2)[..., KNOWN])
    assert mask.n_measured(damaged) == 3 * int(KNOWN.sum())
    torch.testing.assert_close(mask.start(damaged)[..., KNOWN], image[..., KNOWN])
    expected = image[0, 1][KNOWN].mean()
    torch.testing.assert_close(mask.start(damaged)[0, 1][~KNOWN], expected.expand(int((~KNOWN).sum())))


def test_a_mask_per_channel() -> None:
    known = torch.rand(3, 12, 16) > 0.5
    assert Mask(known).n_measured(picture()) == int(known.sum())
    assert Mask(known[None, 0].float().double()).n_measured(picture()) == 3 * int(known[0].sum())


@pytest.mark.parametrize("operator", [Identity(), Mask(KNOWN), Blur(torch.ones(1, 1))])
def test_a_piece_of_an_operator_is_that_of_a_piece(operator: Operator) -> None:
    image, piece = picture(), (slice(4, 10), slice(2, 16))
    torch.testing.assert_close(operator.crop(*piece)(image[..., *piece]), operator(image)[..., *piece])


def test_a_piece_of_composed_operators() -> None:
    composed = Composed(Identity(), Downsample(2, "box"), Mask(KNOWN))
    image = picture(1, 24, 32)
    small = composed.crop(slice(4, 12), slice(8, 32))(image[..., 4:12, 8:32])
    torch.testing.assert_close(small, composed(image)[..., 2:6, 4:16])
    with pytest.raises(ShapeError, match="multiples of 2"):
        composed.crop(slice(3, 12), slice(8, 32))


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mask(torch.zeros(4, 4, dtype=torch.bool)), "hides every pixel.*wrong way round"),
        (lambda: Mask(torch.full((4, 4), 0.5)), "yes or no"),
        (lambda: Mask(torch.ones(1, 1, 4, 4)), "no mask"),
        (lambda: Mask(torch.ones(0, 4)), "no mask"),
        (lambda: Downsample(0), "bad factor"),
        (lambda: Downsample(2, phase=1.5), "bad phase"),
        (lambda: Blur(torch.ones(2, 3)), "both odd"),
        (lambda: Blur(torch.tensor([[1.0, 0.0, -1.0]])), "sums to zero"),
        (lambda: Blur(torch.full((3, 3), math.nan)), "must be finite"),
        (lambda: gaussian_kernel(0.0), "number above 0"),
        (lambda: Composed(), "at least one"),
        (lambda: Composed(Jpeg(10), Identity()), "Jpeg as the last"),
        (lambda: as_operator(lambda x: x, scale=0), "bad scale"),
        (lambda: Jpeg(0), "no such quality"),
        (lambda: Jpeg([torch.ones(4, 4)]), "no such tables"),
        (lambda: Jpeg([torch.zeros(8, 8)]), "no such tables"),
    ],
)
def test_a_bad_operator_is_refused(make: object, words: str) -> None:
    with pytest.raises((ConfigError, ShapeError, NonFiniteError), match=words):
        make()  # pyright: ignore[reportCallIssue]


def test_bad_pictures_are_refused() -> None:
    with pytest.raises(ShapeError, match="16x12 pixels"):
        Mask(KNOWN)(picture(3, 12, 15))
    with pytest.raises(ShapeError, match="multiples of 4"):
        Downsample(4)(picture(3, 12, 15))
    with pytest.raises(ShapeError, match="unsqueeze"):
        Identity()(picture()[0])
    with pytest.raises(ShapeError, match="no pixels"):
        Blur(torch.ones(1, 1))(picture(3, 0, 4))
    with pytest.raises(DtypeError, match="255"):
        Identity()(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"1 \(grey\) or 3"):
        Jpeg(10)(picture(4))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.detach(), "not differentiable"),
        (lambda x: torch.from_numpy(x.detach().numpy()), "not differentiable"),
        (lambda x: x.round(), "zero everywhere"),
        (lambda x: x.mean((2, 3), keepdim=True), "wrong shape"),
        (lambda x: x[..., :3], "wrong shape"),
        (lambda x: (x - 2) ** 0.5, "must be finite"),
    ],
)
def test_a_function_that_cannot_be_used_is_found_at_once(function: object, words: str) -> None:
    with pytest.raises((ConfigError, ShapeError, NonFiniteError), match=words):
        as_operator(function, picture())  # pyright: ignore[reportArgumentType]


def test_a_function_of_one_s_own() -> None:
    measured = picture(3, 6, 8)
    halved = as_operator(lambda x: torch.nn.functional.avg_pool2d(x, 2), measured, scale=2)
    assert halved.image_size((6, 8)) == (12, 16)
    assert halved.start(measured).shape == (1, 3, 12, 16)
    assert as_operator(halved, measured) is halved
    assert as_operator(torch.nn.Flatten(0, 0), measured).n_measured(measured) == measured.numel()
