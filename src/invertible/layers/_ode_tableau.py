"""Explicit Runge-Kutta methods as numbers.

Source: Hairer, Norsett and Wanner 1993, "Solving Ordinary Differential Equations I", sections II.1, II.4 and II.5.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """A method: slope i is taken at t + nodes[i] h from the slopes before it, weighted by matrix[i].

    Args:
        nodes: Usually called c.
        matrix: Usually called a, the lower triangle.
        weights: Usually called b: of the slopes in the result.
        error: Weights of the slopes in the estimated error; empty: the method estimates none.
        order: Of the result.
    """

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()
    order: int = 1

    @property
    def is_adaptive(self) -> bool:
        """Whether it can choose its steps. Its last slope then is the next step's first."""
        return bool(self.error)

    @property
    def n_stages(self) -> int:
        """Slopes that a step needs, not counting one that only the error estimate and the next step use."""
        return len(self.weights) - self.is_adaptive


_DOPRI5 = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_DOPRI4 = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_BOSH3 = (2 / 9, 1 / 3, 4 / 9, 0.0)
_BOSH2 = (7 / 24, 1 / 4, 1 / 3, 1 / 8)

TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), order=2),
    "rk4": Tableau(
        (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4
    ),
    "bosh3": Tableau(
        (0.0, 0.5, 0.75, 1.0),
        ((), (0.5,), (0.0, 0.75), _BOSH3[:3]),
        _BOSH3,
        tuple(a - b for a, b in zip(_BOSH3, _BOSH2, strict=True)),
        order=3,
    ),
    "dopri5": Tableau(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            _DOPRI5[:6],
        ),
        _DOPRI5,
        tuple(a - b for a, b in zip(_DOPRI5, _DOPRI4, strict=True)),
        order=5,
    ),
}
