"""What a layer's transpose gives back of its input, and what theory predicts for random weights (Arora et al. 2015).

A layer y = f(W h + c) with f = ReLU and, with dropout, a mask that keeps each y with probability rho. If the entries
of row j of W are independent with mean 0 and variance s_j^2, then by Stein's lemma, with sigma_j the standard deviation
of (W h)_j and t_j = c_j / sigma_j,

    E (W^T y)_i = h_i rho sum_j s_j^2 Phi(t_j)          =: h_i gain_i
    Var (W^T y)_i = rho sum_j s_j^2 E f(g_j + c_j)^2 + h_i^2 sum_j s_j^4 (2 rho Phi(t_j) - rho^2 Phi(t_j)^2)

with g_j ~ N(0, sigma_j^2). Without bias (W^T y)_i / gain_i has the theorem's variance 2 |h|^2 / (rho n), plus a small
term in h_i^2. The sums run over the outputs that an input reaches, so that the same formulas serve convolutions (there
the reuse of weights at several positions is neglected).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Linear = Callable[[Tensor, Tensor], Tensor]
"""(input, weight) to output, without bias."""
_SAME = 0.02
"""As much as bfloat16 may differ from float32."""
_LEAST_OPEN = 1e-3
"""An input whose outputs are open less than this, in the mean, is not divided by less."""


def find_linear_map(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor, z: Tensor) -> Linear | None:
    """A layer as a function of its weight.

    Args:
        module: A linear layer or convolution, or a class derived from one that pads in its own way.
        x: An input.
        weight: What it computes with.
        bias: Likewise, shaped to be added to the output.
        z: The output it gave.

    Returns:
        The function; None if what the layer computes is no linear map with this weight.
    """
    for candidate in (_plain(module), _own(module)):
        try:
            again = candidate(x, weight) + bias
        except RuntimeError:  # shapes that do not fit
            continue
        if again.shape == z.shape and bool((again - z).abs().max() <= _SAME * z.abs().max()):
            return candidate
    return None


def _plain(module: nn.Module) -> Linear:
    if isinstance(module, nn.modules.conv._ConvNd):
        conv = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(module.kernel_size)]
        options = (module.stride, module.padding, module.dilation, module.groups)
        return lambda x, weight: conv(x, weight, None, *options)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return lambda x, weight: nn.functional.linear(x, weight)


def _own(module: nn.Module) -> Linear:
    # A shallow copy with another weight; its forward is called past the hooks, ours among them.
    def run(x: Tensor, weight: Tensor) -> Tensor:
        twin = copy.copy(module)
        vars(twin)["_parameters"] = {"weight": weight, "bias": None}
        return twin.forward(x)

    return run


def transpose(linear: Linear, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """Apply the transpose of a linear map.

    Args:
        linear: The map.
        x: An input, for its shape.
        weight: Of the map.
        y: What to apply it to, shaped like an output.

    Returns:
        Shape of x.

    Example:
        >>> weight, y = torch.randn(3, 2), torch.randn(5, 3)
        >>> torch.allclose(transpose(nn.functional.linear, torch.zeros(5, 2), weight, y), y @ weight)
        True
    """
    pull = torch.func.vjp(lambda value: linear(value, weight), torch.zeros_like(x))[1]
    return pull(y.to(x.dtype))[0]


def rows_of(values: Tensor, like: Tensor) -> Tensor:
    """One value per row of a weight, or per channel of an output, spread over its shape.

    Args:
        values: Shape (rows,).
        like: The tensor whose first dimension is the rows.

    Returns:
        Shape of `like`.
    """
    return values.view(-1, *[1] * (like.ndim - 1)).expand_as(like)


@dataclass(frozen=True)
class Estimate:
    """Moments of an estimate of a layer's input, element by element.

    Args:
        mean: Its expectation.
        square: Expectation of its square.
    """

    mean: Tensor
    square: Tensor


@dataclass(frozen=True)
class Theory:
    """What random weights would do.

    Args:
        gain: What divides W^T y, per input element.
        share: Which share of the input that leaves in the mean: 1, but for inputs whose outputs are shut.
        noise: Standard deviation of the estimate where the input is 0.
        spread: Its standard deviation everywhere.
    """

    gain: Tensor
    share: Tensor
    noise: Tensor
    spread: Tensor

    def estimate(self, h: Tensor, threshold: float, is_clipped: bool) -> Estimate:
        """Moments of relu(W^T y / gain - threshold noise).

        Args:
            h: The input.
            threshold: In standard deviations.
            is_clipped: Whether there is a ReLU.

        Returns:
            The moments, in the Gaussian approximation.
        """
        mean, std = h * self.share - threshold * self.noise, self.spread.clamp(min=1e-30)
        if not is_clipped:
            return Estimate(mean, mean.square() + std.square())
        return Estimate(*relu_moments(mean, std))


def relu_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of relu(z), z ~ N(mean, std^2).

    Args:
        mean: Of z.
        std: Of z, above 0.

    Returns:
        Both, of the same shape.

    Example:
        >>> relu_moments(torch.zeros(1), torch.ones(1))
        (tensor([0.3989]), tensor([0.5000]))
    """
    t = mean / std
    above, density = torch.special.ndtr(t), torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    return mean * above + std * density, (mean.square() + std.square()) * above + mean * std * density


def predict(linear: Linear, h: Tensor, variances: Tensor, bias: Tensor, keep: float) -> Theory:
    """The formulas at the top of this file.

    Args:
        linear: The layer as a function of its weight.
        h: Its input, float64.
        variances: Of the entries of each row, shaped like the weight.
        bias: c, shaped like the output.
        keep: rho, in (0, 1].

    Returns:
        The prediction.
    """

    def back(y: Tensor, weight: Tensor) -> Tensor:
        return transpose(linear, h, weight, y)

    std = linear(h.square(), variances).clamp(min=0).sqrt().clamp(min=1e-30)
    open_, energy = torch.special.ndtr(bias / std), relu_moments(bias.expand_as(std), std)[1]
    gain = keep * back(open_, variances)
    # Where biases keep the outputs shut there is next to nothing to divide by; some inputs reach no output at all.
    used = torch.maximum(gain, _LEAST_OPEN * keep * back(torch.ones_like(std), variances))
    used = torch.where(used > 0, used, torch.inf)
    noise = keep * back(energy, variances).clamp(min=0)  # rounding of convolutions may go below zero
    own = h.square() * back(2 * keep * open_ - (keep * open_).square(), variances.square())
    return Theory(used, gain / used, noise.sqrt() / used, (noise + own.clamp(min=0)).sqrt() / used)
