"""Adaptive gradient clipping: no unit's gradient is long beside its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError

EPS = 1e-3


def unit_norms(x: Tensor) -> Tensor:
    """Euclidean norm of each output unit's numbers.

    Args:
        x: A weight of shape (outputs, ...), as of linear layers and convolutions, or a bias, a gain, a scalar.

    Returns:
        Shape (outputs, 1, ...); of vectors and scalars one norm, shape (). float16 and bfloat16 are summed in float32.

    Source: Brock, De, Smith and Simonyan 2021, section 4; vectors as in the released code.

    Example:
        >>> unit_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).flatten().tolist(), unit_norms(torch.ones(4)).item()
        ([5.0, 1.0], 2.0)
    """
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if x.ndim < 2:
        return torch.linalg.vector_norm(x, dtype=dtype)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True, dtype=dtype)


@torch.no_grad()
def clip_adaptively(parameters: Iterable[nn.Parameter], clipping: float = 0.01, eps: float = EPS) -> None:
    """Scale down, in place, the gradient G of each unit whose norm exceeds clipping max(|W|, eps), to that norm.

    Gradients that are short enough stay as they are, to the bit; NaN and infinity stay NaN.

    Args:
        parameters: Those without a gradient are left out.
        clipping: The paper's lambda.
        eps: Norm that weights at zero count as having.

    Raises:
        ConfigError: If a number is not positive, or a gradient is sparse.

    Source: Brock, De, Smith and Simonyan 2021, section 4, equation 3.

    Example:
        >>> weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> weight.grad = torch.ones(2, 2)
        >>> clip_adaptively([weight], clipping=0.1)
        >>> [round(norm, 6) for norm in unit_norms(weight.grad).flatten().tolist()]
        [0.5, 0.0001]
    """
    _check_numbers(clipping, eps)
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            hint = "sparse=False in the embedding, or exclude its parameters"
            raise ConfigError("adaptive clipping takes dense gradients", expected="dense", got="sparse", hint=hint)
        largest = clipping * unit_norms(parameter).clamp(min=eps)
        factor = (largest / unit_norms(gradient).clamp(min=1e-6)).clamp(max=1.0)
        gradient.mul_(factor.to(gradient.dtype))


class AdaptiveClipping(torch.optim.Optimizer):
    """Any optimiser, with adaptive gradient clipping before each step.

    It is the optimiser: parameter groups, state, schedulers and `state_dict` are the wrapped one's, and nothing is
    added to them, so that a run may go on with or without clipping. With a closure, gradients are clipped each time it
    was called. Under accelerate and gradient scalers gradients are unscaled before they arrive here.

    Units are those of dimension 0, which of transposed convolutions are inputs: exclude these, if there are any.

    Args:
        optimizer: Whose steps are taken.
        clipping: The paper's lambda: 0.01 for batches of 4096, more for smaller ones.
        eps: Norm that weights at zero count as having.
        exclude: Parameters that are not clipped: the last linear layer's, says the paper; see `last_linear`.

    Raises:
        ConfigError: If a number is not positive, an excluded parameter is not the optimiser's, or, when stepping, a
            gradient is sparse.
        DtypeError: If the first argument is no optimiser.

    Source: Brock, De, Smith and Simonyan 2021, "High-performance large-scale image recognition without normalization",
    section 4.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> optimizer = AdaptiveClipping(sgd, clipping=0.02, exclude=last_linear(net).parameters())
        >>> net(100 * torch.ones(1, 4)).sum().backward()
        >>> before = net[0].weight.detach().clone()
        >>> optimizer.step()
        >>> bool(((net[0].weight - before).norm(dim=1) <= 0.1 * 0.0201 * before.norm(dim=1)).all())
        True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clipping: float = 0.01,
        eps: float = EPS,
        exclude: Iterable[nn.Parameter] = (),
    ) -> None:
        # The base class is not initialised: what it would hold is the wrapped optimiser's, found by __getattr__.
        if not isinstance(optimizer, torch.optim.Optimizer):
            got, hint = describe(optimizer), "AdaptiveClipping(torch.optim.SGD(parameters, lr))"
            raise DtypeError("AdaptiveClipping wraps optimisers", expected="an optimiser", got=got, hint=hint)
        _check_numbers(clipping, eps)
        self.optimizer, self.clipping, self.eps = optimizer, clipping, eps
        self.excluded = list(exclude)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(parameter) not in known for parameter in self.excluded):
            got = "others among them"
            raise ConfigError("excluded parameters are unknown", expected="parameters of the optimiser", got=got)

    def __getattr__(self, name: str) -> Any:
        """Whatever is not here is the wrapped optimiser's.

        Returns:
            The attribute.

        Raises:
            AttributeError: If there is none.
        """
        if name == "optimizer":  # while it is being unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled.

        Returns:
            The attributes.
        """
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.__dict__.update(state)

    def __repr__(self) -> str:
        """What `print` shows.

        Returns:
            Both, in one line.
        """
        return f"AdaptiveClipping(clipping={self.clipping:g}, eps={self.eps:g}, {self.optimizer!r})"

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Clip, then step.

        Args:
            closure: As the wrapped optimiser takes it.

        Returns:
            What the wrapped optimiser returns.
        """
        if closure is None:
            self.clip()
            return self.optimizer.step()

        def clipped() -> Any:
            loss = closure()
            self.clip()
            return loss

        return self.optimizer.step(clipped)

    def clip(self) -> None:
        """Clip the gradients that are there."""
        excluded = {id(parameter) for parameter in self.excluded}
        for group in self.optimizer.param_groups:
            clip_adaptively([p for p in group["params"] if id(p) not in excluded], self.clipping, self.eps)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.

        Args:
            set_to_none: Or set them to zero.
        """
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimiser's.

        Returns:
            Its state and parameter groups.
        """
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimiser's.

        Args:
            state_dict: Its state and parameter groups.
        """
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimiser; they are clipped.

        Args:
            param_group: As in torch.
        """
        self.optimizer.add_param_group(param_group)


def last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer that comes last in a network, usually the one that makes logits.

    Args:
        model: The network.

    Returns:
        The layer.

    Raises:
        ConfigError: If there is none.

    Example:
        >>> last_linear(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        Linear(in_features=3, out_features=1, bias=True)
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError("the network has no linear layer", expected="a last one", got=type(model).__name__)
    return layers[-1]


def _check_numbers(clipping: float, eps: float) -> None:
    if not (0 < clipping < math.inf and 0 < eps < math.inf):
        got = f"clipping={clipping}, eps={eps}"
        raise ConfigError("adaptive clipping got a number out of range", expected="positive numbers", got=got)
