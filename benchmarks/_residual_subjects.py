"""The implementations of `residual_flows.py`: eight residual blocks with an ActNorm before each and after the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from _flows_subjects import log_normal, mean_of, missing, peer
from _residual_style import Block, InducedLinear
from invertible.layers import ActNorm, Residual
from invertible.logdet import Krylov, LogDetEstimator, PowerSeries, RussianRoulette
from invertible.models import residual_flow_table

N_DIMS, N_BLOCKS, WIDTH, BOUND = 64, 8, 128, 0.97
SIZES = [N_DIMS, WIDTH, WIDTH, N_DIMS]


@dataclass
class Subject:
    """One implementation, ready to be trained and measured."""

    model: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    constrain: Callable[[], None] = lambda: None
    """What has to be called after each step."""
    loss: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.loss = mean_of(self.log_prob)

    @property
    def blocks(self) -> list[Residual]:
        """Ours, if it is one of ours."""
        return [part for part in self.model.modules() if isinstance(part, Residual)]


def build(name: str) -> Subject:
    """An implementation by its name; weights are drawn from the global random state."""
    if name in ESTIMATORS:
        return ours(ESTIMATORS[name])
    return {"normflows": normflows, "residual-flow-style": style, "freia": freia}[name]()


def ours(estimator: LogDetEstimator | None) -> Subject:
    """`models.residual_flow_table`, as a user gets it but for the estimator in training."""
    flow = residual_flow_table(N_DIMS, N_BLOCKS, (WIDTH, WIDTH), BOUND, **DEFAULTS)
    for block in flow.modules():
        if isinstance(block, Residual) and estimator is not None:
            block.training_logdet = estimator
    return Subject(flow, flow.log_prob, flow.sample, flow.encode, flow.decode)


DEFAULTS: dict[str, Any] = {"estimator": "roulette"}
"""Of the models; the table's own is exact, which 64 numbers make expensive."""
ESTIMATORS: dict[str, LogDetEstimator | None] = {
    "invertible": None,
    "invertible-krylov": Krylov.within(4),
    "invertible-roulette": RussianRoulette(),
    "invertible-power-series": PowerSeries(),
}
NAMES = ("normflows", "residual-flow-style", "freia", *ESTIMATORS)


def available(names: list[str]) -> Iterator[str]:
    """Those whose package is installed."""
    return (name for name in names if not missing(name))


def normflows() -> Subject:
    """`Residual` with `LipschitzMLP`, five power iterations after each step as is its default."""
    flows, update = peer("normflows.flows"), peer("normflows.utils").update_lipschitz
    members: list[nn.Module] = [flows.ActNorm(N_DIMS)]
    for _ in range(N_BLOCKS):
        net = peer("normflows.nets").LipschitzMLP(SIZES, lipschitz_const=BOUND, max_lipschitz_iter=5)
        members += [flows.Residual(net), flows.ActNorm(N_DIMS)]
    base = peer("normflows.distributions").DiagGaussian(N_DIMS, trainable=False)
    model = peer("normflows").NormalizingFlow(base, members[::-1])
    return Subject(model, model.log_prob, lambda n: model.sample(n)[0], model.inverse, model.forward,
                   lambda: update(model, 5))  # fmt: skip


class Style(nn.Module):
    """Residual Flow's blocks in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList(Block(SIZES, BOUND) for _ in range(N_BLOCKS))
        self.norms: Any = nn.ModuleList(ActNorm(N_DIMS) for _ in range(N_BLOCKS + 1))

    def log_prob(self, x: Tensor) -> Tensor:
        x, total = self.norms[0].forward_with_logdet(x)
        for i, block in enumerate(self.blocks, start=1):
            x, logdet = block(x)
            x, scale = self.norms[i].forward_with_logdet(x)
            total = total + logdet + scale
        return log_normal(x) + total

    def encode(self, x: Tensor) -> Tensor:
        x = self.norms[0](x)
        for i, block in enumerate(self.blocks, start=1):
            x = self.norms[i](x + block.g(x))
        return x

    def decode(self, z: Tensor) -> Tensor:
        for i, block in reversed(list(enumerate(self.blocks, start=1))):
            z = block.inverse(self.norms[i].inverse(z))
        return self.norms[0].inverse(z)

    def constrain(self) -> None:
        """Bring the norms up to date."""
        for part in self.modules():
            if isinstance(part, InducedLinear):
                part.iterate()


def style() -> Subject:
    """Residual Flow's mechanism."""
    model = Style()
    return Subject(model, model.log_prob, lambda n: model.decode(torch.randn(n, N_DIMS)), model.encode, model.decode,
                   model.constrain)  # fmt: skip


def freia() -> Subject:
    """`IResNetLayer`, corrected after each step."""
    framework, modules = peer("FrEIA.framework"), peer("FrEIA.modules")
    net: Any = framework.SequenceINN(N_DIMS)
    for _ in range(N_BLOCKS):
        net.append(modules.ActNorm)
        net.append(modules.IResNetLayer, internal_size=WIDTH, spectral_norm_max=BOUND)
    net.append(modules.ActNorm)

    def log_prob(x: Tensor) -> Tensor:
        with torch.enable_grad():  # it differentiates even where nobody asked
            z, logdet = net(x.detach().clone())
        return log_normal(z) + logdet

    def decode(z: Tensor) -> Tensor:  # member by member, as the whole cannot go without its log-determinant
        for member in reversed(net.module_list):
            (z,), _ = member([z], rev=True, jac=False)
        return z

    def encode(x: Tensor) -> Tensor:
        for member in net.module_list:
            (x,), _ = member([x], jac=False)
        return x

    def correct() -> None:
        for part in net.modules():
            if isinstance(part, modules.IResNetLayer):
                part.lipschitz_correction()

    return Subject(net, log_prob, lambda n: decode(torch.randn(n, N_DIMS)), encode, decode, correct)
