"""Signal propagation: what mean and variance do from block to block (Brock, De and Smith 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from invertible.instruments._compare_plot import Curve
from invertible.instruments._moments import Axis
from invertible.instruments._signal_ears import Ears
from invertible.instruments._signal_findings import Circumstances, findings_of
from invertible.instruments._signal_gains import set_to_one, zero_gains
from invertible.instruments._signal_plot import draw
from invertible.instruments._signal_rows import SignalBlock
from invertible.instruments.feeding import Feed
from invertible.instruments.result import Result, Row
from invertible.instruments.taps import Layers, find_taps
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "signal_propagation"


@dataclass(frozen=True)
class SignalPropagation(Result):
    """What `signal_propagation` found.

    Args:
        findings: Worst first.
        blocks: What goes into the first block, then each block's output, in the order they came.
        model: The network's class.
        unit_gains: Names of the parameters that were set to one.
    """

    blocks: tuple[SignalBlock, ...]
    model: str
    unit_gains: tuple[str, ...]

    @property
    def table(self) -> list[Row]:
        """One row per residual branch, or per block that has none: the block's fields, then the branch's."""
        return [row for block in self.blocks for row in block.rows()]

    @property
    def curves(self) -> dict[str, Curve]:
        """The three quantities against the number of the block: "variance", "squared mean", "residual variance"."""
        values = {
            "variance": [block.variance for block in self.blocks],
            "squared mean": [block.squared_mean for block in self.blocks],
            "residual variance": [block.residual_variance for block in self.blocks],
        }
        depth = tuple(float(i) for i in range(len(self.blocks)))
        return {
            name: Curve(depth, tuple(float("nan") if y is None else y for y in ys), "block", name, log=True)
            for name, ys in values.items()
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw squared mean, variance and residual variance against depth; what is expected is dashed.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes, with a logarithmic scale.
        """
        mode = f", {self.provenance.mode} mode" if self.provenance else ""
        return draw(ax, self.blocks, f"Signal propagation: {self.model}{mode}")


def signal_propagation(
    model: nn.Module,
    data: Any,
    *,
    layers: Layers = "auto",
    residuals: Layers | None = "auto",
    channel_axis: Axis = "auto",
    mode: Mode = "as is",
    unit_gains: bool = False,
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> SignalPropagation:
    """Measure what mean and variance of the signal do with depth, at the stem and at every block.

    At each place, with the channels' mean and biased variance over examples and positions: the average channel squared
    mean, the average channel variance; and the latter at the end of the residual branch too, before stochastic depth,
    skip gain and alpha. Several batches count as one, in constant memory.

    Where a block declares itself (`tap_points`) its residual branch's end and the variance that theory expects are
    taken from there. In other networks the ends are found by watching additions in one small forward pass: of two
    tensors that are added in a block, the one with more operations behind it is the branch. `residuals` overrides that.

    Args:
        model: Any module. It is left as it is, to the bit.
        data: A shape, such as (16, 3, 32, 32), for N(0, 1) noise; or a tensor, batches, a loader, a data set: whatever
            `feeding.Feed` takes.
        layers: Where to listen: "auto" (the blocks), names, patterns, types; as in `find_taps`.
        residuals: Ends of the residual branches: "auto", names, patterns, types, or None for none.
        channel_axis: Which dimension the channels are; "auto": the second in convolutional networks, the last in
            transformers. The result says which it was.
        mode: "train" (BatchNorm uses the batch; its statistics are put back), "eval" or "as is".
        unit_gains: Measure as if skip gains were one: those that blocks declare, else parameters of one element that
            are zero. As long as they are zero, each block passes on its shortcut and there is little to see.
        batch_fn: Makes of each batch what the network takes.
        batches: At most so many.
        seconds: Stop after the batch in which so much time ran out.
        seed: Of noise and shuffling.
        quiet: Show no progress.

    Returns:
        Figures per block, with findings; see `SignalPropagation` and its `blocks`.

    Raises:
        ConfigError: If a name is unknown, nothing matches, a residual end lies in no block, or an option is wrong.
        DtypeError: If model or data are of an unknown kind.
        ShapeError: If a batch is empty or there is no such channel axis.
        NonFiniteError: If the data hold NaN or infinity. (What the network makes is a finding.)
        DataError: If there are no data.

    Source: Brock, De and Smith 2021, "Characterizing signal propagation to close the performance gap in unnormalized
    ResNets", section 3.

    Example:
        >>> from invertible.models import resnet20
        >>> found = signal_propagation(resnet20(), (4, 3, 32, 32))
        >>> [block.name for block in found.blocks[:3]], found.blocks[1].branches[0].name, found.provenance.mode
        (['input of stages.0.0', 'stages.0.0', 'stages.0.1'], 'stages.0.0.residual', 'train')
    """
    with measuring(model, mode) as network:
        feed = Feed(
            NAME, network, data, batch_fn=batch_fn, batches=batches, seconds=seconds, seed=seed, quiet=quiet
        )  # fmt: skip
        blocks = find_taps(network, layers)
        changed = set_to_one(network, blocks) if unit_gains else ()
        ears = Ears(network, blocks, channel_axis)
        ears.place_residuals(residuals, feed.first)
        silent = ears.hear(feed, is_strict=layers != "auto")
        about = Circumstances(zero_gains(network, blocks), silent, residuals is not None, feed.stopped)
        origin = feed.provenance(network)
    found = ears.blocks()
    return SignalPropagation(findings_of(found, about), found, type(network).__name__, changed, provenance=origin)
