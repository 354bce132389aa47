"""Products with the Jacobian of whatever a place in a network returns, for one example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from invertible._checks import check_finite, describe
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments._batch import Batch
from invertible.instruments._tensors import main_tensor
from invertible.instruments.taps import Heard, Tap, listen

_COUPLED = 1e-12


class Derivative:
    """J = d place / d input at one example, restricted to a window of the input if one is given.

    The example is repeated, and the network runs once on the copies; each copy then yields a product of its own in one
    backward pass. Inside `untouched` only.

    Args:
        model: The network.
        tap: The place; the first call of it counts.
        batch: The data.
        example: Which of the batch.
        n_copies: How many products a pass may make at once.
        window: Side of a central square of the input's last two dimensions that J is restricted to; None: all of it.

    Attributes:
        n_in: Numbers of the input in the window.
        n_out: Numbers of the output.
        dtype: Of the network.

    Raises:
        ConfigError: If the network has no real input, examples of a batch depend on each other, or it is random.
        ShapeError: If the place returns nothing, or the window does not fit.
        NonFiniteError: If it returns NaN or infinity.
    """

    def __init__(
        self, model: nn.Module, tap: Tap, batch: Batch, example: int, n_copies: int, window: int | None = None
    ) -> None:
        self._name = tap.name or "the network"
        self.n_copies = n_copies
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            self._x, copies = _copies(batch, example, n_copies, self._name)
            self._y = _flat_output(model, tap, copies, n_copies)
            self._inside = _window(self._x, window)
            self.n_in, self.n_out, self.dtype = len(self._inside), self._y.shape[1], self._y.dtype
            self._check()

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that products take."""
        return self._y.detach()

    def transposed(self, u: Tensor) -> Tensor:
        """J^T u.

        Args:
            u: Shape (n_copies or fewer, n_out).

        Returns:
            Shape (len(u), n_in).
        """
        return self._backward(self._padded(u))[: len(u), self._inside]

    def _backward(self, u: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(self._y, self._x, u, retain_graph=True, materialize_grads=True)
        return found.flatten(1)

    def product(self, v: Tensor) -> Tensor:
        """J v, by differentiating J^T u with respect to u.

        Args:
            v: Shape (n_copies or fewer, n_in).

        Returns:
            Shape (len(v), n_out).

        Raises:
            ConfigError: If part of the network cannot be differentiated twice.
        """
        wide = v.new_zeros(self.n_copies, self._x[0].numel())
        wide[: len(v), self._inside] = v
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            u = torch.zeros_like(self._y, requires_grad=True)
            try:
                (pulled,) = torch.autograd.grad(self._y, self._x, u, create_graph=True, materialize_grads=True)
                if not pulled.requires_grad:
                    return v.new_zeros(len(v), self.n_out)
                (found,) = torch.autograd.grad(pulled, u, wide.view_as(pulled), materialize_grads=True)
            except RuntimeError as error:
                hint = "dense_up_to larger than the input or output: the dense Jacobian needs first derivatives only"
                got = str(error).splitlines()[0]
                raise ConfigError(f"{self._name} cannot be differentiated twice", got=got, hint=hint) from error
        return found[: len(v)].detach()

    def dense(self) -> Tensor:
        """The whole of J, row by row, or column by column where these are much fewer.

        Returns:
            Shape (n_out, n_in), float64.

        Raises:
            NonFiniteError: If it holds NaN or infinity.
        """
        if 2 * self.n_in < self.n_out:
            try:
                found = self._rows(self.n_in, self.product).T
            except ConfigError:  # not twice differentiable: rows need one derivative only
                found = self._rows(self.n_out, self.transposed)
        else:
            found = self._rows(self.n_out, self.transposed)
        if not bool(found.isfinite().all()):
            hint = "float64, or an input away from kinks such as sqrt(0)"
            raise NonFiniteError(f"the Jacobian of {self._name} is not finite", got="NaN or infinity", hint=hint)
        return found

    def _rows(self, n: int, act: Callable[[Tensor], Tensor]) -> Tensor:
        parts = []
        for start in range(0, n, self.n_copies):
            count = min(self.n_copies, n - start)
            unit = self._y.new_zeros(count, n)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            parts.append(act(unit).detach().double())
        return torch.cat(parts)

    def _padded(self, u: Tensor) -> Tensor:
        return torch.cat([u, u.new_zeros(self.n_copies - len(u), self.n_out)]) if len(u) < self.n_copies else u

    def _check(self) -> None:
        if self.n_copies == 1:
            return
        y = self._y.detach()
        spread = (y - y[:1]).abs().max()
        rounding = 1e4 * torch.finfo(y.dtype).eps * (1 + y.abs().max())
        if spread > rounding:
            hint = 'mode="eval", which turns dropout and noise off'
            got = f"outputs of copies {spread.item():.2g} apart"
            raise ConfigError(f"{self._name} is random", expected="equal outputs of equal inputs", got=got, hint=hint)
        one = torch.zeros_like(y)
        one[0] = torch.linspace(-1, 1, self.n_out, dtype=torch.float64).to(y)
        pulled = self._backward(one).abs()
        if pulled[1:].max() > _COUPLED * pulled.max():
            hint = 'mode="eval", which makes BatchNorm use its own statistics'
            expected = "each output to depend on its own example"
            raise ConfigError("examples of a batch depend on each other", expected=expected, got=self._name, hint=hint)


def _copies(batch: Batch, example: int, n: int, name: str) -> tuple[Tensor, Batch]:
    found: list[Tensor] = []

    def repeat(value: Any) -> Any:
        if isinstance(value, Tensor):
            own = value[example : example + 1] if value.shape[:1] == (batch.n_examples,) else None
            if own is None:
                return value
            with torch.inference_mode(False):
                copies = own.detach().clone().repeat_interleave(n, 0)
                if copies.is_floating_point() and not found:
                    found.append(copies.requires_grad_())
                    return copies.clone()  # the network may work in place, which a leaf does not allow
            return copies
        if isinstance(value, Mapping):
            return {key: repeat(item) for key, item in value.items()}
        return type(value)(repeat(item) for item in value) if type(value) in (tuple, list) else value

    copies = Batch(tuple(repeat(value) for value in batch.args), repeat(batch.kwargs))
    if not found:
        hint = "batch_fn that gives embeddings in place of token numbers"
        got = ", ".join(map(describe, batch.tensors))
        raise ConfigError(f"{name} has no input to differentiate by", expected="real numbers", got=got, hint=hint)
    return found[0], copies


def _flat_output(model: nn.Module, tap: Tap, copies: Batch, n: int) -> Tensor:
    heard: list[Tensor] = []

    def hear(sound: Heard) -> None:
        y = main_tensor(sound.tap.module, sound.value, sound.tap.side == "input")
        if y is not None and not heard:
            heard.append(y.clone())  # what follows may change it in place

    with listen(model, [tap], hear) as listener:
        copies.run(model)
    listener.check_heard()
    name = tap.name or "the network"
    if not heard or heard[0].shape[:1] != (n,) or not heard[0].numel():
        got = describe(heard[0]) if heard else "no real numbers"
        raise ShapeError(f"{name} has no Jacobian", expected=f"{n} examples of one number or more", got=got)
    check_finite(heard[0], f"{name}, after {type(model).__name__} computed it,")
    if not heard[0].requires_grad:
        hint = "a place before argmax, rounding, detach() or no_grad()"
        raise ConfigError(f"{name} has no derivative by the input", expected="a path of gradients", hint=hint)
    return heard[0].flatten(1) if heard[0].ndim > 1 else heard[0].unsqueeze(1)


def _window(x: Tensor, window: int | None) -> Tensor:
    if window is None:
        return torch.arange(x[0].numel(), device=x.device)
    if x.ndim < 3 or not 1 <= window <= min(x.shape[-2:]):
        expected = "images at least as large as the window"
        raise ShapeError("the window does not fit the input", expected=expected, got=f"{window} in {describe(x)}")
    inside = torch.zeros(x.shape[1:], dtype=torch.bool, device=x.device)
    top, left = ((size - window) // 2 for size in x.shape[-2:])
    inside[..., top : top + window, left : left + window] = True
    return inside.flatten().nonzero().squeeze(1)
