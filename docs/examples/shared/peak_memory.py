"""How much memory a computation needs: the bytes of all tensors alive at the same time, at most."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def peak_memory(function: Callable[[], object]) -> int:
    """Run a function and count the tensors it makes, each from the moment it is made until it is freed.

    What existed before (weights, data) is not counted, nor is what a single operation allocates and frees inside.

    Returns:
        Bytes at the worst moment.
    """
    with _Counter() as counter:
        function()
    return counter.peak


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tree_map_only(Tensor, self._meet, (args, kwargs))  # an input that was never seen existed before
        out = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _meet(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        key = storage._cdata  # one storage, many views of it
        if key in self.known:
            return False
        self.known[key] = weakref.ref(storage, lambda _: self.known.pop(key, None))
        return True

    def _count(self, tensor: Tensor) -> None:
        if self._meet(tensor):
            storage = tensor.untyped_storage()
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size
