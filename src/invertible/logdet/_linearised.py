"""A function at a point: its value and the products of its Jacobian, all from one evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from invertible._checks import describe, version
from invertible.errors import ConfigError, ShapeError

_WIDE = {"cpu": 2**14, "cuda": 2**22}  # numbers up to which products are taken side by side; cpu measured, cuda not
_CHUNK = 2**25  # numbers in the gradients of one layer
Function = Callable[[Tensor], Tensor]
_LOW = (torch.bfloat16, torch.float16)


class Linearised:
    """g at x: g(x), and v^T J for vectors v, from one evaluation of g.

    The caller's x is left as it is: g gets another tensor with the same values. Autocast is off; what it made of x, 16
    bits, is taken back to 32.

    Args:
        g: Maps batches of shape (batch, ...) to the same shape, each sample for itself.
        x: The point, shape (batch, ...).

    Attributes:
        value: g(x), with a graph to x and to g's parameters if `has_graph`.
        has_graph: Whether gradients can be asked for afterwards: something needs them and they are not turned off.
        like: An empty tensor that tells shape (batch, dimension), dtype and device of the vectors.
        n_products: How many products were taken.

    Raises:
        ShapeError: If g changes the shape.
        ConfigError: If g changes its input in place.

    Example:
        >>> x = torch.randn(5, 3)
        >>> at = Linearised(lambda x: 0.5 * x, x)
        >>> torch.allclose(at.pull(torch.ones(2, 5, 3)), torch.full((2, 5, 3), 0.5)), x.requires_grad
        (True, False)
    """

    def __init__(self, g: Function, x: Tensor) -> None:
        wants_graph = torch.is_grad_enabled()
        in_autocast = torch.is_autocast_enabled(x.device.type)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            self._x = _fresh(x, wants_graph, in_autocast)
            before = version(x)
            self._out = _call(g, self._x)
        _check_output(self._out, x, version(x) != before)
        self.has_graph = wants_graph and (x.requires_grad or _reaches_more_than(self._out, self._x))
        self.value = (self._out if self.has_graph else self._out.detach()).to(x.dtype)
        self.like = self._x.new_empty((), dtype=working_dtype(x)).expand(len(x), math.prod(x.shape[1:]))
        self.n_products = 0

    def pull(self, v: Tensor, create_graph: bool = False) -> Tensor:
        """Multiply vectors with the Jacobian from the left.

        Args:
            v: Shape (n, batch, dimension).
            create_graph: Whether the result shall be differentiable.

        Returns:
            v^T J, the same shape.
        """
        self.n_products += len(v)
        if not self._out.requires_grad:
            return torch.zeros_like(v)
        cotangents = v.to(self._out.dtype).reshape(len(v), *self._out.shape)
        with torch.set_grad_enabled(create_graph):
            if self._is_vectorised(v):
                pulled = self._grad(cotangents, create_graph, is_grads_batched=True)
            else:
                pulled = torch.stack([self._grad(c, create_graph) for c in cotangents])
            return pulled.reshape(v.shape).to(v.dtype)

    def jacobian(self, chunk: int | None = None) -> Tensor:
        """The dense Jacobian, differentiable if `has_graph`.

        Args:
            chunk: How many rows to take at once; None: as many as give about 256 MB.

        Returns:
            dg/dx, shape (batch, dimension, dimension).
        """
        batch, dimension = self.like.shape
        chunk = chunk or max(1, _CHUNK // (batch * dimension))
        eye = torch.eye(dimension, dtype=self.like.dtype, device=self.like.device)
        rows = [self.pull(e[:, None].expand(-1, batch, -1), self.has_graph) for e in eye.split(chunk)]
        return torch.cat(rows).transpose(0, 1)

    def _grad(self, v: Tensor, create_graph: bool, is_grads_batched: bool = False) -> Tensor:
        (pulled,) = torch.autograd.grad(
            self._out,
            self._x,
            v,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=is_grads_batched,
            allow_unused=True,
        )
        return torch.zeros_like(v) if pulled is None else pulled

    def _is_vectorised(self, v: Tensor) -> bool:
        # One wide product is faster than several only while the cost of starting operations dominates; functions
        # written in Python may not allow it.
        return len(v) > 1 and v.numel() <= _WIDE.get(v.device.type, 0) and not self._has_python_nodes

    @cached_property
    def _has_python_nodes(self) -> bool:
        return any(isinstance(node, BackwardCFunction) for node in _nodes(self._out, until=self._x))


def working_dtype(x: Tensor) -> torch.dtype:
    """In which precision to calculate.

    Args:
        x: Any tensor.

    Returns:
        float32 for the 16-bit types, x's own otherwise.
    """
    return torch.float32 if x.dtype in _LOW else x.dtype


def _fresh(x: Tensor, wants_graph: bool, in_autocast: bool) -> Tensor:
    # a new point of the graph: what g closes over (a context) may depend on x as well, which is no part of dg/dx
    x = x.clone() if x.is_inference() else x
    x = x.to(working_dtype(x)) if in_autocast else x
    return x.view_as(x) if wants_graph and x.requires_grad else x.detach().requires_grad_()


def _call(g: Function, x: Tensor) -> Tensor:
    try:
        return g(x)
    except RuntimeError as error:
        if "in-place operation" in str(error):
            raise _changed() from error
        if "Inference tensors" in str(error):
            hint = "torch.no_grad() instead of torch.inference_mode(), or clone them there with inference mode off"
            raise ConfigError("g closes over tensors of inference mode", got="no derivatives", hint=hint) from error
        raise


def _changed() -> ConfigError:
    hint = "inplace=False in its first layers (ReLU), no x.mul_() on its input"
    return ConfigError("g must leave its input alone", got="a change in place", hint=hint)


def _check_output(out: object, x: Tensor, was_changed: bool) -> None:
    if was_changed:
        raise _changed()
    if not isinstance(out, Tensor) or out.shape != x.shape:
        hint = "I + dg/dx needs a g that keeps the shape"
        raise ShapeError("g returned the wrong shape", expected=f"shape {tuple(x.shape)}", got=describe(out), hint=hint)


def _reaches_more_than(out: Tensor, x: Tensor) -> bool:
    # Whether the graph of `out` ends in another leaf than x: a parameter, a context.
    leaves = (getattr(node, "variable", None) for node in _nodes(out))
    return any(leaf is not None and leaf is not x for leaf in leaves) or (out.is_leaf and out.requires_grad)


def _nodes(out: Tensor, until: Tensor | None = None) -> Iterator[Node]:
    end = None if until is None else until.grad_fn
    todo, seen = [out.grad_fn], {None, end}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [following for following, _ in node.next_functions]
