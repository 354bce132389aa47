"""log|det(I + dg/dx)| of a residual map x + g(x), |dg/dx| < 1, from products with the Jacobian.

All estimators average u^T log(I + J) u over random probes u. They differ in what stands for the logarithm:

| estimator | stands for the logarithm | products | bias | variance |
|---|---|---|---|---|
| `ExactLogDet` | the dense determinant | dimension | 0 | 0 |
| `PowerSeries` | n terms of its power series | n a probe | order c^(n + 1) | the probes' |
| `RussianRoulette` | a power series of random length | random | 0 | the probes' and the length's |
| `Krylov` | quadrature in Krylov spaces | 1 a probe, more for a few | far below the series' | the probes' |
| `AutoLogDet` | the exact one if cheap, else Krylov | up to a budget | as theirs | as theirs |

Gradients: `gradient="neumann"` differentiates w^T J u with w = (I + J)^-T u, approximated by the products that the
value took anyway: the graph holds one product a probe. `"backprop"` differentiates through every product, and is the
gradient of the estimate itself, to all orders.
"""

from invertible.logdet.estimator import Cost, LogDet, LogDetEstimator
from invertible.logdet.exact import AutoLogDet, ExactLogDet
from invertible.logdet.krylov import Krylov
from invertible.logdet.series import PowerSeries, RussianRoulette

__all__ = [
    "AutoLogDet",
    "Cost",
    "ExactLogDet",
    "Krylov",
    "LogDet",
    "LogDetEstimator",
    "PowerSeries",
    "RussianRoulette",
]
