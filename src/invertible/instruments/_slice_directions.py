"""Directions in weight space to cut a loss along."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._hessian import Hessian
from invertible.instruments._loss_on_data import LossOnData
from invertible.instruments._unwrap import unwrap
from invertible.instruments.top_eigenvectors import Eigenvectors, eigenvectors_of

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EPSILON = 1e-10
"""As in the paper's filter normalisation."""
Constants = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Known:
    """A network whose place is known.

    Args:
        name: Which.
        at: Coordinates.
        theta: Its parameters, shape (n,).
        constants: Its buffers.
        is_exact: Whether it lies in the slice, and not only near.
    """

    name: str
    at: tuple[float, ...]
    theta: Tensor
    constants: Constants = field(default_factory=dict)
    is_exact: bool = True


@dataclass(frozen=True, eq=False)
class Cut:
    """A line or plane through the network.

    Args:
        name: What it goes along.
        labels: One per axis.
        axes: One or two vectors, shape (n,): what a coordinate of 1 adds.
        ranges: Lowest and highest coordinate per axis.
        constants: What a coordinate of 1 adds to the buffers, per axis; empty: they stay.
        known: Networks in it.
        shares: Of a path's variance, per axis.
    """

    name: str
    labels: tuple[str, ...]
    axes: tuple[Tensor, ...]
    ranges: tuple[tuple[float, float], ...]
    constants: tuple[Constants, ...] = ()
    known: tuple[Known, ...] = ()
    shares: tuple[float, ...] = ()


def normalised(view: LossOnData, direction: Tensor, how: str) -> Tensor:
    """Scale a direction to the weights, so that rescaling a network does not change the picture.

    Args:
        view: The loss at the network.
        direction: Shape (n,).
        how: "filter" (each filter's part as long as that filter; zero for biases, norms and all that has one number per
            filter), "layer" (likewise each tensor), or "none" (as long as all parameters together, nothing left out).

    Returns:
        Shape (n,).

    Raises:
        ConfigError: If there is no such normalisation.

    Source: Li, Xu, Taylor, Studer and Goldstein 2018, "Visualizing the loss landscape of neural nets", section 4.
    """
    if how not in ("filter", "layer", "none"):
        raise ConfigError("no such normalisation", expected='"filter", "layer" or "none"', got=repr(how))
    if how == "none":
        return direction * (view.theta.norm() / direction.norm())
    owners = _owners(view.network)
    weights, parts = view.unflatten(view.theta), view.unflatten(direction)
    found = [_scaled(parts[name], weights[name], owners[name], how).reshape(-1) for name in view.names]
    total = torch.cat(found)
    if not bool(total.any()):
        hint = 'normalise="none"'
        raise ConfigError("filter normalisation leaves nothing of this network", got="biases and norms", hint=hint)
    return total


