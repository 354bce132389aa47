"""RealNVP on vectors: affine couplings with bounded scales that change the halves in turn, in each library.

The networks are Linear, ReLU, Linear, ReLU, Linear, the last one zero (zuko has no option for that). The log-scale is
2 tanh(raw / 2) for plain and ours and 2 tanh(raw) for FrEIA; nflows and normflows bound by a sigmoid, zuko by a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _flows_subjects import BOUND, Subject, compiled, log_normal, mean_of, network, of_flow, peer


class PlainRealNVP(nn.Module):
    """The network as one would write it without any library."""

    def __init__(self, size: int, n_couplings: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.networks = nn.ModuleList(network(size // 2, size, width) for _ in range(n_couplings))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and log-determinant."""
        kept, changed = x.chunk(2, dim=1)
        logdet = x.new_zeros(len(x))
        for net in self.networks:
            shift, raw = net(kept).chunk(2, dim=1)
            log_scale = BOUND * torch.tanh(raw / BOUND)
            kept, changed = changed * log_scale.exp() + shift, kept
            logdet = logdet + log_scale.sum(1)
        return torch.cat([kept, changed], dim=1), logdet

    def decode(self, z: Tensor) -> Tensor:
        """Data."""
        kept, changed = z.chunk(2, dim=1)
        for net in reversed(self.networks):
            shift, raw = net(changed).chunk(2, dim=1)
            kept, changed = changed, (kept - shift) * (-BOUND * torch.tanh(raw / BOUND)).exp()
        return torch.cat([kept, changed], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats."""
        z, logdet = self.encode(x)
        return log_normal(z) + logdet


def plain(size: int, n_couplings: int, width: int) -> Subject:
    model = PlainRealNVP(size, n_couplings, width)

    def sample(n: int) -> Tensor:
        return model.decode(torch.randn(n, size))

    return Subject(model, model.log_prob, mean_of(model.log_prob), sample, lambda x: model.encode(x)[0], model.decode)


class WithContext(nn.Module):
    """nflows hands its networks a context, None here."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Without it."""
        return self.inner(x)


def nflows(size: int, n_couplings: int, width: int) -> Subject:
    tf = peer("nflows.transforms")
    upper = torch.arange(size) >= size // 2
    layers = [
        tf.AffineCouplingTransform(
            (upper if i % 2 == 0 else ~upper).int(), lambda n, m: WithContext(network(n, m, width))
        )
        for i in range(n_couplings)
    ]
    return of_nflows(tf.CompositeTransform(layers), size)


def of_nflows(transform: Any, size: int) -> Subject:
    """A flow of any of its transforms, whose latents are vectors."""
    flow = peer("nflows.flows").Flow(transform, peer("nflows.distributions.normal").StandardNormal([size]))
    decode: Callable[[Tensor], Tensor] = lambda z: flow._transform.inverse(z)[0]  # noqa: E731
    return Subject(flow, flow.log_prob, mean_of(flow.log_prob), flow.sample, flow.transform_to_noise, decode)


def normflows(size: int, n_couplings: int, width: int) -> Subject:
    nf = peer("normflows")
    layers: list[nn.Module] = []
    for _ in range(n_couplings):
        net = nf.nets.MLP([size // 2, width, width, size], init_zeros=True)
        layers += [nf.flows.AffineCouplingBlock(net, scale_map="sigmoid"), nf.flows.Permute(size, mode="swap")]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(size, trainable=False), layers)
    return Subject(flow, flow.log_prob, flow.forward_kld, lambda n: flow.sample(n)[0], flow.inverse, flow.forward)


def zuko(size: int, n_couplings: int, width: int) -> Subject:
    flow = peer("zuko").flows.RealNVP(size, transforms=n_couplings, hidden_features=(width, width))
    return of_zuko(flow)


def of_zuko(flow: Any) -> Subject:
    """Any of its flows."""
    log_prob: Callable[[Tensor], Tensor] = lambda x: flow().log_prob(x)  # noqa: E731
    return Subject(
        flow, log_prob, mean_of(log_prob), lambda n: flow().sample((n,)),
        lambda x: flow().transform(x), lambda z: flow().transform.inv(z),
    )  # fmt: skip


def freia(size: int, n_couplings: int, width: int) -> Subject:
    model, block = peer("FrEIA.framework").SequenceINN(size), peer("FrEIA.modules").GLOWCouplingBlock
    for _ in range(n_couplings // 2):  # a block is two couplings
        model.append(
            block,
            subnet_constructor=lambda n, m: network(n, m, width),
            clamp=BOUND,
            clamp_activation="TANH",
        )

    def log_prob(x: Tensor) -> Tensor:
        z, logdet = model(x)
        return log_normal(z) + logdet

    def decode(z: Tensor) -> Tensor:
        return model(z, rev=True, jac=False)[0]

    return Subject(
        model,
        log_prob,
        mean_of(log_prob),
        lambda n: decode(torch.randn(n, size)),
        lambda x: model(x, jac=False)[0],
        decode,
    )


def ours(size: int, n_couplings: int, width: int) -> Subject:
    from invertible import Chain
    from invertible.flow import Flow, StandardNormal
    from invertible.layers import AffineCoupling
    from invertible.layers.conditioner import MLP

    couplings = [
        AffineCoupling(MLP(size // 2, size, (width, width)), "second" if i % 2 == 0 else "first", scale_bound=BOUND)
        for i in range(n_couplings)
    ]
    return of_flow(Flow(Chain(*couplings), StandardNormal(size)))


BUILDERS: dict[str, Callable[[int, int, int], Subject]] = {
    "plain": plain,
    "nflows": nflows,
    "normflows": normflows,
    "zuko": zuko,
    "freia": freia,
    "invertible": ours,
    "invertible-compiled": lambda *args: compiled(ours(*args)),
}
