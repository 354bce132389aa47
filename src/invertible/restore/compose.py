"""Operators after each other, and operators that are functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError, ShapeError
from invertible.restore.jpeg import Jpeg
from invertible.restore.operator import Operator, check_operator


class Composed(Operator):
    """Several operators, the first one applied first: a picture that was blurred and then made small.

    Args:
        *operators: At least one. `Jpeg` can only be the last.

    Raises:
        ConfigError: If there is none, or `Jpeg` stands before another.

    Example:
        >>> import torch
        >>> from invertible.restore.blur import Blur, gaussian_kernel
        >>> from invertible.restore.downsample import Downsample
        >>> both = Composed(Blur(gaussian_kernel(1.0)), Downsample(2))
        >>> both(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        if not operators:
            raise ConfigError("nothing to compose", expected="at least one operator", got="none", hint="Identity()")
        if any(isinstance(operator, Jpeg) for operator in operators[:-1]):
            expected = "Jpeg as the last operator: it does not return a picture"
            raise ConfigError("operators in an impossible order", expected=expected, got="Jpeg before another")
        self.operators = nn.ModuleList(operators)

    def forward(self, image: Tensor) -> Tensor:
        """Return what is measured after all operators."""
        for operator in self._all:
            image = operator(image)
        return image

    def image_size(self, measured_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size before the first operator."""
        for operator in reversed(self._all):
            measured_size = operator.image_size(measured_size)
        return measured_size

    def misfit(self, predicted: Tensor, measured: Tensor) -> Tensor:
        """Return what the last operator makes of it."""
        return self._all[-1].misfit(predicted, measured)

    def n_measured(self, measured: Tensor) -> int:
        """Return what the last operator makes of it."""
        return self._all[-1].n_measured(measured)

    def start(self, measured: Tensor) -> Tensor:
        """Return a picture that went back through all operators."""
        for operator in reversed(self._all):
            measured = operator.start(measured)
        return measured

    def crop(self, rows: slice, columns: slice) -> Composed:
        """Return each operator for its own piece, which must lie on whole pixels of every size in between."""
        cropped = []
        for operator in self._all:
            cropped.append(operator.crop(rows, columns))
            rows, columns = _after(operator, rows, 0), _after(operator, columns, 1)
        return Composed(*cropped)

    @property
    def _all(self) -> list[Operator]:
        return [operator for operator in self.operators if isinstance(operator, Operator)]


def _after(operator: Operator, piece: slice, axis: int) -> slice:
    factor = operator.image_size((1, 1))[axis]
    if piece.start % factor or piece.stop % factor:
        expected = f"multiples of {factor} as ends"
        raise ShapeError("a piece cuts through pixels", expected=expected, got=f"{piece.start} to {piece.stop}")
    return slice(piece.start // factor, piece.stop // factor)


class Own(Operator):
    """A function of the user's own as an operator; `as_operator` makes it.

    Args:
        function: From a picture of shape (batch, channels, height, width) to what is measured, in torch.
        scale: Pixels of the wanted picture per measured pixel, along each axis.

    Example:
        >>> import torch
        >>> Own(lambda image: image.mean(1, keepdim=True))(torch.rand(1, 3, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], scale: int = 1) -> None:
        super().__init__()
        self.function, self.scale = function, scale

    def forward(self, image: Tensor) -> Tensor:
        """Return what the function makes of the picture."""
        return _as_tensor(self.function(image))

    def image_size(self, measured_size: tuple[int, int]) -> tuple[int, int]:
        """Return `scale` times the measured size."""
        return measured_size[0] * self.scale, measured_size[1] * self.scale

    def start(self, measured: Tensor) -> Tensor:
        """Return the measured picture, interpolated to the wanted size."""
        if self.scale == 1:
            return measured.clamp(0, 1)
        size = self.image_size((measured.shape[2], measured.shape[3]))
        return functional.interpolate(measured, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def _as_tensor(measured: object) -> Tensor:
    if not isinstance(measured, Tensor):
        expected, hint = "a tensor, the measured picture", "operations of torch only"
        raise DtypeError("an operator returns no tensor", expected=expected, got=describe(measured), hint=hint)
    return measured


def as_operator(function: Callable[[Tensor], Tensor], measured: Tensor | None = None, *, scale: int = 1) -> Operator:
    """Make an operator of a function, and try it.

    Args:
        function: From a picture of shape (batch, channels, height, width), in [0, 1], to what is measured; made of
            differentiable operations of torch. An `Operator` or any other module is as good.
        measured: The picture at hand, shape (batch, channels, height, width): the function is tried against it now
            rather than when the restoration starts.
        scale: Pixels of the wanted picture per measured pixel, along each axis.

    Returns:
        The operator; one that was given comes back as it is. Its restoration has as many channels as `measured`.

    Raises:
        ConfigError: If the scale is below 1, or, with `measured`, if the function is not differentiable.
        ShapeError: With `measured`: if what the function returns has another shape.

    Example:
        >>> import torch
        >>> halved = as_operator(lambda image: 0.5 * image, torch.rand(1, 3, 8, 8))
        >>> halved.n_measured(torch.rand(1, 3, 8, 8))
        192
    """
    if scale < 1:
        raise ConfigError("as_operator has a bad scale", expected="a whole number above 0", got=scale)
    operator = function if isinstance(function, Operator) else Own(function, scale)
    if measured is not None:
        check_operator(operator, measured)
    return operator