def _owners(network: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            found[f"{prefix}.{name}" if prefix else name] = module
    return found


def _scaled(d: Tensor, w: Tensor, owner: nn.Module, how: str) -> Tensor:
    if isinstance(owner, NORMS) or w.ndim < 2 or w.numel() == len(w):
        return torch.zeros_like(d)
    if how == "layer":
        return d * (w.norm() / (d.norm() + EPSILON))
    if isinstance(owner, TRANSPOSED):  # its filters are along the second dimension, per group
        shape = (owner.groups, len(w) // owner.groups, *w.shape[1:])
        d_groups, w_groups = d.reshape(shape), w.reshape(shape)
        dims = (1, *range(3, len(shape)))
        return (d_groups * (_length(w_groups, dims) / (_length(d_groups, dims) + EPSILON))).reshape(d.shape)
    dims = tuple(range(1, w.ndim))
    return d * (_length(w, dims) / (_length(d, dims) + EPSILON))


def _length(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.square().sum(dims, keepdim=True).sqrt()


def random_cuts(view: LossOnData, n_dims: int, n_cuts: int, how: str, span: float, seed: int) -> list[Cut]:
    """Lines or planes along Gaussian directions.

    Args:
        view: The loss.
        n_dims: 1 or 2.
        n_cuts: How many.
        how: Normalisation.
        span: Coordinates go from -span to span.
        seed: Of the draw.

    Returns:
        The cuts.
    """
    generator = torch.Generator().manual_seed(seed)
    cuts = []
    for i in range(n_cuts):
        drawn = torch.randn(n_dims, view.n, generator=generator, dtype=torch.float64).to(view.theta)
        axes = tuple(normalised(view, direction, how) for direction in drawn)
        labels = tuple(f"random direction {i * n_dims + j + 1}" for j in range(n_dims))
        name = labels[0] if n_dims == 1 else f"random plane {i + 1}"
        cuts.append(Cut(name, labels, axes, ((-span, span),) * n_dims))
    return cuts


def own_cuts(view: LossOnData, directions: Sequence[Mapping[str, Tensor]], n_dims: int, span: float) -> list[Cut]:
    """Lines along directions of the caller's, or planes of each two in turn.

    Args:
        view: The loss.
        directions: By parameter; what is missing stays.
        n_dims: 1 or 2.
        span: Coordinates go from -span to span.

    Returns:
        The cuts.

    Raises:
        ConfigError: If there are none, they do not fit, or are zero.
    """
    unknown = sorted({name for direction in directions for name in direction} - set(view.names))
    if unknown or not directions or len(directions) % n_dims:
        expected = f"a multiple of {n_dims} of them, by names of trainable parameters"
        raise ConfigError("these are no directions", expected=expected, got=", ".join(unknown) or len(directions))
    zero = {name: torch.zeros_like(tensor) for name, tensor in view.unflatten(view.theta).items()}
    vectors = [view.flatten({**zero, **direction}) for direction in directions]
    if not all(bool(vector.any()) and bool(vector.isfinite().all()) for vector in vectors):
        raise ConfigError(
            "a direction must go somewhere", expected="finite numbers, not all 0", got="0, NaN or infinity"
        )
    labels = [f"direction {i + 1}" for i in range(len(vectors))]
    return _grouped(vectors, labels, n_dims, span)


def _grouped(vectors: Sequence[Tensor], labels: Sequence[str], n_dims: int, span: float) -> list[Cut]:
    cuts = []
    for i in range(0, len(vectors), n_dims):
        names, axes = tuple(labels[i : i + n_dims]), tuple(vectors[i : i + n_dims])
        cuts.append(Cut(" and ".join(names), names, axes, ((-span, span),) * n_dims))
    return cuts


def eigenvector_cuts(view: LossOnData, n_dims: int, n_cuts: int, span: float | None, seed: int) -> list[Cut]:
    """Lines along the Hessian's eigenvectors, or planes of two: the largest ones, and the smallest at last.

    Args:
        view: The loss.
        n_dims: 1 or 2.
        n_cuts: How many.
        span: In parameter space; None: where the largest eigenvalue would add 4 to the loss.
        seed: Of Lanczos' first vector.

    Returns:
        The cuts.
    """
    n = max(n_cuts * n_dims, 2)
    found = eigenvectors_of(Hessian(view), n - 1, 1, 1e-4, seed)
    top = abs(found.eigenvalues[0].value)
    reach = span if span is not None else math.sqrt(8 / top) if top else 1.0
    labels = [_label(found, i) for i in range(len(found.eigenvalues))]
    rows = [row.to(view.theta) for row in found.vectors]
    keep = len(rows) - len(rows) % n_dims if n_cuts * n_dims > 1 else 1
    return _grouped(rows[:keep], labels[:keep], n_dims, reach)


def _label(found: Eigenvectors, i: int) -> str:
    one = found.eigenvalues[i]
    return f"eigenvector of {one.value:.3g} ({one.end} {one.number})"


def between_cut(view: LossOnData, others: Sequence[nn.Module], span: float) -> Cut:
    """The line to another network, or the plane through two others. Buffers move along.

    Args:
        view: The loss.
        others: One or two networks with the same parameters.
        span: How far beyond the networks it goes, as a share of the way.

    Returns:
        The cut.

    Raises:
        ConfigError: If another does not fit or is the same.
    """
    axes, changes, known = [], [], []
    own = view.constants_of(view.constants)
    for i, other in enumerate(others):
        network = unwrap(other)
        tensors = dict([*network.named_parameters(), *network.named_buffers()])
        theta, constants = view.flatten(tensors), view.constants_of(tensors)
        if not bool((theta != view.theta).any()):
            raise ConfigError("the other network has the same parameters", expected="others", got="the same")
        if constants.keys() != own.keys():
            missing = ", ".join(sorted(own.keys() ^ constants.keys()))
            raise ConfigError("the networks have different buffers", expected="equal names", got=missing)
        axes.append(theta - view.theta)
        changes.append({name: tensor - own[name] for name, tensor in constants.items()})
        at = tuple(float(j == i) for j in range(len(others)))
        known.append(Known("the other" if len(others) == 1 else f"other {i + 1}", at, theta, constants))
    names = [mark.name for mark in known]
    labels = tuple(f"share of the way to {name}" for name in names)
    ranges = ((-span, 1 + span),) * len(others)
    return Cut(f"to {' and '.join(names)}", labels, tuple(axes), ranges, tuple(changes), tuple(known))


def path_cut(view: LossOnData, states: Iterable[Mapping[str, Tensor]], n_dims: int, span: float) -> Cut:
    """The line or plane in which a path of weights varies most, seen from the network.

    Args:
        view: The loss.
        states: Weights (and buffers) along the path.
        n_dims: 1 or 2.
        span: How far beyond the path it goes, as a share of its extent.

    Returns:
        The cut; the path's points are projected into it.

    Raises:
        ConfigError: If there are fewer points than dimensions, apart from the network itself.

    Source: Li et al. 2018, section 7: principal components of the differences to the last point.
    """
    kept = list(states)
    thetas = [view.flatten(state) for state in kept]
    if not thetas:
        raise ConfigError("the path is empty", expected=f"{n_dims} points or more", got="none")
    away = torch.stack([theta - view.theta for theta in thetas]).double()
    squares, mixes = torch.linalg.eigh(away @ away.T)
    order = squares.argsort(descending=True)[:n_dims]
    if len(order) < n_dims or not bool((squares[order] > 1e-12 * squares.max().clamp_min(1e-300)).all()):
        hint = "more points, or n_dims=1"
        got = f"{len(thetas)} points"
        raise ConfigError("the path does not span the slice", expected=f"{n_dims} directions", got=got, hint=hint)
    axes = (mixes[:, order].T @ away) / squares[order].sqrt().unsqueeze(1)
    places = away @ axes.T
    shares = tuple((squares[order] / squares.sum()).tolist())
    ranges = tuple(_stretched(places[:, i].tolist(), span) for i in range(n_dims))
    known = tuple(
        Known(f"point {i + 1}", tuple(places[i].tolist()), theta, view.constants_of(state), is_exact=False)
        for i, (theta, state) in enumerate(zip(thetas, kept, strict=True))
    )
    labels = tuple(f"component {i + 1} of the path ({share:.0%})" for i, share in enumerate(shares))
    return Cut("path", labels, tuple(axes.to(view.theta)), ranges, (), known, shares)


def _stretched(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    return low - share * (high - low), high + share * (high - low)
