"""The path that weights take while a network is trained, for `loss_slice`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._unwrap import unwrap


class WeightPath:
    """Collects a network's weights in any training loop: copies on the CPU, a few dozen are enough for a picture.

    Args:
        model: The network. Nothing is hooked to it.
        every: Keep each so many-th call of `record`; the first is kept.

    Attributes:
        states: What was kept, oldest first: parameters and buffers by name.

    Raises:
        ConfigError: If `every` is below 1.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> path = WeightPath(network)
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> for _ in range(3):
        ...     path.record()
        ...     network(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> len(path), sorted(path.states[0])
        (3, ['bias', 'weight'])
    """

    def __init__(self, model: nn.Module, every: int = 1) -> None:
        if every < 1:
            raise ConfigError("a path keeps no weights", expected="every >= 1", got=every)
        self._model, self._every, self._n = unwrap(model), every, 0
        self.states: list[dict[str, Tensor]] = []

    def record(self) -> None:
        """Keep the weights as they are now."""
        if self._n % self._every == 0:
            with torch.inference_mode(False), torch.no_grad():
                tensors = [*self._model.named_parameters(), *self._model.named_buffers()]
                self.states.append({name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors})
        self._n += 1

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.states)
