"""The two residual branches of `logdet.py`: trained a little as one-block flows, every layer held to its bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from invertible.logdet import ExactLogDet, Krylov

LIPSCHITZ = 0.9


class Subject(NamedTuple):
    """A network g of Lipschitz constant <= 0.9, points, and the truth there."""

    net: nn.Module
    x: Tensor
    exact: Tensor  # nats, shape (batch,)


def subject(name: str, n_steps: int, n_samples: int = 8) -> Subject:
    """Build and train one of the two, in float64."""
    torch.manual_seed(0)
    net, data = (_mlp(), _digits()) if name == "mlp-64" else (_conv(), _crops())
    net = net.double()
    _fit(net, data, n_steps)
    x = data[:n_samples]
    with torch.no_grad():
        exact = ExactLogDet()(net, x)[1].value
    return Subject(net, x, exact)


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ELU(), nn.Linear(128, 128), nn.ELU(), nn.Linear(128, 64))


def _conv() -> nn.Sequential:
    first, last = nn.Conv2d(12, 32, 3, padding=1), nn.Conv2d(32, 12, 3, padding=1)
    return nn.Sequential(first, nn.ELU(), nn.Conv2d(32, 32, 1), nn.ELU(), last)


def _digits() -> Tensor:
    from sklearn.datasets import load_digits

    pixels = torch.as_tensor(cast(Any, load_digits()).data, dtype=torch.float64)
    return 4 * ((pixels + torch.rand_like(pixels)) / 17 - 0.5)


def _crops(n: int = 512) -> Tensor:
    # 16 x 16 crops of photographs, their 2 x 2 squares squeezed into channels: 12 x 8 x 8
    from PIL import Image
    from sklearn import datasets

    photo = Image.open(Path(cast(Any, datasets).__file__).parent / "images" / "china.jpg")
    pixels = torch.as_tensor(np.array(photo), dtype=torch.float64).permute(2, 0, 1)
    corners = [(int(torch.randint(0, size - 16, ()).item())) for _ in range(n) for size in pixels.shape[1:]]
    crops = torch.stack([pixels[:, i : i + 16, j : j + 16] for i, j in zip(corners[::2], corners[1::2], strict=True)])
    return 0.3 * (nn.functional.pixel_unshuffle(crops + torch.rand_like(crops), 2) / 256 - 0.5)


def _fit(net: nn.Sequential, data: Tensor, n_steps: int) -> None:
    _project(net)
    optimizer, estimator = torch.optim.Adam(net.parameters(), 3e-3), Krylov(n_steps=3, n_probes=2)
    for _ in range(n_steps):
        x = data[torch.randint(len(data), (32,))]
        g, logdet = estimator(net, x)
        loss = ((x + g).flatten(1).square().sum(dim=1) / 2 - logdet.value).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _project(net)


@torch.no_grad()
def _project(net: nn.Sequential) -> None:
    target = LIPSCHITZ ** (1 / 3)
    for layer in net:
        if isinstance(layer, nn.Linear):  # the nearest matrix within the bound
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_((u * s.clamp_max(target)) @ v)
        elif isinstance(layer, nn.Conv2d):
            layer.weight.mul_(min(1.0, target / _conv_norm(layer)))


def _conv_norm(layer: nn.Conv2d) -> float:
    # with zeros around 8 x 8 it is part of the periodic convolution on 10 x 10, whose norm Fourier tells
    spectrum = torch.fft.fft2(layer.weight, s=(10, 10)).permute(2, 3, 0, 1)
    return float(torch.linalg.matrix_norm(spectrum, 2).max())


def bits_per_dim(nats: Tensor, x: Tensor) -> Tensor:
    """Nats per sample as bits per number."""
    return nats / (math.prod(x.shape[1:]) * math.log(2))
