"""Two layers and 2n + d weights that memorise any n points: theorem 1 of Zhang et al. (2017), constructed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invertible._checks import check_finite, describe
from invertible.errors import ConfigError, ConvergenceError, DataError, DtypeError, ShapeError

_N_DIRECTIONS = 64
_N_REFINE = 10
_ROWS = 1024


class MemorizingNetwork(nn.Module):
    """c(x) = sum_j w_j max(<a, x> - b_j, 0), in float64.

    Args:
        a: The direction that points are told apart by, shape (d,).
        b: Where each unit switches on, ascending, shape (n,).
        w: Of each unit, shape (n,), or (n, k) for k outputs.

    Source: Zhang et al. 2017, theorem 1 and appendix C.
    """

    def __init__(self, a: Tensor, b: Tensor, w: Tensor) -> None:
        super().__init__()
        self.a, self.b, self.w = nn.Parameter(a), nn.Parameter(b), nn.Parameter(w)

    @property
    def n_weights(self) -> int:
        """2n + d for one output."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate.

        Args:
            x: Shape (batch, ...), d numbers each, in any floating-point dtype.

        Returns:
            Shape (batch,), or (batch, k); float64.

        Raises:
            ShapeError: If points have another number of coordinates.
        """
        flat = x.flatten(1) if x.ndim > 1 else x
        if flat.ndim != 2 or flat.shape[1] != len(self.a):
            raise ShapeError("MemorizingNetwork got other points", expected=f"(batch, {len(self.a)})", got=describe(x))
        # Row by row, as if there were one point only: a product of matrices rounds by the batch's size.
        return torch.cat([self._few(rows.to(self.a.dtype)) for rows in flat.split(_ROWS)])

    def _few(self, x: Tensor) -> Tensor:
        units = (_project(x, self.a)[:, None] - self.b).relu()
        if self.w.ndim == 1:
            return (units * self.w).sum(1)
        return torch.stack([(units * column).sum(1) for column in self.w.unbind(1)], 1)


def memorizing_network(x: Tensor, y: Tensor, *, tolerance: float = 1e-6, seed: int = 0) -> MemorizingNetwork:
    """Construct a network with a hidden layer of n units that takes the value y_i at each x_i.

    Points are projected to a line on which they differ; each unit switches on at the point before its own (the first
    below all), and the triangular system for w is solved by substitution. Of random directions that with the widest
    smallest gap is taken. What the network really gives at all points is compared with y before it is returned.

    Args:
        x: n different points, shape (n, ...), real numbers. Repeated points with the same y count once.
        y: Values, shape (n,) or (n, k): real numbers, or whole ones such as labels.
        tolerance: Largest |c(x_i) - y_i| over the largest |y|.
        seed: Of the directions; the global random state is not touched.

    Returns:
        The network: 2n + d weights for y of shape (n,), n (1 + k) + d for (n, k).

    Raises:
        DataError: If equal points have different values: no function does that.
        ConvergenceError: If points are too near to each other for float64.
        ShapeError: If there are no points, or not one y for each.
        DtypeError: If x or y are of an unfit dtype.
        NonFiniteError: If they hold NaN or infinity.
        ConfigError: If the tolerance is not above 0.

    Source: Zhang et al. 2017, theorem 1.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> y = torch.arange(50) % 7
        >>> network = memorizing_network(x, y)
        >>> network.n_weights == 2 * 50 + 3, torch.equal(network(x).round().long(), y)
        (True, True)
    """
    _check(x, y, tolerance)
    with torch.inference_mode(False), torch.no_grad():
        points, values = x.detach().flatten(1).double().clone(), y.detach().double().clone()
        points, values = _distinct(points, values)
        a = _direction(points, seed)
        projected, order = _project(points, a).sort()
        points, values = points[order], values[order]
        b = torch.cat([projected[:1] - _gap_before(projected), projected[:-1]])
        network = MemorizingNetwork(a, b, _substitute(projected, b, values))
        _refine(network, points, values, projected)
        _verify(network, points, values, projected, tolerance)
    return network


def _check(x: Tensor, y: Tensor, tolerance: float) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.is_complex() or y.is_complex():
        got = f"{describe(x)} and {describe(y)}"
        raise DtypeError("memorizing_network takes tensors", expected="real numbers", got=got)
    if x.ndim < 2 or not x.numel():
        hint = "x[:, None] for points on a line"
        raise ShapeError("memorizing_network takes points", expected="(n, d)", got=tuple(x.shape), hint=hint)
    if y.ndim not in (1, 2) or len(y) != len(x) or not y.numel():
        expected = f"({len(x)},) or ({len(x)}, k)"
        raise ShapeError("memorizing_network takes a value per point", expected=expected, got=tuple(y.shape))
    if not tolerance > 0:
        raise ConfigError("memorizing_network got a bad tolerance", expected="above 0", got=tolerance)
    check_finite(x, "memorizing_network's x")
    check_finite(y, "memorizing_network's y")


def _distinct(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    unique, which = points.unique(dim=0, return_inverse=True)
    rows = torch.arange(len(points), device=points.device)
    first = torch.full_like(rows[: len(unique)], len(points)).scatter_reduce(0, which, rows, "amin")
    differs = (values != values[first[which]]).flatten(1).any(1) if values.ndim > 1 else values != values[first[which]]
    if differs.any():
        i = int(differs.nonzero()[0])
        other = int(first[which[i]])
        got = f"points {other} and {i}, equal, with {values[other].tolist()} and {values[i].tolist()}"
        hint = "drop one of them"
        raise DataError("equal points have different values", expected="a function", got=got, hint=hint)
    return unique, values[first]


def _project(x: Tensor, a: Tensor) -> Tensor:
    return (x * a).sum(1)


def _direction(points: Tensor, seed: int) -> Tensor:
    d = points.shape[1]
    if d == 1:
        return points.new_ones(1)
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randn(_N_DIRECTIONS, d, generator=generator, dtype=points.dtype)
    # Coordinates alone are exact: no rounding brings points together.
    candidates = torch.cat([candidates, torch.eye(d, dtype=points.dtype)[:_N_DIRECTIONS]]).to(points.device)
    gaps = torch.stack([_narrowest(_project(points, a)) for a in candidates])
    if not gaps.max() > 0:
        hint = "another seed, or points that differ by more than rounding"
        raise ConvergenceError("no direction tells all points apart", got=f"{len(candidates)} directions", hint=hint)
    return candidates[int(gaps.argmax())]


def _narrowest(projected: Tensor) -> Tensor:
    if len(projected) < 2:
        return projected.new_ones(())
    ordered = projected.sort().values
    return ordered.diff().min() / (ordered[-1] - ordered[0]).clamp(min=torch.finfo(ordered.dtype).tiny)


def _gap_before(projected: Tensor) -> Tensor:
    # A step of the size of the points' own distances, large enough to be seen beside the first of them.
    mean = (projected[-1] - projected[0]) / max(len(projected) - 1, 1)
    return torch.maximum(mean, projected[0].abs() * 2**-20).clamp(min=2.0**-200) if len(projected) > 1 else mean + 1


def _substitute(projected: Tensor, b: Tensor, values: Tensor) -> Tensor:
    """Solve A w = y for the lower triangular A_ij = max(z_i - b_j, 0): differences of slopes.

    Returns:
        w, the shape of the values.
    """
    steps = values.diff(dim=0, prepend=torch.zeros_like(values[:1]))
    widths = projected - b
    slopes = steps / (widths if values.ndim == 1 else widths[:, None])
    return slopes.diff(dim=0, prepend=torch.zeros_like(slopes[:1]))


def _refine(network: MemorizingNetwork, points: Tensor, values: Tensor, projected: Tensor) -> None:
    best, kept = float("inf"), network.w.clone()
    for _ in range(_N_REFINE):
        rest = values - network(points)
        error = float(rest.abs().max())
        if not error < best:
            break
        best, kept = error, network.w.clone()
        network.w.add_(_substitute(projected, network.b, rest))
    network.w.copy_(kept)


def _verify(network: MemorizingNetwork, points: Tensor, values: Tensor, projected: Tensor, tolerance: float) -> None:
    scale = float(values.abs().max()) or 1.0
    error = float((network(points) - values).abs().max()) / scale
    if not error <= tolerance:
        hint = "another seed, points rescaled to similar sizes, a larger tolerance, or the nearest points taken out"
        got = f"an error of {error:.3g}; the smallest gap is {float(_narrowest(projected)):.3g} of the whole"
        problem = "points are too near to each other to be memorised in float64"
        raise ConvergenceError(problem, expected=f"an error of {tolerance:g} at most", got=got, hint=hint)
