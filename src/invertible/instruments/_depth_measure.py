"""The steps of a depth profile: listen, listen to the untrained network, probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, DtypeError, NonFiniteError
from invertible.instruments._batch import Batch
from invertible.instruments._depth_features import INPUT, Depths, Place, random_axes
from invertible.instruments._depth_findings import NOT_ASKED
from invertible.instruments._depth_rows import Depth
from invertible.instruments._moments import Axis
from invertible.instruments._probes import Prober, components_for, distances
from invertible.instruments._untrained import made_by, obstacle, reset, settle_batch_norm
from invertible.instruments.feeding import Bar, Feed
from invertible.instruments.taps import Layers
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Options:
    """What `depth_profile` was called with; see there.

    Args:
        n_examples: At most so many.
        n_folds: Wanted.
        penalties: C of the SVM.
        n_projected: Dimensions; None: the narrowest place's.
        standardize: Whether features get variance 1.
        seconds: Budget.
        seed: Of everything.
        quiet: No progress.
    """

    n_examples: int
    n_folds: int
    penalties: tuple[float, ...]
    n_projected: int | None
    standardize: bool
    seconds: float | None
    seed: int
    quiet: bool

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: If an option is out of its range.
        """
        least = {"n_examples": (self.n_examples, 4), "n_folds": (self.n_folds, 2), "n_projected": (self.n_projected, 1)}
        for name, (value, low) in least.items():
            if value is not None and (isinstance(value, bool) or value < low):
                raise ConfigError(f"depth_profile has a bad {name}", expected=f"{low} or more", got=value)
        if not self.penalties or not all(math.isfinite(c) and c > 0 for c in self.penalties):
            raise ConfigError("depth_profile has bad penalties", expected="one or more above 0", got=self.penalties)


