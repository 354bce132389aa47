"""Spline flows in each library, as its own examples build them, of the size that is asked for.

nflows and normflows: 6 couplings by rational-quadratic splines with residual networks, a linear map in LU form and a
permutation between them. zuko: NSF, autoregressive, 5 transforms of two hidden layers. ours: `models.spline_flow` with
its defaults. All have 8 bins on [-5, 5]; the networks' widths are chosen so that all have as many parameters as ours
to 2 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from _flows_subjects import Subject, mean_of, of_flow, peer
from _flows_vectors import of_nflows, of_zuko

BINS, BOUND, N_COUPLINGS = 8, 5.0, 6


def ours(size: int, width: int) -> Subject:
    from invertible.models.spline_flow import spline_flow

    return of_flow(spline_flow((size,), hidden=(width, width)))


def shares(total: int, n: int) -> list[int]:
    """A number in n nearly equal parts: widths of layers, so that sizes can be met closely."""
    return [(total + i) // n for i in range(n)]


def nflows(size: int, total: int) -> Subject:
    tf, residual = peer("nflows.transforms"), peer("nflows.nn.nets").ResidualNet

    def net(width: int) -> Callable[[int, int], nn.Module]:
        return lambda n, m: residual(n, m, hidden_features=width, num_blocks=2, activation=functional.relu)

    layers: list[Any] = []
    for i, width in enumerate(shares(total, N_COUPLINGS)):
        mask = (torch.arange(size) % 2 == i % 2).int()
        layers += [tf.RandomPermutation(size), tf.LULinear(size, identity_init=True)]
        layers.append(
            tf.PiecewiseRationalQuadraticCouplingTransform(mask, net(width), BINS, tails="linear", tail_bound=BOUND)
        )
    return of_nflows(tf.CompositeTransform(layers), size)


def normflows(size: int, total: int) -> Subject:
    nf = peer("normflows")
    layers: list[Any] = []
    for width in shares(total, N_COUPLINGS):
        spline = nf.flows.CoupledRationalQuadraticSpline(size, 2, width, num_bins=BINS, tail_bound=BOUND)
        layers += [spline, nf.flows.LULinearPermute(size)]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(size, trainable=False), layers)
    return Subject(flow, flow.log_prob, mean_of(flow.log_prob), lambda n: flow.sample(n)[0], flow.inverse, flow.forward)


def zuko(size: int, total: int) -> Subject:
    return of_zuko(peer("zuko").flows.NSF(size, transforms=5, hidden_features=shares(total, 2), bins=BINS))


BUILDERS: dict[str, Callable[[int, int], Subject]] = {
    "nflows": nflows,
    "normflows": normflows,
    "zuko": zuko,
    "invertible": ours,
}
OUR_WIDTH = 64


def built(name: str, size: int, seed: int) -> Subject:
    """An implementation with as many parameters as ours has by default.

    Raises:
        ValueError: If no width comes within 2 %.
    """
    wanted = ours(size, OUR_WIDTH).n_parameters
    width = OUR_WIDTH if name == "invertible" else fitting_width(BUILDERS[name], size, wanted)
    torch.manual_seed(seed)
    subject = BUILDERS[name](size, width)
    if abs(subject.n_parameters / wanted - 1) > 0.02:
        raise ValueError(f"{name} has {subject.n_parameters} parameters at total width {width}, not about {wanted}")
    return subject


def fitting_width(build: Callable[[int, int], Subject], size: int, wanted: int) -> int:
    """The total width of the layers whose number of parameters comes nearest."""
    low, high = N_COUPLINGS, 2048
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if build(size, middle).n_parameters <= wanted else (low, middle)
    return min((low, high), key=lambda width: abs(build(size, width).n_parameters - wanted))
