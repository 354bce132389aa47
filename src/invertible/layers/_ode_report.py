"""What a solve cost, and what error it made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OdeReport:
    """How the last solve of a continuous flow went.

    Args:
        direction: "forward" from data to latents, or "inverse".
        n_evaluations: Of the field.
        n_rejected: Steps that had to be taken again, smaller.
        n_backward: Evaluations in the last backward pass; 0 before one.
        rtol: The relative tolerance in use.
        atol: The absolute tolerance in use.
        kinetic: Mean over the batch of the integral of |f|^2; None: not computed.
        jacobian: Mean over the batch of the integral of |J e|^2; None: not computed.
    """

    direction: Literal["forward", "inverse"]
    n_evaluations: int
    n_rejected: int
    rtol: float
    atol: float
    n_backward: int = 0
    kinetic: float | None = None
    jacobian: float | None = None


@dataclass(frozen=True)
class OdeError:
    """What error a continuous flow makes on some data, against a solve in float64 with tolerances 100 times smaller.

    Args:
        round_trip: Largest difference between an input and what comes back from its image.
        value: Largest error of the image.
        logdet: Largest error of the log-determinant, in nats, that the solver makes.
        probe: Root mean square of what Hutchinson's estimate adds to that, in nats; 0 with the exact divergence, None
            if the exact one is too expensive to compare with.
        n_evaluations: Of the field, forwards.
        n_evaluations_tight: The same for the solve that it is compared with.
    """

    round_trip: float
    value: float
    logdet: float
    probe: float | None
    n_evaluations: int
    n_evaluations_tight: int
