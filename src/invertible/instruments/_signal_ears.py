"""Listening at the stem, at blocks and at the ends of their residual branches, while batches go through."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from invertible._tap_points import HasTapPoints, TapPoints
from invertible.errors import ConfigError
from invertible.instruments._batch import Batch
from invertible.instruments._moments import Axis, ChannelMoments, channel_axis
from invertible.instruments._residual_ends import find_residual_ends
from invertible.instruments._signal_rows import SignalBlock, SignalBranch
from invertible.instruments.feeding import Feed
from invertible.instruments.taps import Heard, Layers, Tap, find_taps, listen, residual_end


class Ears:
    """Moments of what is heard. Inside `measuring` only.

    Args:
        model: The network.
        taps: Its blocks.
        axis: Where the channels are.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], axis: Axis) -> None:
        self.model, self.taps = model, tuple(taps)
        self._axis: Axis = axis
        self._ends: dict[str, list[tuple[Tap, int]]] = {tap.name: [] for tap in taps}
        self._around: dict[str, str] = {}  # the block of each end
        self._moments: dict[tuple[str, str, int], tuple[ChannelMoments, int]] = {}
        self._modules = {tap.name: tap.module for tap in taps}
        self._stem: str | None = None

    def place_residuals(self, residuals: Layers | None, batch: Batch) -> None:
        """Find the ends of residual branches.

        Args:
            residuals: As in `signal_propagation`.
            batch: The first, for a look at how the network adds.

        Raises:
            ConfigError: If an end lies in no block.
        """
        if residuals is None:
            return
        if residuals != "auto":
            self._place_named(find_taps(self.model, residuals))
            return
        unknown = [tap for tap in self.taps if not isinstance(tap.module, HasTapPoints)]
        for tap in self.taps:
            end = residual_end(tap)
            if end is not None:
                self._place(tap.name, end, 0)
        for block, ends in self._watch(unknown, batch).items() if unknown else ():
            for end, call in ends:
                self._place(block, end, call)

    def _place_named(self, ends: Sequence[Tap]) -> None:
        for end in ends:
            around = [tap.name for tap in self.taps if _lies_in(end.name, tap.name)]
            if not around:
                blocks = ", ".join(tap.name for tap in self.taps[:3])
                hint = "layers=... that hold it"
                raise ConfigError("a residual end lies in no block", expected=f"inside {blocks}, ...", got=end.name,
                                  hint=hint)  # fmt: skip
            self._place(max(around, key=len), end, 0)

    def _place(self, block: str, end: Tap, call: int) -> None:
        self._ends[block].append((end, call))
        self._around.setdefault(end.name, block)

    def _watch(self, blocks: Sequence[Tap], batch: Batch) -> dict[str, tuple[tuple[Tap, int], ...]]:
        few = batch.few(2 if any(module.training for module in self.model.modules()) else 1)
        try:
            return find_residual_ends(self.model, blocks, lambda: few.run(self.model))
        except (RuntimeError, TypeError, ValueError, IndexError):  # it may want the batch whole, or fail on that too
            return find_residual_ends(self.model, blocks, lambda: batch.run(self.model))

    def hear(self, feed: Feed, is_strict: bool) -> tuple[str, ...]:
        """Let all batches through.

        Args:
            feed: The batches.
            is_strict: Whether each block has to run.

        Returns:
            Names of blocks that never ran.

        Raises:
            ConfigError: If none ran, or one that had to.
        """
        inputs = [Tap(tap.name, tap.module, "input") for tap in self.taps]
        found = [end for ends in self._ends.values() for end, _ in ends]
        ends = {end.name: end for end in found if end.name not in self._modules}
        with listen(self.model, (*inputs, *self.taps, *ends.values()), self._hear) as listener:
            for batch in feed:
                batch.run(self.model)
        silent = tuple(tap.name for tap in self.taps if tap.name in listener.silent)
        if is_strict or len(silent) == len(self.taps):
            listener.check_heard()
        return silent

    def _hear(self, heard: Heard) -> None:
        tap = heard.tap
        if tap.side == "input" and not self._is_stem(heard):
            return
        key, x = (tap.name, tap.side, heard.call), heard.tensor
        if key not in self._moments:
            around = self._modules.get(self._around.get(tap.name, tap.name))
            axis: int = channel_axis(x, self._axis, *(m for m in (tap.module, around) if m is not None))
            self._moments[key] = (ChannelMoments(), axis)
        moments, axis = self._moments[key]
        moments.add(x, axis)

    def _is_stem(self, heard: Heard) -> bool:
        # What the first block gets; token numbers are no signal yet.
        if self._stem is None and any(tensor.is_floating_point() for tensor in heard.tensors):
            self._stem = heard.tap.name
        return heard.tap.name == self._stem and heard.call == 0

    def blocks(self) -> tuple[SignalBlock, ...]:
        """What was heard.

        Returns:
            The stem and the blocks, in the order they came.
        """
        keys = [(name, call) for name, side, call in self._moments if side == "output" and name in self._modules]
        repeated = {name for name, call in keys if call}
        found = []
        if self._stem is not None:
            shown = f"input of {self._stem or 'the network'}"
            found.append(self._block(self._stem, 0, "input", shown, "stem", TapPoints(), ()))
        for name, call in keys:
            shown = (name or "the network") + (f" (call {call + 1})" if name in repeated else "")
            module = self._modules[name]
            declared = module.tap_points() if isinstance(module, HasTapPoints) else TapPoints()
            branches = self._branches(name, call, declared)
            found.append(self._block(name, call, "output", shown, type(module).__name__, declared, branches))
        return tuple(found)

    def _block(
        self, name: str, call: int, side: str, shown: str, kind: str, declared: TapPoints,
        branches: tuple[SignalBranch, ...],
    ) -> SignalBlock:  # fmt: skip
        moments, axis = self._moments[name, side, call]
        squared_mean, variance = moments.squared_mean, moments.variance
        expected = declared.expected_variance
        counts = moments.n_channels, moments.n
        return SignalBlock(shown, kind, squared_mean, variance, expected, *counts, axis, branches)

    def _branches(self, block: str, call: int, declared: TapPoints) -> tuple[SignalBranch, ...]:
        found = []
        for end, first in self._ends[block]:
            # Where the block runs again, its branch's end does, as often within it as before.
            n_each = max(self._n_calls(end.name) // self._n_calls(block), 1)
            heard = self._moments.get((end.name, "output", first + call * n_each))
            if heard is not None:
                moments, expected = heard[0], declared.expected_residual_variance
                found.append(SignalBranch(end.name, moments.variance, moments.squared_mean, expected))
        return tuple(found)

    def _n_calls(self, name: str) -> int:
        return sum(other == name and side == "output" for other, side, _ in self._moments)


def _lies_in(name: str, block: str) -> bool:
    return not block or name.startswith(f"{block}.")
