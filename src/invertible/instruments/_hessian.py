"""Second derivatives of a network's loss over data: products with the Hessian and with the Gauss-Newton matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from invertible.errors import ConfigError, NonFiniteError
from invertible.instruments._batch import Batch
from invertible.instruments._loss_on_data import LossOnData, footprint

KEPT_BYTES = 2**31
"""Graphs are kept from one product to the next while they take no more memory than this."""
MOST_AT_ONCE = 16
"""Products in one backward pass: more no longer pay."""
AT_ONCE_BYTES = {"cpu": 2**24, "cuda": 2**31}
"""Nor do those whose intermediate values leave the processor's cache (measured on a CPU)."""

Graph = Callable[[Tensor], Tensor]


class Curved(ABC):
    """A symmetric matrix of second derivatives at one point, known through its products. Abstract.

    The network runs once per batch, and its graph is kept: every product is one backward pass through it (three for
    Gauss-Newton). Where the graphs of all batches are too large, each product makes them anew. Several vectors go
    through one backward pass where `torch.func.vmap` knows all operations, and one by one where it does not. Inside
    `untouched` only.

    Args:
        view: The loss.
        theta: The point, shape (n,); None: the network's own.

    Attributes:
        n: Size of the matrix.
        n_products: How many products have been made.
        theta: The point.

    Raises:
        ConfigError: If the loss does not depend on the parameters, or cannot be differentiated twice.
    """

    def __init__(self, view: LossOnData, theta: Tensor | None = None) -> None:
        self.view, self.n, self.n_products = view, view.n, 0
        self.theta = (view.theta if theta is None else theta.detach().to(view.device, view.dtype, copy=True)).detach()
        self._is_batched, self._bytes = True, 0
        self._graphs: list[Graph | None] = []
        first = self._made(view.batches[0])
        if self._bytes * len(view.batches) <= KEPT_BYTES:
            self._graphs = [first, *(self._made(batch) for batch in view.batches[1:])]
        room = AT_ONCE_BYTES.get(view.device.type, 2**27) // max(self._bytes, 1)
        self.at_once = int(max(1, min(MOST_AT_ONCE, room)))

    @abstractmethod
    def _graph(self, theta: Tensor, batch: Batch) -> Graph | None:
        """Build what multiplies a vector by one batch's matrix; None if that is zero."""

    def product(self, v: Tensor) -> Tensor:
        """Multiply one vector.

        Args:
            v: Shape (n,), any real dtype.

        Returns:
            Shape (n,), dtype of v.
        """
        return self.products(v.unsqueeze(0)).squeeze(0)

    def products(self, v: Tensor) -> Tensor:
        """Multiply several vectors.

        Args:
            v: Shape (k, n), any real dtype.

        Returns:
            Shape (k, n), dtype and device of v: row i is the matrix times v[i].
        """
        total = torch.zeros(v.shape, dtype=self.view.dtype, device=self.view.device)
        for weight, part in self.parts(v):
            total.add_(part, alpha=weight)
        return total.to(v)

    def parts(self, v: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Multiply several vectors by each batch's own matrix; their weighted sum is the whole.

        Args:
            v: Shape (k, n).

        Yields:
            The batch's share of the examples, and its products, shape (k, n) in the network's dtype.

        Raises:
            NonFiniteError: If a product is NaN or infinite.
        """
        self.n_products += len(v)
        inside = v.detach().to(self.view.device, self.view.dtype)
        for i, batch in enumerate(self.view.batches):
            graph = self._graphs[i] if self._graphs else self._made(batch)
            found = torch.zeros_like(inside) if graph is None else self._through(graph, inside)
            if not bool(torch.isfinite(found.sum())) and not bool(found.isfinite().all()):
                hint = 'dtype="float64", or a loss without kinks such as sqrt(0)'
                raise NonFiniteError("second derivatives of the loss are not finite", got="NaN or infinity", hint=hint)
            yield self.view.weights[i], found

    def dense(self) -> Tensor:
        """Build the whole matrix.

        Returns:
            Shape (n, n), float64 on the CPU, symmetric.
        """
        rows = torch.empty(self.n, self.n, dtype=torch.float64)
        for start in range(0, self.n, self.at_once):
            count = min(self.at_once, self.n - start)
            unit = torch.zeros(count, self.n, dtype=self.view.dtype, device=self.view.device)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            rows[start : start + count] = self.products(unit).double().cpu()
        return (rows + rows.T) / 2

    def _made(self, batch: Batch) -> Graph | None:
        leaf = self.theta.clone().requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            try:
                graph, n_bytes = footprint(lambda: self._graph(leaf, batch))
            except RuntimeError as error:
                raise _explained(error) from error
        self._bytes = max(self._bytes, n_bytes)
        return graph

    def _through(self, graph: Graph, v: Tensor) -> Tensor:
        if not self._is_batched or len(v) == 1:
            return torch.stack([_plain(graph, one) for one in v])
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return torch.cat([torch.func.vmap(graph)(block) for block in v.split(self.at_once)]).detach()
        except RuntimeError:  # an operation that vmap does not know
            self._is_batched = False
            return self._through(graph, v)


class Hessian(Curved):
    """H = d^2 L / d theta^2, by differentiating the gradient: exact, to the network's precision.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".

    Example:
        >>> from torch import nn
        >>> network = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> view = LossOnData(network, [Batch((x,))], loss=lambda output, y: output.square().mean())
        >>> Hessian(view).products(torch.eye(2, dtype=torch.float64))
        tensor([[4., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    def _graph(self, theta: Tensor, batch: Batch) -> Graph | None:
        gradient = self.view.slope(theta, batch, create_graph=True)
        if not gradient.requires_grad:
            return None

        def multiply(v: Tensor) -> Tensor:
            return torch.autograd.grad(gradient, theta, v, retain_graph=True, materialize_grads=True)[0]

        return multiply


class GaussNewton(Curved):
    """G = J^T (d^2 L / d output^2) J, with J = d output / d theta: the Hessian without the curvature of the network.

    It is positive semi-definite where the loss is convex in the output, and for cross-entropy the Fisher matrix.

    Source: Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent".

    Example:
        >>> from torch import nn
        >>> network = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> view = LossOnData(network, [Batch((x,))], loss=lambda output, y: output.square().mean())
        >>> GaussNewton(view).dense()
        tensor([[4., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    def _graph(self, theta: Tensor, batch: Batch) -> Graph | None:
        outputs, leaves, loss = self.view.parted(theta, batch)
        slopes = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        moving = [i for i, slope in enumerate(slopes) if slope.requires_grad]
        if not moving:
            return None
        duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        (pulled,) = torch.autograd.grad(outputs, theta, duals, create_graph=True, materialize_grads=True)
        if not pulled.requires_grad:
            return None

        def multiply(v: Tensor) -> Tensor:
            pushed = torch.autograd.grad(pulled, duals, v, retain_graph=True, materialize_grads=True)
            sources, seeds = [slopes[i] for i in moving], [pushed[i] for i in moving]
            curved = torch.autograd.grad(sources, leaves, seeds, retain_graph=True, materialize_grads=True)
            return torch.autograd.grad(outputs, theta, curved, retain_graph=True, materialize_grads=True)[0]

        return multiply


def matrix_of(view: LossOnData, kind: str, theta: Tensor | None = None) -> Hessian | GaussNewton:
    """Make a matrix by its name.

    Args:
        view: The loss.
        kind: "hessian" or "gauss-newton".
        theta: The point; None: the network's own.

    Returns:
        The matrix.

    Raises:
        ConfigError: If there is no such matrix.
    """
    kinds = {"hessian": Hessian, "gauss-newton": GaussNewton}
    if kind not in kinds:
        raise ConfigError("no such matrix", expected=" or ".join(map(repr, kinds)), got=repr(kind))
    return kinds[kind](view, theta)


def hvp(view: LossOnData, theta: Tensor, v: Tensor) -> Tensor:
    """One product with the Hessian, for those who want no more than that.

    Args:
        view: The loss.
        theta: The point, shape (n,).
        v: Shape (n,) or (k, n).

    Returns:
        Shape of v.
    """
    return _one(Hessian(view, theta), v)


def ggnvp(view: LossOnData, theta: Tensor, v: Tensor) -> Tensor:
    """One product with the Gauss-Newton matrix.

    Args:
        view: The loss.
        theta: The point, shape (n,).
        v: Shape (n,) or (k, n).

    Returns:
        Shape of v.
    """
    return _one(GaussNewton(view, theta), v)


def _one(matrix: Curved, v: Tensor) -> Tensor:
    return matrix.product(v) if v.ndim == 1 else matrix.products(v)


def _plain(graph: Graph, v: Tensor) -> Tensor:
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return graph(v).detach()
    except RuntimeError as error:
        raise _explained(error) from error


def _explained(error: RuntimeError) -> Exception:
    text = str(error)
    if "not implemented" not in text and "does not require grad" not in text:
        return error
    hint = "another activation or attention, or the loss without detach() and no_grad()"
    return ConfigError("the loss cannot be differentiated twice", got=text.splitlines()[0], hint=hint)
