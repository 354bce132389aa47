"""A classifier that loses information in one place only: its head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from invertible._checks import (
    check_channels,
    check_event_shape,
    check_finite,
    check_floating,
    check_placement,
)
from invertible.bijection import Bijection
from invertible.layers.certify import ModelCertificate, certify


class Classifier(nn.Module):
    """An invertible body and a head: logits = head(body(x)).

    Up to the head every bit of the input is kept: `reconstruct(representation(x))` gives x back (to rounding). With
    BatchNorm or dropout inside, call `eval()` first: in training mode both depend on the batch and the random state.

    Inputs are checked for shape, dtype, device, NaN and infinity; in training mode on a GPU values are not looked at,
    which would stall it (the trainer checks the loss instead).

    Args:
        body: The invertible part.
        head: From the representation to the logits.
        in_shape: Shape of one input, without the batch; None leaves it unchecked.
        representation_shape: Likewise of one representation.

    Raises:
        ShapeError: When called: if the shape does not fit.
        DtypeError: When called: if dtype or device do not fit.
        NonFiniteError: When called: if there are NaN or infinite values.

    Example:
        >>> import torch
        >>> from invertible.layers import AdditiveCoupling
        >>> classifier = Classifier(AdditiveCoupling(nn.Linear(2, 2)), nn.Linear(4, 10), in_shape=(4,))
        >>> x = torch.randn(5, 4)
        >>> classifier(x).shape, torch.allclose(classifier.reconstruct(classifier.representation(x)), x, atol=1e-6)
        (torch.Size([5, 10]), True)
    """

    def __init__(
        self,
        body: Bijection,
        head: nn.Module,
        in_shape: Sequence[int] | None = None,
        representation_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.in_shape = None if in_shape is None else tuple(in_shape)
        self.representation_shape = None if representation_shape is None else tuple(representation_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            Shape (batch, n_classes).
        """
        return self.head(self.representation(x))

    def representation(self, x: Tensor) -> Tensor:
        """What the body makes of x, the last place where nothing is lost.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            The representation, shape (batch, ...), with as many numbers as x or more.
        """
        check_input(x, self, self.in_shape)
        return self.body(x)

    def reconstruct(self, representation: Tensor) -> Tensor:
        """The input that has this representation.

        Args:
            representation: As `representation` returns it.

        Returns:
            The batch, then `in_shape`.
        """
        check_input(representation, self, self.representation_shape, "Classifier.reconstruct (takes representations)")
        x = self.body.inverse(representation)
        if self.in_shape is not None:
            check_event_shape(x, self.in_shape, "Classifier.reconstruct's result")
        return x

    def certificate(self) -> ModelCertificate:
        """What each member of the body does to distances, and how much the reconstruction can magnify an error.

        Returns:
            The bounds, for images of `in_shape`; print them.
        """
        return certify(self.body, self.in_shape)


def check_input(x: Tensor, model: nn.Module, in_shape: Sequence[int] | None, name: str = "") -> None:
    """What every model here asks of its input.

    Args:
        x: The batch.
        model: Whose parameters tell dtype and device.
        in_shape: Shape of one element; None: any.
        name: Who asks, for the messages; by default the model's class.
    """
    name = name or type(model).__name__
    check_floating(x, name)
    if in_shape is not None:
        check_event_shape(x, in_shape, name)
    check_placement(x, model, name)
    if not (model.training and x.is_cuda):
        check_finite(x, f"{name}'s input")


class PoolingHead(nn.Sequential):
    """BatchNorm, ReLU, average over space, linear: from (batch, C, H, W) to (batch, n_classes).

    Args:
        n_channels: C.
        n_classes: Number of logits.
        momentum: BatchNorm's, in PyTorch's sense: the weight of the newest batch.

    Example:
        >>> import torch
        >>> PoolingHead(16, 10)(torch.zeros(2, 16, 4, 4)).shape
        torch.Size([2, 10])
    """

    def __init__(self, n_channels: int, n_classes: int, momentum: float = 0.1) -> None:
        norm = nn.BatchNorm2d(n_channels, momentum=momentum)
        super().__init__(norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_channels, n_classes))
        self.n_channels = n_channels

    def forward(self, input: Tensor) -> Tensor:
        """Logits.

        Args:
            input: Shape (batch, n_channels, H, W).

        Returns:
            Shape (batch, n_classes).
        """
        check_channels(input, self.n_channels, "PoolingHead")
        return super().forward(input)
