"""Where an information plane listens, what comes from there, and which of it follows from the input invertibly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import check_finite, describe
from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.instruments._batch import Batch
from invertible.instruments._chain_of import chains_in
from invertible.instruments._tensors import main_tensor
from invertible.instruments.taps import Heard, Layers, Tap, find_taps, listen

OUTPUT = "output"
_PURE = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_NONLINEAR = (
    nn.Tanh, nn.ReLU, nn.Sigmoid, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign,
    nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Threshold,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.LogSigmoid, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.GLU,
)  # fmt: skip


class Places:
    """Hears a network's places. Inside `measuring` only.

    Args:
        model: The network.
        layers: As in `find_taps`. "auto" takes the blocks; of those that are single linear layers the nonlinearity
            that follows, if it is a module; and the network's own output, where it is not that of the last place.
        first: A batch, to see what follows on what.
    """

    def __init__(self, model: nn.Module, layers: Layers, first: Batch) -> None:
        self._model, self.is_auto = model, isinstance(layers, str) and layers == "auto"
        taps = find_taps(model, layers)
        self.taps = tuple(_after(model, taps, first)) if self.is_auto else taps

    def hear(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Let batches through.

        Args:
            batches: One or more.

        Returns:
            By place, in the order they came: shape (N, d).

        Raises:
            ConfigError: If a place never ran, or does not keep examples apart.
            NonFiniteError: If a place gives NaN or infinity; it is named.
        """
        found: dict[str, list[Tensor]] = {}
        for batch in batches:
            self._hear(batch, found)
        sizes = {name: sum(len(h) for h in parts) for name, parts in found.items()}
        if len(set(sizes.values())) > 1:
            got = ", ".join(f"{name}: {n}" for name, n in list(sizes.items())[:4])
            raise ConfigError("places ran in some batches only", expected="equally many examples", got=got)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _hear(self, batch: Batch, found: dict[str, list[Tensor]]) -> None:
        heard: dict[str, Tensor] = {}
        where: list[int] = []

        def take(sound: Heard) -> None:
            name = sound.tap.name or OUTPUT
            name = f"input of {name}" if sound.tap.side == "input" else name
            name = f"{name} (call {sound.call + 1})" if sound.call else name
            heard[name] = self._checked(name, sound.tensor, batch.n_examples)
            where.append(sound.tensor.data_ptr())

        with listen(self._model, self.taps, take) as listener:
            output = main_tensor(self._model, batch.run(self._model))
        if not heard or not self.is_auto:
            listener.check_heard()
        if self.is_auto and OUTPUT not in heard and output is not None and output.shape[:1] == (batch.n_examples,):
            own = self._checked(OUTPUT, output, batch.n_examples)
            is_last = where[-1:] == [output.data_ptr()] and torch.equal(next(reversed(heard.values())), own)
            if OUTPUT in found or not is_last:  # equal numbers elsewhere are chance, and may differ at another epoch
                heard[OUTPUT] = own
        for name, h in heard.items():
            found.setdefault(name, []).append(h)

    def _checked(self, name: str, x: Tensor, n: int) -> Tensor:
        if x.shape[:1] != (n,):
            hint = "other layers; examples have to come first"
            raise ConfigError(f"{name} does not keep examples apart", expected=f"{n} first", got=describe(x), hint=hint)
        check_finite(x, f"{name}, after {type(self._model).__name__} computed it,")
        return x.detach().reshape(n, -1).clone()


def invertible_places(model: nn.Module, taps: Sequence[Tap]) -> tuple[dict[str, str], list[str]]:
    """Find the places from which what entered an invertible part follows by construction.

    They are bijections on the main path of an outermost one: it itself, and members of chains in it. What is inside a
    coupling's network is not.

    Args:
        model: The network.
        taps: The places.

    Returns:
        Name of the part by name of the place; and the names of the parts.
    """
    found: dict[str, str] = {}
    for name, part in chains_in(model).items():
        path = _main_path(name, part)
        found |= {tap.name or OUTPUT: name for tap in taps if tap.name in path and tap.side == "output"}
    return found, list(dict.fromkeys(found.values()))


def enters_unchanged(model: nn.Module, part: str, batch: Batch) -> bool:
    """Whether what enters a part is the network's input as it is. Inside `measuring` only.

    Args:
        model: The network.
        part: Name of it.
        batch: A batch.

    Returns:
        Whether all numbers agree, whatever their shape.
    """
    entered: list[Tensor] = []

    def hear(sound: Heard) -> None:
        x = main_tensor(sound.tap.module, sound.value, is_input=True)
        if x is not None:
            entered.append(x.detach().flatten(1))

    with listen(model, [Tap(part, model.get_submodule(part), "input")], hear):
        batch.run(model)
    first = next((x for x in batch.tensors if x.is_floating_point()), None)
    return first is not None and bool(entered) and _same(first.flatten(1), entered[0])


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(torch.equal(x.sort(1).values, y.sort(1).values))


def _main_path(name: str, part: Bijection) -> set[str]:
    path, containers = {name}, {name} if isinstance(part, Chain) else set()
    for child, member in part.named_modules():
        inside, above = f"{name}.{child}".strip("."), f"{name}.{child.rpartition('.')[0]}".strip(".")
        if not child or above not in containers:
            continue
        if isinstance(member, Chain | nn.ModuleList):
            containers.add(inside)
        if isinstance(member, Bijection):
            path.add(inside)
    return path


def _after(model: nn.Module, taps: Sequence[Tap], batch: Batch) -> list[Tap]:
    # Which leaf ran after which, in one pass.
    leaves = {id(module): Tap(name, module) for name, module in model.named_modules() if not module._modules}
    order: list[Tap] = []

    def note(tap: Tap) -> Any:
        return tap.module.register_forward_pre_hook(lambda *_: order.append(tap))

    handles = [note(tap) for tap in leaves.values()]
    try:
        batch.few(2).run(model) if batch.n_examples > 2 else batch.run(model)
    finally:
        for handle in handles:
            handle.remove()
    followed = {id(one.module): other for one, other in itertools.pairwise(order)}
    found = [_heard_at(tap, followed.get(id(tap.module))) for tap in taps]
    return list({id(tap.module): tap for tap in found}.values())


def _heard_at(tap: Tap, follower: Tap | None) -> Tap:
    if isinstance(tap.module, _PURE) and follower is not None and isinstance(follower.module, _NONLINEAR):
        return follower
    return tap


def is_linear(tap: Tap) -> bool:
    """Whether a place is heard before any nonlinearity.

    Args:
        tap: It.

    Returns:
        True for the output of a linear layer.
    """
    return isinstance(tap.module, _PURE) and tap.side == "output"
