"""Features at every place, averaged over space, while batches go through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from invertible._checks import check_finite, describe
from invertible.errors import ConfigError
from invertible.instruments._batch import Batch
from invertible.instruments._cka import Cka, Similarity, gram
from invertible.instruments._moments import Axis, channel_axis
from invertible.instruments._tensors import main_tensor
from invertible.instruments.taps import Heard, Layers, Listener, find_taps, listen

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUT = "input"


class Place:
    """What was heard at one place.

    Args:
        name: Of it.
    """

    def __init__(self, name: str) -> None:
        self.name, self.size = name, 0
        self._batches: list[Tensor] = []
        self._to_input, self._to_output = Cka(), Cka()

    def add(self, x: Tensor, axis: int) -> None:
        """Take in a batch.

        Args:
            x: Shape (batch, ...).
            axis: Which dimension the channels are.
        """
        x = x.detach().flatten(0) if x.ndim < 2 else x.detach()
        x = x.unsqueeze(1) if x.ndim < 2 else x
        self.size = x[0].numel()
        others = [dim for dim in range(1, x.ndim) if dim != axis]
        self._batches.append((x.double().mean(others) if others else x.double()).cpu())

    def compare(self, own: Tensor, first: Tensor | None, last: Tensor | None) -> None:
        """Take in inner products of a batch.

        Args:
            own: In this place.
            first: In the input.
            last: In the output.
        """
        for cka, other in ((self._to_input, first), (self._to_output, last)):
            if other is not None:
                cka.add(own, other)

    @property
    def features(self) -> NDArray[Any]:
        """All examples, shape (n, width), float64."""
        return torch.cat(self._batches).numpy()

    @property
    def similarities(self) -> tuple[Similarity | None, Similarity | None]:
        """CKA to the input and to the output."""
        return self._to_input.similarity, self._to_output.similarity


class Depths:
    """Runs a network over batches and keeps what its places make of them. Inside `measuring` only.

    Args:
        model: The network.
        layers: Where to listen.
        axis: Where the channels are.
        has_cka: Whether to compare each place to input and output.
    """

    def __init__(self, model: nn.Module, layers: Layers, axis: Axis, has_cka: bool = True) -> None:
        self._model, self._has_cka = model, has_cka
        self._axis: Axis = axis
        self.taps = find_taps(model, layers)
        self._places: dict[tuple[str, int], Place] = {}
        self._grams: dict[tuple[str, int], Tensor] = {}
        self._n = 0

    def hear(self, batch: Batch) -> Listener:
        """Let a batch through.

        Args:
            batch: The batch.

        Returns:
            Who listened.
        """
        self._grams, self._n = {}, batch.n_examples
        first = next((x for x in batch.tensors if x.is_floating_point()), None)
        if first is not None:
            self._take((INPUT, -1), INPUT, first, ())
        with listen(self._model, self.taps, self._hear) as listener:
            output = main_tensor(self._model, batch.run(self._model))
        if self._has_cka:
            last = None if output is None or output.shape[:1] != (self._n,) else gram(output)
            for key, own in self._grams.items():
                self._places[key].compare(own, self._grams.get((INPUT, -1)), last)
        return listener

    def _hear(self, heard: Heard) -> None:
        name = heard.tap.name or "output"
        name = f"input of {name}" if heard.tap.side == "input" else name
        self._take((name, heard.call), name, heard.tensor, (heard.tap.module,))

    def _take(self, key: tuple[str, int], name: str, x: Tensor, modules: Sequence[nn.Module]) -> None:
        if x.shape[:1] != (self._n,):
            hint = "other layers; examples have to come first"
            expected = f"{self._n} examples in the first dimension"
            raise ConfigError(f"{name} does not keep examples apart", expected=expected, got=describe(x), hint=hint)
        check_finite(x, f"{name}, after {type(self._model).__name__} computed it,")
        if key not in self._places:
            self._places[key] = Place(name + (f" (call {key[1] + 1})" if key[1] > 0 else ""))
        wanted: Axis = self._axis if modules else "auto"  # the input may have another layout
        where: int = channel_axis(x, wanted, *modules)
        self._places[key].add(x, where)
        if self._has_cka:
            self._grams[key] = gram(x)

    @property
    def places(self) -> list[Place]:
        """In the order they came, the input first."""
        return list(self._places.values())


def random_axes(width: int, n: int, seed: int) -> NDArray[Any]:
    """Directions of a random projection.

    Args:
        width: Of the features.
        n: Dimensions to project to.
        seed: Of the draw.

    Returns:
        Independent normal numbers of variance 1 / n, shape (width, n).
    """
    return np.random.default_rng([seed, width]).normal(size=(width, n)) / np.sqrt(n)