class Measurement:
    """A depth profile in the making. Inside `measuring` only.

    Args:
        model: The network.
        feed: The batches.
        options: What was asked for.

    Attributes:
        stopped: Why it ended early; "": it did not.
        silent: Names of places that never ran.
        untrained: What the untrained network was, or why there is none.
        n_left_out: How many places the budget left out.
    """

    def __init__(self, model: nn.Module, feed: Feed, options: Options) -> None:
        self._model, self._feed, self._options = model, feed, options
        self._batches: list[Batch] = []
        self._places: list[Place] = []
        self._before: dict[str, NDArray[Any]] = {}
        self.stopped, self.untrained, self.n_left_out = "", "", 0
        self.silent: tuple[str, ...] = ()

    def hear(self, layers: Layers, axis: Axis) -> None:
        """Let the data through, and look at the labels.

        Args:
            layers: Where to listen.
            axis: Where the channels are.

        Raises:
            ConfigError: If labels or places do not fit.
        """
        depths, labels, n = Depths(self._model, layers, axis), [], 0
        called: set[str] = set()
        listener = None
        for batch in self._feed:
            listener = depths.hear(batch)
            called |= {tap.name for tap in depths.taps} - set(listener.silent)
            labels.append(_classes(batch.needed_labels(self._feed.name)))
            self._batches.append(batch)
            n += batch.n_examples
            if n >= self._options.n_examples or self._is_late(0.5, f"{n} examples"):
                break
        self.stopped = self.stopped or self._feed.stopped
        self.silent = tuple(tap.name for tap in depths.taps if tap.name not in called)
        if listener is not None and (not called or (layers != "auto" and self.silent)):
            listener.check_heard()
        self._places = depths.places
        self._set_labels(torch.cat(labels)[: self._options.n_examples])

    def _set_labels(self, labels: Tensor) -> None:
        self._n, self._labels = len(labels), labels.numpy()
        _, counts = np.unique(self._labels, return_counts=True)
        if len(counts) < 2 or counts.min() < 2:
            hint = "more examples, in random order"
            got = f"{len(counts)} class{'es' * (len(counts) != 1)}, {counts.min()} of the rarest"
            raise ConfigError("too few labels", expected="two examples or more of each of two classes or more",
                              got=got, hint=hint)  # fmt: skip
        self.chance, self.n_classes = float(counts.max() / self._n), len(counts)
        self.n_folds = int(min(self._options.n_folds, counts.min()))
        self.prober = self._new_prober(self._labels)
        widths = [place.features.shape[1] for place in self._places if place.name != INPUT]
        self.n_projected = self._options.n_projected or min(widths)

    def _new_prober(self, labels: NDArray[Any]) -> Prober:
        return Prober(labels, self.n_folds, self._options.penalties, self._options.standardize, self._options.seed)

    def hear_untrained(self, untrained: object, layers: Layers, axis: Axis, mode: Mode) -> None:
        """Let the same data through the untrained network.

        Args:
            untrained: As `depth_profile` takes it.
            layers: Where to listen, as in the trained one.
            axis: Where the channels are.
            mode: Of a network that was given.

        Raises:
            ConfigError: If it cannot be made.
        """
        if untrained == "none":
            self.untrained = NOT_ASKED
        elif isinstance(untrained, str):
            self._hear_reset(untrained, layers, axis)
        else:
            names = [tap.name for tap in Depths(self._model, layers, axis).taps]
            network = made_by(untrained, self._model, self._options.seed)  # pyright: ignore[reportArgumentType]
            with measuring(network, mode) as inside:
                if callable(untrained) and not isinstance(untrained, nn.Module):
                    settle_batch_norm(inside, self._batches)
                self._keep(inside, names, axis, "given")

    def _hear_reset(self, untrained: str, layers: Layers, axis: Axis) -> None:
        reason = obstacle(self._model)
        if reason and untrained == "reset":
            hint = "untrained=a function that makes the network anew"
            raise ConfigError(
                "the network cannot be reset", expected="reset_parameters everywhere", got=reason, hint=hint
            )
        if reason:
            self.untrained = reason
            return
        reset(self._model, self._options.seed)
        settle_batch_norm(self._model, self._batches)
        self._keep(self._model, layers, axis, "reset")

    def _keep(self, network: nn.Module, layers: Layers, axis: Axis, kind: str) -> None:
        depths = Depths(network, layers, axis, has_cka=False)
        try:
            for batch in self._batches:
                depths.hear(batch)
        except NonFiniteError as error:
            self.untrained = f"its values are not finite: {error.problem}"
            return
        self._before = {place.name: place.features[: self._n] for place in depths.places}
        self.untrained = kind

    def probe(self) -> tuple[Depth, ...]:
        """Probe every place, every other one first.

        Returns:
            One for each that the budget allowed, in the order they came.
        """
        shuffled = self._new_prober(np.random.default_rng(self._options.seed).permutation(self._labels))
        found: dict[int, Depth] = {}
        with ExitStack() as stack:
            update = Bar(f"{self._feed.name}: probes", stack, self._options.quiet)
            for i in coarse_to_fine(len(self._places)):
                found[i] = self._probe(self._places[i], shuffled)
                update(self._feed.watch.seconds, len(found) / len(self._places))
                if len(found) < len(self._places) and self._is_late(1.0, f"{len(found)} of {len(self._places)} places"):
                    break
        self.prober.n_unconverged += shuffled.n_unconverged
        self.n_left_out = len(self._places) - len(found)
        return tuple(found[i] for i in sorted(found))

    def _probe(self, place: Place, shuffled: Prober) -> Depth:
        features, before = place.features[: self._n], self._before.get(place.name)
        axes = random_axes(features.shape[1], self.n_projected, self._options.seed)
        own = self.prober
        within, between = distances(features, self._labels)
        other = (math.nan, math.nan) if before is None else distances(before, self._labels)
        same_width = before is not None and before.shape[1] == features.shape[1]
        return Depth(
            name=place.name,
            width=features.shape[1],
            size=place.size,
            trained=own.separation(features),
            untrained=None if before is None else own.separation(before),
            shuffled=shuffled.separation(features),
            projected=own.separation(self._scaled(features) @ axes),
            untrained_projected=own.separation(self._scaled(before) @ axes) if same_width else None,
            components=own.components(features, _counts(features.shape[1])),
            n_components=components_for(features, self._options.standardize),
            within=within,
            between=between,
            norm=float(np.linalg.norm(features, axis=1).mean()),
            untrained_ratio=other[0] / other[1] if before is not None and other[1] > 0 else None,
            cka_input=place.similarities[0],
            cka_output=place.similarities[1],
        )

    def _scaled(self, features: NDArray[Any] | None) -> Any:
        # Before the projection, or a few large features would be all that is seen. It uses no labels.
        from invertible.instruments._probes import moments

        if features is None or not self._options.standardize:
            return features
        mean, deviation = moments(features)
        return (features - mean) / deviation

    def _is_late(self, share: float, done: str) -> bool:
        seconds = self._options.seconds
        if seconds is None or self._feed.watch.seconds < share * seconds:
            return False
        self.stopped = f"seconds={seconds:g}, after {done}"
        return True


def coarse_to_fine(n: int) -> list[int]:
    """An order in which any beginning is spread over the whole: last, first, middle, quarters, ...

    Args:
        n: How many there are.

    Returns:
        The numbers below n.

    Example:
        >>> coarse_to_fine(9)
        [8, 0, 5, 3, 6, 2, 4, 1, 7]
    """
    order = [n - 1, 0] if n > 1 else [0]
    step = n
    while step > 1:
        step = -(-step // 2)
        order += [i for i in range(0, n, step) if i not in order]
    return order


def _counts(width: int) -> Sequence[int]:
    return [*(2**k for k in range(width.bit_length()) if 2**k < width), width]


def _classes(labels: Tensor) -> Tensor:
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        got = f"{tuple(labels.shape)}, {labels.dtype}"
        hint = "batch_fn=lambda batch: (x, y) with y.argmax(1) of one-hot labels"
        raise DtypeError("labels are no classes", expected="whole numbers, shape (n,)", got=got, hint=hint)
    return labels.cpu()
