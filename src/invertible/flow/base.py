"""Where a flow's latents come from: distributions that move with their module, learn, and depend on a context."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible._checks import check_labels
from invertible.errors import ConfigError
from invertible.layers._sums import sum_events

LOG_2PI = math.log(2 * math.pi)


class Base(nn.Module, ABC):
    """A distribution of latents. Abstract: write `log_prob` and `sample`.

    Args:
        shape: Of one latent; a number stands for a vector.

    Attributes:
        event_shape: The same, as a tuple.
        takes_context: Whether it depends on the context (labels, vectors), one per element of the batch.
        has_rsample: Whether samples are differentiable in the parameters.

    Raises:
        ConfigError: If a size is below 1.
    """

    takes_context: bool = False
    has_rsample: bool = True
    here: Tensor

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if min(self.event_shape, default=1) < 1:
            raise ConfigError("a base has a bad shape", expected="positive sizes", got=self.event_shape)
        self.register_buffer("here", torch.zeros(()), persistent=False)  # tells device and dtype

    @abstractmethod
    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: One per element, if it takes one.

        Returns:
            Nats, shape (batch,).
        """

    @abstractmethod
    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents from the global random state; with gradients where `has_rsample`.

        Args:
            n: How many.
            context: n of them, if it takes one.
            temperature: Multiplies the standard deviation.

        Returns:
            Shape (n, *event_shape), with the module's dtype and device.
        """

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The shape.
        """
        return f"{self.event_shape}"


def _normal_log_density(noise: Tensor) -> Tensor:
    n = math.prod(noise.shape[1:])
    return -0.5 * sum_events(noise * noise) - 0.5 * n * LOG_2PI


