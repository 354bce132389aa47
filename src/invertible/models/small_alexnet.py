"""The small AlexNet of Zhang, Bengio, Hardt, Recht and Vinyals (2017), for crops of CIFAR images.

Twice: a 5x5 convolution, ReLU, 3x3 max-pooling with stride 2, local response normalisation. Then two hidden layers of
384 and 192 units. The authors give the order and the sizes of the hidden layers; 64 channels in both convolutions are
what makes their number of parameters come out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from invertible.models.classifier import check_input
from invertible.models.resnet import check_plan


class SmallAlexNet(nn.Module):
    """Convolutions, then fully connected layers. Inputs are checked as in `Classifier`.

    Args:
        features: From the image to the last feature map.
        head: From the feature map to the logits.
        in_shape: Channels, height, width of an image.

    Raises:
        ShapeError: When called: if the shape does not fit.
        DtypeError: When called: if dtype or device do not fit.
        NonFiniteError: When called: if there are NaN or infinite values.
    """

    def __init__(self, features: nn.Module, head: nn.Module, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.in_shape = tuple(in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            Shape (batch, n_classes).
        """
        check_input(x, self, self.in_shape)
        return self.head(self.features(x))


def small_alexnet(
    in_shape: tuple[int, int, int] = (3, 28, 28),
    n_classes: int = 10,
    channels: Sequence[int] = (64, 64),
    hidden: Sequence[int] = (384, 192),
) -> SmallAlexNet:
    """The small AlexNet: 1,387,786 parameters for crops of 28x28x3.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        channels: Of the convolutions; each halves height and width.
        hidden: Width of each hidden layer.

    Returns:
        The network.

    Raises:
        ConfigError: If a size is below 1.

    Source: Zhang et al. 2017, appendix A; local response normalisation with the constants of TensorFlow's CIFAR-10
        tutorial of the time (radius 4, alpha 0.001 / 9 a term, beta 0.75).

    Example:
        >>> sum(p.numel() for p in small_alexnet().parameters())
        1387786
    """
    check_plan("small_alexnet", in_shape, n_classes, channels=channels)
    check_plan("small_alexnet", in_shape, n_classes, hidden=hidden)
    (n_in, height, width), features = in_shape, nn.Sequential()
    for n_out in channels:
        # PyTorch divides alpha by the size of the window, TensorFlow does not.
        norm = nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)
        features.extend([nn.Conv2d(n_in, n_out, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), norm])
        n_in, height, width = n_out, (height + 1) // 2, (width + 1) // 2
    head = nn.Sequential(nn.Flatten())
    n_in *= height * width
    for n_out in hidden:
        head.extend([nn.Linear(n_in, n_out), nn.ReLU()])
        n_in = n_out
    head.append(nn.Linear(n_in, n_classes))
    return SmallAlexNet(features, head, in_shape)
