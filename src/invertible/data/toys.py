"""Eight densities in the plane that flows are shown on, from their mathematical description.

Source: the toys of Grathwohl et al. 2019 (FFJORD), section 4.1 and its released code's constants; swiss roll, circles
and moons are scikit-learn's shapes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from invertible.data.points import PointSet
from invertible.data.steps import seeded_generator
from invertible.errors import ConfigError

PREFIX = "toy/"
N_TRAIN, N_TEST = 20_000, 10_000
SEEDS = {"train": 0, "test": 1}

Draw = Callable[[int, Generator], tuple[Tensor, Tensor]]
"""From a number and a generator to points, shape (n, 2), and the parts they belong to, shape (n,)."""


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _noise(n: int, generator: Generator, std: float) -> Tensor:
    return std * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _polar(angle: Tensor, radius: Tensor | float) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=1) * torch.as_tensor(radius).view(-1, 1)


def _parts(n: int, n_parts: int, generator: Generator) -> Tensor:
    return torch.randint(n_parts, (n,), generator=generator)


def _swissroll(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    # One and a half turns of an Archimedean spiral, angle 3 pi / 2 to 9 pi / 2.
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    return (_polar(angle, angle) + _noise(n, generator, 1.0)) / 5, torch.zeros(n, dtype=torch.int64)


def _circles(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    part = _parts(n, 2, generator)
    circle = _polar(2 * math.pi * _uniform(n, generator), 1 - 0.5 * part)
    return 3 * (circle + _noise(n, generator, 0.08)), part


def _rings(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    part = _parts(n, 4, generator)
    ring = _polar(2 * math.pi * _uniform(n, generator), 3 - 0.75 * part)
    return ring + _noise(n, generator, 0.08), part


def _moons(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    # Two half circles of radius 1; the second one is the first turned by pi about (1/2, 1/4).
    part = _parts(n, 2, generator)
    upper = _polar(math.pi * _uniform(n, generator), 1.0)
    lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
    moon = torch.where(part.view(-1, 1) == 0, upper, lower) + _noise(n, generator, 0.1)
    return 2 * moon + torch.tensor([-1.0, -0.2], dtype=torch.float64), part


def _eight_gaussians(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    part = _parts(n, 8, generator)
    return (_polar(part * (math.pi / 4), 4.0) + _noise(n, generator, 0.5)) / 1.414, part


def _pinwheel(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    # Five arms: normal along the radius (0.3) and across it (0.1), turned the more the farther out they are.
    part = _parts(n, 5, generator)
    arm = _noise(n, generator, 1.0) * torch.tensor([0.3, 0.1], dtype=torch.float64)
    along, across = arm[:, 0] + 1, arm[:, 1]
    angle = part * (2 * math.pi / 5) + 0.25 * along.exp()
    return 2 * (_polar(angle, along) + _polar(angle + math.pi / 2, across)), part


def _two_spirals(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    # One and a half turns, the points denser outside; each coordinate is blurred by a uniform number below 1/2.
    part = _parts(n, 2, generator)
    angle = 3 * math.pi * _uniform(n, generator).sqrt()
    blur = torch.stack([_uniform(n, generator), _uniform(n, generator)], dim=1) / 2
    arm = _polar(math.pi - angle, angle) + blur
    return (1 - 2 * part).view(-1, 1) * arm / 3 + _noise(n, generator, 0.1), part


def _checkerboard(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    # Uniform on the eight dark squares, of side 2, of a board of four by four.
    part = _parts(n, 8, generator)
    column, row = part // 2, 2 * (part % 2) + (part // 2) % 2
    corner = torch.stack([column, row], dim=1)
    within = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return 2 * (corner + within) - 4, part


DRAWS: dict[str, Draw] = {
    "swissroll": _swissroll,
    "circles": _circles,
    "rings": _rings,
    "moons": _moons,
    "8gaussians": _eight_gaussians,
    "pinwheel": _pinwheel,
    "2spirals": _two_spirals,
    "checkerboard": _checkerboard,
}


def toy_names() -> tuple[str, ...]:
    """List the toys.

    Returns:
        Names that `toy` takes; a recipe's `data.name` puts `toy/` before them.

    Example:
        >>> len(toy_names()), toy_names()[3]
        (8, 'moons')
    """
    return tuple(DRAWS)


def toy(name: str, n: int, seed: int = 0) -> Tensor:
    """Draw points of a toy density. The global random state is left alone.

    Args:
        name: One of `toy_names()`.
        n: How many.
        seed: Decides which ones; at least 0.

    Returns:
        float64, shape (n, 2), coordinates of a size of about 1 to 4.

    Raises:
        ConfigError: If there is no such toy, or a number is negative.

    Example:
        >>> toy("checkerboard", 1000).abs().max() <= 4
        tensor(True)
    """
    return _draw(name, n, seed)[0]


def toy_set(name: str, split: str = "train") -> PointSet:
    """One part of a toy data set: always the same draws; the labels say which ring, arm or square a point is of.

    Args:
        name: One of `toy_names()`.
        split: "train" (20,000 points) or "test" (10,000).

    Returns:
        The points, float32.

    Raises:
        ConfigError: If there is no such toy or split.

    Example:
        >>> points = toy_set("moons", "test")
        >>> len(points), points.shape, len(points.classes)
        (10000, (2,), 2)
    """
    if split not in SEEDS:
        raise ConfigError("unknown split", expected="'train' or 'test'", got=repr(split))
    points, labels = _draw(name, N_TRAIN if split == "train" else N_TEST, SEEDS[split])
    classes = tuple(f"part {k}" for k in range(int(labels.max()) + 1))
    return PointSet(points.float(), labels, classes, PREFIX + name)


def _draw(name: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    if name not in DRAWS:
        near = difflib.get_close_matches(str(name).lower(), DRAWS, n=1, cutoff=0.4)
        hint = f"{near[0]!r}" if near else ""
        raise ConfigError("unknown toy", expected=", ".join(DRAWS), got=repr(name), hint=hint)
    if n < 0 or seed < 0:
        raise ConfigError("bad draw of a toy", expected="n and seed at least 0", got=f"n {n}, seed {seed}")
    return DRAWS[name](n, seeded_generator(seed, list(DRAWS).index(name)))
