"""How a block tells instruments where to listen in it and what theory expects there.

It stands below layers and models, so that they can declare without importing the instruments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class TapPoints:
    """What one residual block, or one block of any kind, declares. All names are relative to the block.

    Args:
        residual_end: Name of the submodule whose output is the end of the residual branch: after squeeze-excite and
            its factor, before stochastic depth, skip gain and alpha. An `nn.Identity` there serves where nothing else
            has that value as its output. "": the block has no residual branch.
        skip_gains: Names of scalar parameters that multiply the residual branch and start at zero (SkipInit, ReZero);
            instruments can measure as if they were one.
        expected_variance: What theory expects of the average channel variance of the block's output, for an input of
            mean 0 and variance 1 into the network and skip gains of one; None: no theory.
        expected_residual_variance: The same at the residual branch's end.

    Example:
        >>> TapPoints(residual_end="conv3", skip_gains=("skip_gain",), expected_variance=1.04).residual_end
        'conv3'
    """

    residual_end: str = ""
    skip_gains: tuple[str, ...] = ()
    expected_variance: float | None = None
    expected_residual_variance: float | None = None


@runtime_checkable
class HasTapPoints(Protocol):
    """A block that says where to listen in it. Any `nn.Module` with this method is one; nothing is inherited.

    Instruments called with `layers="auto"` listen at the outermost of them.

    Example:
        >>> class Block:
        ...     def tap_points(self) -> TapPoints:
        ...         return TapPoints(residual_end="network", expected_variance=2.0)
        >>> isinstance(Block(), HasTapPoints), isinstance(object(), HasTapPoints)
        (True, False)
    """

    def tap_points(self) -> TapPoints:
        """Say where to listen.

        Returns:
            Names relative to this block, and expectations.
        """
        ...
