"""FFJORD (Grathwohl et al. 2019): flows of free-form ordinary differential equations.

For vectors: one or more flows of a fully connected field. For images: on each scale `n_blocks` flows of a convolutional
field, a squeeze, and `n_blocks` more, after which half of the channels leave; the last scale is `n_blocks` flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.flow import Flow, StandardNormal
from invertible.layers import ContinuousFlow, ConvField, MLPField, Solver, Squeeze, multi_scale
from invertible.models._flows import as_flow, context_size, image_shape, pixels_to_logits, remember, squeezed
from invertible.reversible import Memory


def ffjord(
    in_shape: Sequence[int] = (3, 32, 32),
    n_scales: int = 4,
    n_blocks: int = 2,
    hidden: Sequence[int] = (64, 64, 64),
    *,
    tolerance: float = 1e-5,
    kinetic: float = 0.0,
    jacobian: float = 0.0,
    n_levels: int | None = 256,
    n_classes: int | None = None,
    n_context: int | None = None,
    memory: Memory = "store",
) -> Flow:
    """An FFJORD for images; the default is the paper's for CIFAR-10. For MNIST it is (1, 28, 28) with three scales.

    Differences from the paper: T is 1 and not learned, and the flows can be regularised.

    Args:
        in_shape: Channels, height, width of an image.
        n_scales: Scales, one more than squeezes.
        n_blocks: Flows before each squeeze, and after it.
        hidden: Channels of each field's hidden layers.
        tolerance: Relative and absolute, of the solver.
        kinetic: Weight of the integral of |f|^2 in training, as in `ContinuousFlow`.
        jacobian: Weight of the integral of |J|_F^2 in training.
        n_levels: Grey levels of the pixels, dequantised and passed through a logit with alpha 0.05; None: real data.
        n_classes: To condition on labels.
        n_context: To condition on vectors of so many numbers.
        memory: What a training step keeps, as in `Chain`. "store" keeps the state at each of the solvers' steps;
            "checkpoint" that before each flow, for one more solve.

    Returns:
        The flow, with latents of shape (C 4^s, H / 2^s, W / 2^s) for s squeezes, those of the last scale first.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Grathwohl et al. 2019, sections 4.2 and B.2, and the paper's code (`train_cnf.py --multiscale True`).

    Example:
        >>> import torch
        >>> flow = ffjord((1, 8, 8), n_scales=2, n_blocks=1, hidden=(4,), n_levels=17, tolerance=1e-3)
        >>> flow.bits_per_dim(torch.randint(0, 17, (5, 1, 8, 8))).shape, flow.sample(2).shape
        (torch.Size([5]), torch.Size([2, 1, 8, 8]))
    """
    arguments = dict(locals())
    if min(n_scales, n_blocks) < 1:
        got = f"n_scales={n_scales}, n_blocks={n_blocks}"
        raise ConfigError("an FFJORD needs flows", expected="at least 1 scale and block", got=got)
    shape, n = image_shape(in_shape, 2 ** (n_scales - 1)), context_size(n_classes, n_context)
    options: dict[str, Any] = {"tolerance": tolerance, "kinetic": kinetic, "jacobian": jacobian}
    levels, channels = [], shape[0]
    for i in range(n_scales):
        level: list[Bijection] = pixels_to_logits(n_levels) if i == 0 else []
        level += [_flow(ConvField(channels, hidden, n_context=n), **options) for _ in range(n_blocks)]
        if i < n_scales - 1:
            channels *= 4
            level.append(Squeeze(2))
            level += [_flow(ConvField(channels, hidden, n_context=n), **options) for _ in range(n_blocks)]
            channels //= 2
        levels.append(level)
    chain = multi_scale(levels, shape[0], memory=memory)
    base = StandardNormal(squeezed(shape, 2 ** (n_scales - 1)))
    return remember(as_flow(chain, base, shape, n_classes=n_classes, n_levels=n_levels), "ffjord", arguments)


def ffjord_table(
    n_dims: int = 2,
    n_blocks: int = 1,
    hidden: Sequence[int] = (64, 64, 64),
    *,
    tolerance: float = 1e-5,
    kinetic: float = 0.0,
    jacobian: float = 0.0,
    n_classes: int | None = None,
    n_context: int | None = None,
    memory: Memory = "store",
) -> Flow:
    """An FFJORD for vectors; the default is the paper's for points in the plane.

    The paper's for its tables: POWER n_blocks=5 and hidden=(60, 60, 60), GAS 5 and (160, 160, 160), HEPMASS 10 and
    (420, 420), MINIBOONE 1 and (860, 860), BSDS300 2 and (1260, 1260, 1260).

    Args:
        n_dims: Numbers of a data point.
        n_blocks: Flows in sequence.
        hidden: Widths of each field's hidden layers.
        tolerance: Relative and absolute, of the solver.
        kinetic: Weight of the integral of |f|^2 in training, as in `ContinuousFlow`.
        jacobian: Weight of the integral of |J|_F^2 in training.
        n_classes: To condition on labels.
        n_context: To condition on vectors of so many numbers.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Grathwohl et al. 2019, sections 4.1 and B.2, table 4.

    Example:
        >>> import torch
        >>> ffjord_table(3, hidden=(8, 8), n_context=2).log_prob(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    arguments = dict(locals())
    if min(n_dims, n_blocks) < 1:
        got = f"n_dims={n_dims}, n_blocks={n_blocks}"
        raise ConfigError("an FFJORD needs dimensions and flows", expected="at least 1", got=got)
    n = context_size(n_classes, n_context)
    fields = [MLPField(n_dims, hidden, n_context=n) for _ in range(n_blocks)]
    flows = [_flow(field, tolerance, kinetic, jacobian) for field in fields]
    chain = Chain(*flows, memory=memory)
    flow = as_flow(chain, StandardNormal((n_dims,)), (n_dims,), n_classes=n_classes)
    return remember(flow, "ffjord_table", arguments)


def ffjord_2d(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """The paper's FFJORD for points in the plane.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return ffjord_table(2, n_classes=n_classes, memory=memory)


def ffjord_digits(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A small FFJORD for the 8x8 digits, pixels 0 to 16, regularised to be cheap to solve.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return ffjord(
        (1, 8, 8),
        n_scales=2,
        n_blocks=1,
        hidden=(32, 32),
        tolerance=1e-3,
        kinetic=0.01,
        jacobian=0.01,
        n_levels=17,
        n_classes=n_classes,
        memory=memory,
    )


def _flow(field: ConvField | MLPField, tolerance: float, kinetic: float, jacobian: float) -> ContinuousFlow:
    solver = Solver(rtol=tolerance, atol=tolerance)
    return ContinuousFlow(field, solver=solver, kinetic=kinetic, jacobian=jacobian)
