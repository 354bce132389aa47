"""What `curvature.py` measures: convolutional networks on the digits, and the dense matrices that tell who is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.instruments._hessian import matrix_of
from invertible.instruments._loss_on_data import viewing


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, its data, and the exact spectra.

    Args:
        net: In eval mode.
        data: One batch.
        exact: Eigenvalues, ascending, float64: of the Hessian and of the Gauss-Newton matrix.
    """

    net: nn.Module
    data: tuple[Tensor, Tensor]
    exact: dict[str, Tensor]

    @property
    def n(self) -> int:
        """How many parameters."""
        return sum(parameter.numel() for parameter in self.net.parameters())


def cnn(is_quick: bool) -> nn.Module:
    """7,306 parameters; quick: 1,640."""
    torch.manual_seed(0)
    a, b, c, head = (6, 10, 0, 20) if is_quick else (8, 16, 24, 24)
    first = [nn.Conv2d(1, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
    if is_quick:
        more = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * b, head)]
    else:
        last = nn.Conv2d(b, c, 3, padding=1)
        more = [last, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * c, head)]
    return nn.Sequential(*first, *more, nn.ReLU(), nn.Linear(head, 10))


def subject(is_quick: bool, n_steps: int = 150) -> Subject:
    """Train a little, and build the matrices.

    Args:
        is_quick: The small network on 200 images, not the 7,306-parameter one on 500.
        n_steps: Of full-batch gradient descent.

    Returns:
        The subject.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    n = 200 if is_quick else 500
    x = torch.tensor(images[:n]).float().view(n, 1, 8, 8) / 16
    y = torch.tensor(labels[:n])
    net = cnn(is_quick)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    exact = {}
    with viewing("dense", net, (x, y), quiet=True) as (view, _):
        for kind in ("hessian", "gauss-newton"):
            exact[kind] = torch.linalg.eigvalsh(matrix_of(view, kind).dense())
    return Subject(net, (x, y), exact)
