"""Receipts for exact maps: which input each recent output came from, as fingerprints of their bits.

A network's floating-point results can depend on the batch, the number of threads, the layout in memory and the mode.
An exact inverse under other circumstances than the forward pass would give other bits, and nothing in its result shows
that. With a receipt it does.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from invertible.errors import ReconstructionError
from invertible.streams import State

_N_CALLS, _N_KNOWN = 256, 65_536
_MIXER = -1640531527  # an odd number with well-spread bits


class Receipts:
    """Fingerprints of the last calls' inputs and outputs, element by element of their batches."""

    def __init__(self) -> None:
        self._new: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=_N_CALLS)  # still where the network is
        self._known: dict[tuple[int, int], int] = {}

    def write(self, map: nn.Module, x: State, y: State) -> None:
        """Remember a forward call.

        Args:
            map: Whose call.
            x: Its input, on the lattice.
            y: Its output.
        """
        self._new.append((_stamp(map), _fingerprint(y), _fingerprint(x)))

    def check(self, map: nn.Module, y: State, x: State) -> None:
        """Hold an inverse call against what is remembered; what is not known, or from other weights, passes.

        Args:
            map: Whose call.
            y: Its input.
            x: Its output.

        Raises:
            ReconstructionError: If a y that was a forward call's output comes back as another x.
        """
        self._read()
        stamp = _stamp(map)
        for i, (key, value) in enumerate(zip(_fingerprint(y).tolist(), _fingerprint(x).tolist(), strict=True)):
            if self._known.get((stamp, key), value) != value:
                raise ReconstructionError(
                    f"the exact inverse gave other bits than went in, first for element {i} of the batch",
                    expected="the same circumstances as in the forward pass",
                    got="others: floating-point results depend on the batch, torch.set_num_threads, the device,"
                    " autocast, and in train mode on the other elements and the random state",
                    hint="eval(), and invert the batch as it was, with the same settings",
                )

    def _read(self) -> None:
        while self._new:
            stamp, ys, xs = self._new.popleft()
            self._known |= {(stamp, y): x for y, x in zip(ys.tolist(), xs.tolist(), strict=True)}
        for key in list(self._known)[: max(0, len(self._known) - _N_KNOWN)]:
            del self._known[key]


def _stamp(map: nn.Module) -> int:
    # With other weights it is another map, whose inverse may well give something else.
    return hash(tuple((id(p), 0 if p.is_inference() else p._version) for p in map.parameters()))


def _fingerprint(state: State) -> Tensor:
    streams = state if isinstance(state, tuple) else (state,)
    return torch.stack([_of_stream(t.detach(), 2 * i + 1) for i, t in enumerate(streams)]).sum(dim=0)


def _of_stream(t: Tensor, factor: int) -> Tensor:
    if not t.numel():
        return torch.zeros(t.shape[0], dtype=torch.int64, device=t.device)
    bits = (t + 0.0).reshape(t.shape[0], -1).contiguous().view(torch.int32)  # + 0.0 makes one zero of both
    place = torch.arange(1, bits.shape[1] + 1, dtype=torch.int32, device=t.device)
    mixed = (bits ^ (bits >> 15)) * (2 * place * _MIXER + 1)
    return (mixed ^ (mixed >> 13)).sum(dim=1) * factor
