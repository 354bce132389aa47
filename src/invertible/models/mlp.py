"""The multilayer perceptrons of Zhang, Bengio, Hardt, Recht and Vinyals (2017): fully connected layers and ReLU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.models.classifier import check_input


class MLP(nn.Module):
    """Flatten, then linear layers with ReLU between them. Inputs are checked as in `Classifier`.

    Args:
        in_shape: Shape of one input.
        n_classes: Number of logits.
        hidden: Width of each hidden layer.

    Raises:
        ShapeError: When called: if the shape does not fit.
        DtypeError: When called: if dtype or device do not fit.
        NonFiniteError: When called: if there are NaN or infinite values.

    Source: Zhang et al. 2017, appendix A.
    """

    def __init__(self, in_shape: Sequence[int], n_classes: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (math.prod(in_shape), *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], n_classes))
        self.in_shape = tuple(in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            Shape (batch, n_classes).
        """
        check_input(x, self, self.in_shape)
        return self.layers(x)


def mlp(
    in_shape: Sequence[int] = (3, 28, 28), n_classes: int = 10, hidden: Sequence[int] = (512, 512, 512)
) -> MLP:  # fmt: skip
    """A multilayer perceptron; the default is MLP 3x512, `hidden=(512,)` is MLP 1x512.

    For crops of 28x28x3 they have 1,735,178 and 1,209,866 parameters.

    Args:
        in_shape: Shape of one input: (channels, height, width), or (n,) for rows of a table.
        n_classes: Number of logits.
        hidden: Width of each hidden layer; none: a linear classifier.

    Returns:
        The network.

    Raises:
        ConfigError: If a size is below 1.

    Source: Zhang et al. 2017, "Understanding deep learning requires rethinking generalization", appendix A.

    Example:
        >>> sum(p.numel() for p in mlp().parameters()), sum(p.numel() for p in mlp(hidden=(512,)).parameters())
        (1735178, 1209866)
    """
    if not in_shape or min(*in_shape, *hidden, n_classes) < 1:
        got = f"in_shape={tuple(in_shape)}, n_classes={n_classes}, hidden={tuple(hidden)}"
        raise ConfigError("mlp has an empty layer, input or output", expected="numbers >= 1", got=got)
    return MLP(in_shape, n_classes, hidden)
