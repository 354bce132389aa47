"""What turned the wanted picture into the one at hand: the contract of an operator, and the simplest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invertible._checks import check_finite, check_floating, check_n_dims, describe
from invertible.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from typing import Self


class Operator(nn.Module, ABC):
    """How a picture becomes what was measured of it. Abstract: write `forward`, and what else differs.

    A picture has shape (batch, channels, height, width) and values in [0, 1]. Without more than `forward`, what is
    measured is a picture of the same size and every number of it counts.

    Source: Ulyanov, Vedaldi & Lempitsky 2018, equation 2: the data term E(x; x_0).

    Example:
        >>> class Negative(Operator):
        ...     def forward(self, image):
        ...         return 1 - image
        >>> negative = Negative()
        >>> measured = negative(torch.full((1, 3, 4, 4), 0.25))
        >>> negative.misfit(negative(torch.full((1, 3, 4, 4), 0.5)), measured).sum() / negative.n_measured(measured)
        tensor(0.0625)
    """

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """What would be measured of a picture; differentiable.

        Args:
            image: Shape (batch, channels, height, width), in [0, 1].

        Returns:
            The measurement.
        """

    def image_size(self, measured_size: tuple[int, int]) -> tuple[int, int]:
        """The size of the wanted picture.

        Args:
            measured_size: (height, width) of the measured one, pixels.

        Returns:
            (height, width), pixels.
        """
        return measured_size

    def misfit(self, predicted: Tensor, measured: Tensor) -> Tensor:
        """Squared errors, element by element; zero where an element does not count.

        Args:
            predicted: What `forward` returned.
            measured: The picture at hand, shape (batch, channels, height, width).

        Returns:
            In the shape of `predicted`, in squared units of the pixel range.
        """
        return (predicted - measured) ** 2

    def n_measured(self, measured: Tensor) -> int:
        """How many numbers count in `misfit`.

        Args:
            measured: The picture at hand.

        Returns:
            A count over the whole batch.
        """
        return measured.numel()

    def start(self, measured: Tensor) -> Tensor:
        """A crude picture of the wanted size, to begin from and to show as "before".

        Args:
            measured: The picture at hand, shape (batch, channels, height, width).

        Returns:
            Shape (batch, channels, *image_size), in [0, 1].
        """
        return measured.clamp(0, 1)

    def settle(self, image: Tensor, measured: Tensor) -> Tensor:
        """Put back what a noise-free measurement says exactly.

        Args:
            image: The restored picture, shape (batch, channels, *image_size).
            measured: The picture at hand.

        Returns:
            The picture; as it is unless the operator knows better.
        """
        return image

    def crop(self, rows: slice, columns: slice) -> Self:
        """The same operator for a piece of the wanted picture, as tiles need it.

        Args:
            rows: Of the wanted picture, with start and stop.
            columns: Likewise.

        Returns:
            An operator for that piece; itself if it is the same everywhere.
        """
        return self


class Identity(Operator):
    """The picture itself, with noise on it: denoising.

    Example:
        >>> Identity()(torch.ones(1, 3, 2, 2)).shape
        torch.Size([1, 3, 2, 2])
    """

    def forward(self, image: Tensor) -> Tensor:
        """Return the picture as it is."""
        return check_image(image, "Identity")


def check_image(image: Tensor, name: str) -> Tensor:
    """Refuse what is no batch of pictures.

    Args:
        image: What came.
        name: Who asks, for the message.

    Returns:
        The same.

    Raises:
        ShapeError: If it has not four dimensions or is empty.
    """
    check_floating(image, name)
    check_n_dims(image, 4, name)
    if not image.numel():
        raise ShapeError(f"{name} got no pixels", expected="(batch, channels, height, width)", got=describe(image))
    return image


def check_operator(operator: Operator, measured: Tensor) -> None:
    """Try an operator once, before hours of work: shapes, values, and a gradient that reaches the picture.

    Args:
        operator: Any.
        measured: The picture at hand, shape (batch, channels, height, width).

    Raises:
        ConfigError: If no gradient reaches the picture.
        ShapeError: If what it returns cannot be compared with what was measured, or its `start` has another size.

    Example:
        >>> check_operator(Identity(), torch.rand(1, 3, 8, 8))
    """
    name, measured = type(operator).__name__, check_image(measured, "a measured picture").detach()
    size = operator.image_size((measured.shape[2], measured.shape[3]))
    before = operator.start(measured)
    if before.shape != (*measured.shape[:2], *size):
        expected = f"shape {(*measured.shape[:2], *size)}, as its image_size says"
        raise ShapeError(f"{name}.start returns another size", expected=expected, got=describe(before))
    # In the middle of the range, away from the measurement: at a perfect fit the gradient of a square is zero.
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(before.shape, generator=generator, dtype=torch.float32).to(before)
    with torch.inference_mode(False), torch.enable_grad():
        _check_gradient(operator, name, (0.25 + 0.5 * noise).clone().requires_grad_(), measured.clone())


def _check_gradient(operator: Operator, name: str, image: Tensor, measured: Tensor) -> None:
    errors = _misfit(operator, name, image, measured)
    hint = "operations of torch only: no numpy, no .detach(), no .round()"
    if not errors.requires_grad:
        raise ConfigError(f"{name} is not differentiable", expected="a gradient for the picture", got="none", hint=hint)
    (gradient,) = torch.autograd.grad(errors.sum(), image, allow_unused=True)
    if gradient is None or not gradient.count_nonzero():
        got = "none" if gradient is None else "zero everywhere"
        raise ConfigError(f"{name} is not differentiable", expected="a gradient for the picture", got=got, hint=hint)
    check_finite(gradient, f"{name}'s gradient")


def _misfit(operator: Operator, name: str, image: Tensor, measured: Tensor) -> Tensor:
    predicted = operator(image)
    try:
        errors = operator.misfit(predicted, measured)
    except RuntimeError as error:
        expected = f"what compares with {describe(measured)}"
        raise ShapeError(f"{name} returns the wrong shape", expected=expected, got=describe(predicted)) from error
    if errors.shape != predicted.shape:  # broadcasting would compare each pixel with many
        expected = f"{describe(measured)}, as measured"
        raise ShapeError(f"{name} returns the wrong shape", expected=expected, got=describe(predicted))
    check_finite(errors, f"{name}'s misfit")
    return errors