class StandardNormal(Base):
    """Independent normal numbers, mean 0 and standard deviation 1.

    Args:
        shape: Of one latent.

    Example:
        >>> StandardNormal(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: None.

        Returns:
            Nats, shape (batch,).
        """
        return _normal_log_density(z)

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: None.
            temperature: Multiplies the standard deviation.

        Returns:
            Shape (n, *event_shape).
        """
        return _normal(self, n, temperature)


class StandardLogistic(Base):
    """Independent logistic numbers of mean 0 and scale 1, the prior of NICE for images.

    Args:
        shape: Of one latent.

    Source: Dinh et al. 2015 (NICE), section 3.4.

    Example:
        >>> StandardLogistic(1).log_prob(torch.zeros(1, 1))
        tensor([-1.3863])
    """

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: None.

        Returns:
            Nats, shape (batch,).
        """
        return -sum_events(functional.softplus(z) + functional.softplus(-z))

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: None.
            temperature: Multiplies the scale.

        Returns:
            Shape (n, *event_shape).
        """
        u = torch.rand((n, *self.event_shape), dtype=torch.promote_types(self.here.dtype, torch.float32),
                       device=self.here.device)  # fmt: skip
        tiny = torch.finfo(u.dtype).eps
        return (torch.logit(u.clamp(tiny, 1 - tiny)) * temperature).to(self.here.dtype)


class DiagonalNormal(Base):
    """Independent normal numbers with means and standard deviations that are learned.

    Args:
        shape: Of one latent.

    Example:
        >>> sorted(name for name, _ in DiagonalNormal(2).named_parameters())
        ['log_std', 'mean']
    """

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__(shape)
        self.mean = nn.Parameter(torch.zeros(self.event_shape))
        self.log_std = nn.Parameter(torch.zeros(self.event_shape))

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: None.

        Returns:
            Nats, shape (batch,).
        """
        return _normal_log_density((z - self.mean) * (-self.log_std).exp()) - self.log_std.sum()

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: None.
            temperature: Multiplies the standard deviation.

        Returns:
            Shape (n, *event_shape).
        """
        return self.mean + _normal(self, n, temperature) * self.log_std.exp()


class ConditionalNormal(Base):
    """Independent normal numbers whose means and log standard deviations a network makes of the context.

    Args:
        network: From contexts, shape (batch, ...), to shape (batch, 2 * numbers in a latent): means, then log standard
            deviations.
        shape: Of one latent.

    Example:
        >>> base = ConditionalNormal(nn.Linear(3, 4), 2)
        >>> base.sample(5, torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    takes_context = True

    def __init__(self, network: nn.Module, shape: int | Sequence[int]) -> None:
        super().__init__(shape)
        self.network = network

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: Shape (batch, ...).

        Returns:
            Nats, shape (batch,).
        """
        mean, log_std = self._moments(context)
        return _normal_log_density((z - mean) * (-log_std).exp()) - sum_events(log_std)

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: Shape (n, ...).
            temperature: Multiplies the standard deviation.

        Returns:
            Shape (n, *event_shape).
        """
        mean, log_std = self._moments(context)
        return mean + _normal(self, n, temperature) * log_std.exp()

    def _moments(self, context: Any) -> tuple[Tensor, Tensor]:
        mean, log_std = self.network(context).to(self.here.dtype).chunk(2, dim=1)
        return mean.unflatten(1, self.event_shape), log_std.unflatten(1, self.event_shape)


class NormalMixture(Base):
    """A learned mixture of diagonal normal distributions; all start with standard deviation 1 around random means.

    Args:
        n_components: How many.
        shape: Of one latent.
        spread: Standard deviation of the first means.

    Raises:
        ConfigError: If there is no component.

    Example:
        >>> NormalMixture(3, 2).log_prob(torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    has_rsample = False  # the choice of a component has no gradient

    def __init__(self, n_components: int, shape: int | Sequence[int], spread: float = 1.0) -> None:
        super().__init__(shape)
        if n_components < 1:
            raise ConfigError("a mixture needs components", expected="at least 1", got=n_components)
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.means = nn.Parameter(torch.randn(n_components, *self.event_shape) * spread)
        self.log_stds = nn.Parameter(torch.zeros(n_components, *self.event_shape))

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: None.

        Returns:
            Nats, shape (batch,).
        """
        noise = (z[:, None] - self.means) * (-self.log_stds).exp()
        n_each = math.prod(self.event_shape)
        squares = (noise * noise).reshape(*noise.shape[:2], n_each).sum(2) + n_each * LOG_2PI
        each = -0.5 * squares - sum_events(self.log_stds)
        return torch.logsumexp(each + self.logits.log_softmax(0), dim=1)

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: None.
            temperature: Multiplies each component's standard deviation.

        Returns:
            Shape (n, *event_shape).
        """
        which = torch.multinomial(self.logits.float().softmax(0), n, replacement=True) if n else self.logits[:0].long()
        return self.means[which] + _normal(self, n, temperature) * self.log_stds[which].exp()


def _normal(base: Base, n: int, temperature: float) -> Tensor:
    here = base.here
    noise = torch.randn((n, *base.event_shape), dtype=here.dtype, device=here.device)
    return noise if temperature == 1 else noise * temperature


class ClassNormal(Base):
    """A learned diagonal normal distribution for each class; the context is the label.

    Args:
        n_classes: How many.
        shape: Of one latent.

    Raises:
        ConfigError: If there is no class.

    Example:
        >>> ClassNormal(10, 2).sample(3, torch.tensor([0, 9, 9])).shape
        torch.Size([3, 2])
    """

    takes_context = True

    def __init__(self, n_classes: int, shape: int | Sequence[int]) -> None:
        super().__init__(shape)
        if n_classes < 1:
            raise ConfigError("a class-conditional base needs classes", expected="at least 1", got=n_classes)
        self.means = nn.Parameter(torch.zeros(n_classes, *self.event_shape))
        self.log_stds = nn.Parameter(torch.zeros(n_classes, *self.event_shape))

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: Labels, shape (batch,).

        Returns:
            Nats, shape (batch,).
        """
        check_labels(context, len(self.means), "ClassNormal")
        log_std = self.log_stds[context]
        return _normal_log_density((z - self.means[context]) * (-log_std).exp()) - sum_events(log_std)

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: Labels, shape (n,).
            temperature: Multiplies the standard deviation.

        Returns:
            Shape (n, *event_shape).
        """
        check_labels(context, len(self.means), "ClassNormal")
        return self.means[context] + _normal(self, n, temperature) * self.log_stds[context].exp()
