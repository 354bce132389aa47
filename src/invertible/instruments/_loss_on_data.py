"""A network's loss over fixed data, as a function of one vector: all parameters, flat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from invertible.chain import Chain
from invertible.errors import ConfigError, NonFiniteError
from invertible.instruments._batch import Batch
from invertible.instruments._loss_functions import Loss, evaluate, split_output
from invertible.instruments.feeding import Feed
from invertible.instruments.untouched import untouched

Result = TypeVar("Result")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class LossOnData:
    """L(theta): the loss of each batch, weighted by its examples. The network is called, never changed.

    Parameters that require gradients are theta, in the order of `named_parameters`, tied ones once; all other tensors
    are constants. Autocast is off.

    Args:
        network: In the mode it is to be run in; `viewing` puts it in eval mode.
        batches: One or more, on the network's device.
        loss: (output, labels) -> a scalar, the mean over examples; "mse"; None: cross-entropy.
        dtype: "float32", "float64", or "own": the network's, but float32 if that is of 16 bits.

    Attributes:
        names: Of the parameters.
        shapes: Likewise.
        n: How many numbers theta has.
        n_frozen: How many numbers of parameters are none of it.
        constants: Buffers and frozen parameters, by name.
        weights: Each batch's share of the examples; their sum is 1.
        dtype: Of theta and all computing.

    Raises:
        ConfigError: If nothing is trainable, or the dtype is unknown.

    Example:
        >>> network, x, y = nn.Linear(2, 3), torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
        >>> view = LossOnData(network, [Batch((x,), labels=y)])
        >>> view.n, view.value() == nn.functional.cross_entropy(network(x), y).item()
        (9, True)
    """

    def __init__(
        self, network: nn.Module, batches: Sequence[Batch], loss: Loss | None = None, dtype: str = "own"
    ) -> None:
        self.network, self.loss = network, loss
        trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if not trainable:
            hint = "model.requires_grad_(True) before, or give what shall vary"
            raise ConfigError("the network has no trainable parameters", expected="one or more", got="none", hint=hint)
        self.names = tuple(trainable)
        self.shapes = tuple(p.shape for p in trainable.values())
        self._sizes = [p.numel() for p in trainable.values()]
        self.n = sum(self._sizes)
        self.device, self.dtype = next(iter(trainable.values())).device, _working(trainable, dtype)
        everything = [*network.named_parameters(), *network.named_buffers()]
        self.n_frozen = sum(p.numel() for p in network.parameters()) - self.n
        self.constants = {name: self._own(tensor) for name, tensor in everything if name not in trainable}
        self.theta = torch.cat([self._own(p).reshape(-1) for p in trainable.values()])
        self.batches = [self._placed(batch) for batch in batches]
        self.n_examples = sum(batch.n_examples for batch in self.batches)
        self.weights = [batch.n_examples / self.n_examples for batch in self.batches]

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Cut a vector into parameters.

        Args:
            theta: Shape (n,).

        Returns:
            Views by name.
        """
        parts = theta.split(self._sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, tensors: Any) -> Tensor:
        """Put parameters into a vector.

        Args:
            tensors: A mapping of tensors by name, e.g. a `state_dict()`; what theta has not is not looked at.

        Returns:
            Shape (n,), a copy.

        Raises:
            ConfigError: If a parameter is missing or has another shape.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            got = tuple(tensors[name].shape) if name in tensors else "none"
            if got != tuple(shape):
                raise ConfigError(f"weights do not fit the network at {name}", expected=tuple(shape), got=got)
        return torch.cat([self._own(tensors[name]).reshape(-1) for name in self.names])

    def constants_of(self, tensors: Any) -> dict[str, Tensor]:
        """Pick what is no part of theta: buffers and frozen parameters of real numbers.

        Args:
            tensors: A mapping of tensors by name; what is missing is left out.

        Returns:
            Copies by name.
        """
        own = {name for name, tensor in self.constants.items() if tensor.is_floating_point()}
        return {name: self._own(tensor) for name, tensor in tensors.items() if name in own}

    def output(self, theta: Tensor, batch: Batch, constants: dict[str, Tensor] | None = None) -> Any:
        """Run the network.

        Args:
            theta: Shape (n,).
            batch: One of `batches`.
            constants: Buffers and frozen parameters in place of the network's own; see `constants_of`.

        Returns:
            Whatever it returns.
        """
        tensors = {**self.constants, **(constants or {}), **self.unflatten(theta)}
        with torch.autocast(self.device.type, enabled=False):
            return batch.run(_Called(self.network, tensors))

    def loss_at(self, theta: Tensor, batch: Batch, constants: dict[str, Tensor] | None = None) -> Tensor:
        """One batch's loss.

        Args:
            theta: Shape (n,).
            batch: One of `batches`.
            constants: As in `output`.

        Returns:
            A scalar, differentiable.
        """
        output = self.output(theta, batch, constants)
        with torch.autocast(self.device.type, enabled=False):
            return evaluate(self.loss, output, batch)

    def parted(self, theta: Tensor, batch: Batch) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """One batch's loss in two parts that are not connected: theta to outputs, and outputs to the loss.

        Args:
            theta: Shape (n,), with gradients.
            batch: One of `batches`.

        Returns:
            Outputs that depend on theta; the same as leaves; the loss as a function of these leaves.
        """
        outputs, leaves, rebuilt = split_output(self.output(theta, batch))
        return outputs, leaves, evaluate(self.loss, rebuilt, batch)

    def value(self, theta: Tensor | None = None, constants: dict[str, Tensor] | None = None) -> float:
        """The loss: exactly the network's own if theta is, as eager PyTorch computes it.

        Args:
            theta: Shape (n,); None: the network's own.
            constants: As in `output`.

        Returns:
            Mean over all examples.
        """
        with torch.no_grad():
            own = self.theta if theta is None else theta
            losses = [self.loss_at(own, batch, constants).item() for batch in self.batches]
        return math.fsum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """The gradient.

        Args:
            theta: Shape (n,); None: the network's own.

        Returns:
            Shape (n,).
        """
        total = torch.zeros_like(self.theta)
        for weight, batch in zip(self.weights, self.batches, strict=True):
            with torch.enable_grad():
                leaf = (self.theta if theta is None else theta).detach().clone().requires_grad_()
                total.add_(self.slope(leaf, batch), alpha=weight)
        return total

    def slope(self, theta: Tensor, batch: Batch, create_graph: bool = False) -> Tensor:
        """The gradient of one batch's loss.

        Args:
            theta: Shape (n,), a leaf.
            batch: One of `batches`.
            create_graph: Whether it shall be differentiable itself.

        Returns:
            Shape (n,).

        Raises:
            ConfigError: If the loss does not depend on theta.
        """
        loss = self.loss_at(theta, batch)
        if not loss.requires_grad:
            hint = "the loss without detach(), no_grad() or argmax"
            raise ConfigError("the loss does not depend on the parameters", got="no gradient", hint=hint)
        return torch.autograd.grad(loss, theta, create_graph=create_graph, materialize_grads=True)[0]

    def _own(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(self.device, dtype, copy=True)

    def _placed(self, batch: Batch) -> Batch:
        args = tuple(self._cast(value) for value in batch.args)
        kwargs = {key: self._cast(value) for key, value in batch.kwargs.items()}
        return Batch(args, kwargs, None if batch.labels is None else self._own(batch.labels))

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._own(value)
        if isinstance(value, dict):
            return {key: self._cast(item) for key, item in value.items()}
        return type(value)(map(self._cast, value)) if type(value) in (tuple, list) else value


def footprint(act: Callable[[], Result]) -> tuple[Result, int]:
    """Do something, and count the bytes that autograd keeps of it.

    Args:
        act: What to do.

    Returns:
        What it returns, and bytes; each storage counts once.
    """
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = act()
    return found, sum(seen.values())


class _Called(nn.Module):
    # `Batch.run` calls modules: this one calls the network with other tensors in place of its own.
    def __init__(self, network: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = lambda args, kwargs: functional_call(network, tensors, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(args, kwargs)


@contextmanager
def viewing(
    name: str,
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    dtype: str = "own",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Iterator[tuple[LossOnData, Feed]]:
    """See a network's loss over data as a function, for as long as the context lasts; the network is left untouched.

    BatchNorm uses its running statistics and dropout is off. All batches are kept in memory.

    Args:
        name: The instrument's.
        model: Any module.
        data: As `Feed` takes them.
        loss: As in `LossOnData`.
        dtype: As in `LossOnData`.
        batch_fn: As in `Feed`.
        batches: As in `Feed`.
        seconds: As in `Feed`; reading data counts.
        seed: As in `Feed`.
        quiet: As in `Feed`.

    Yields:
        The function, and the feed for `provenance`.
    """
    with torch.inference_mode(False), untouched(model) as network:
        network.eval()
        for module in network.modules():
            if isinstance(module, Chain):
                module.memory = "store"  # its graph is differentiated twice
        feed = Feed(name, network, data, batch_fn=batch_fn, batches=batches, seconds=seconds, seed=seed, quiet=quiet)
        yield LossOnData(network, list(feed), loss, dtype), feed


def _working(parameters: dict[str, nn.Parameter], dtype: str) -> torch.dtype:
    if dtype != "own" and dtype not in DTYPES:
        expected = '"own", "float32" or "float64"'
        raise ConfigError("no such dtype to compute in", expected=expected, got=repr(dtype))
    if dtype != "own":
        return DTYPES[dtype]
    own = {p.dtype for p in parameters.values() if p.is_floating_point()}
    return torch.float64 if torch.float64 in own else torch.float32


def finite_value(view: LossOnData) -> float:
    """The loss, or an error.

    Args:
        view: The loss.

    Returns:
        Its value.

    Raises:
        NonFiniteError: If it is NaN or infinite.
    """
    value = view.value()
    if not math.isfinite(value):
        hint = 'dtype="float64", smaller weights, or a loss without log(0)'
        raise NonFiniteError("the loss is not finite", expected="a finite number", got=f"{value:.4g}", hint=hint)
    return value


def finite(view: LossOnData) -> tuple[float, Tensor]:
    """The loss and its gradient, or an error.

    Args:
        view: The loss.

    Returns:
        Value and gradient, shape (n,).

    Raises:
        NonFiniteError: If one is NaN or infinite.
    """
    value, gradient = finite_value(view), view.gradient()
    if not bool(gradient.isfinite().all()):
        hint = "a loss or an activation without kinks such as sqrt(0)"
        raise NonFiniteError("the gradient of the loss is not finite", got="NaN or infinity", hint=hint)
    return value, gradient
