"""Glow on images, in each library that has the parts: steps of ActNorm, an invertible 1x1 convolution and a coupling.

A level is a squeeze and `n_steps` steps; half of the channels leave after each but the last. The couplings' networks
are convolutions 3x3, 1x1, 3x3 with biases, the last one zero; their scale is a sigmoid. zuko has no images, FrEIA no
learned 1x1 convolution. The 1x1 convolutions are factorised everywhere (LU); nflows' has a bias more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from _flows_subjects import Subject, compiled, log_normal, mean_of, of_flow, peer
from _flows_vectors import WithContext, of_nflows

Shape = tuple[int, int, int]


def network(n_in: int, n_out: int, hidden: int) -> nn.Sequential:
    """The coupling's; zero output before training."""
    last = nn.Conv2d(hidden, n_out, 3, padding=1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    first, middle = nn.Conv2d(n_in, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 1)
    return nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)


class PlainStep(nn.Module):
    """ActNorm, 1x1 convolution, affine coupling, as one would write it without any library."""

    permutation: Tensor
    signs: Tensor

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.shift, self.log_scale = (
            nn.Parameter(torch.zeros(channels, 1, 1)),
            nn.Parameter(torch.zeros(channels, 1, 1)),
        )
        permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.register_buffer("permutation", permutation)
        self.register_buffer("signs", upper.diagonal().sign())
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())
        self.network = network(channels // 2, channels, hidden)
        self.is_initialised = False

    def initialise(self, x: Tensor) -> None:
        """Set the ActNorm from a batch."""
        std, mean = torch.std_mean(x.detach(), dim=(0, 2, 3), keepdim=True)
        self.log_scale.data, self.shift.data = -(std[0] + 1e-6).log(), -mean[0] / (std[0] + 1e-6)
        self.is_initialised = True

    def factors(self) -> tuple[Tensor, Tensor]:
        """The triangular factors of the 1x1 convolution."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and log-determinant."""
        if not self.is_initialised:
            self.initialise(x)
        x = x * self.log_scale.exp() + self.shift
        lower, upper = self.factors()
        x = functional.conv2d(x, (self.permutation @ lower @ upper)[:, :, None, None])
        kept, changed = x.chunk(2, dim=1)
        shift, raw = self.network(kept).chunk(2, dim=1)
        pixels = x.shape[2] * x.shape[3]
        logdet = functional.logsigmoid(raw + 2).sum((1, 2, 3)) + pixels * (
            self.log_scale.sum() + self.log_diagonal.sum()
        )
        return torch.cat([kept, (changed + shift) * torch.sigmoid(raw + 2)], dim=1), logdet

    def decode(self, y: Tensor) -> Tensor:
        """Input."""
        kept, changed = y.chunk(2, dim=1)
        shift, raw = self.network(kept).chunk(2, dim=1)
        y = torch.cat([kept, changed / torch.sigmoid(raw + 2) - shift], dim=1)
        lower, upper = self.factors()
        y = functional.conv2d(y, torch.linalg.inv(self.permutation @ lower @ upper)[:, :, None, None])
        return (y - self.shift) * (-self.log_scale).exp()


class PlainGlow(nn.Module):
    """Levels of such steps."""

    def __init__(self, shape: Shape, n_scales: int, n_steps: int, hidden: int) -> None:
        super().__init__()
        self.shape = shape
        self.levels = nn.ModuleList(
            nn.ModuleList(PlainStep(shape[0] * 2 ** (i + 2), hidden) for _ in range(n_steps)) for i in range(n_scales)
        )

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latents, one tensor per level, and log-determinant."""
        latents, logdet = [], x.new_zeros(len(x))
        for i, level in enumerate(self.levels):
            x = functional.pixel_unshuffle(x, 2)
            for step in cast(nn.ModuleList, level):
                x, more = cast(PlainStep, step).encode(x)
                logdet = logdet + more
            if i < len(self.levels) - 1:
                x, done = x.chunk(2, dim=1)
                latents.append(done)
        return [*latents, x], logdet

    def decode(self, latents: list[Tensor]) -> Tensor:
        """Data."""
        x = latents[-1]
        for i in reversed(range(len(self.levels))):
            x = x if i == len(self.levels) - 1 else torch.cat([x, latents[i]], dim=1)
            for step in list(cast(nn.ModuleList, self.levels[i]))[::-1]:
                x = cast(PlainStep, step).decode(x)
            x = functional.pixel_shuffle(x, 2)
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats."""
        latents, logdet = self.encode(x)
        return logdet + sum(log_normal(z) for z in latents)

    def draw(self, n: int) -> list[Tensor]:
        """Latents of n images."""
        c, h, w = self.shape
        last = len(self.levels)
        done = [(c * 2 ** (i + 1), h // 2 ** (i + 1), w // 2 ** (i + 1)) for i in range(last - 1)]
        shapes = [*done, (c * 2 ** (last + 1), h // 2**last, w // 2**last)]
        return [torch.randn(n, *shape, device=next(self.parameters()).device) for shape in shapes]


def plain(shape: Shape, n_scales: int, n_steps: int, hidden: int) -> Subject:
    model = PlainGlow(shape, n_scales, n_steps, hidden)
    return Subject(
        model, model.log_prob, mean_of(model.log_prob), lambda n: model.decode(model.draw(n)),
        lambda x: model.encode(x)[0], model.decode,
    )  # fmt: skip


def nflows(shape: Shape, n_scales: int, n_steps: int, hidden: int) -> Subject:
    tf = peer("nflows.transforms")
    multi, (c, h, w) = tf.MultiscaleCompositeTransform(n_scales), shape
    for _ in range(n_scales):
        c, h, w = 4 * c, h // 2, w // 2
        layers: list[Any] = [tf.SqueezeTransform()]
        for _ in range(n_steps):
            mask = (torch.arange(c) >= c // 2).int()
            coupling = tf.AffineCouplingTransform(mask, lambda n, m: WithContext(network(n, m, hidden)))
            layers += [tf.ActNorm(c), tf.OneByOneConvolution(c), coupling]
        hidden_shape = multi.add_transform(tf.CompositeTransform(layers), (c, h, w))
        c, h, w = hidden_shape or (c, h, w)
    return of_nflows(multi, shape[0] * shape[1] * shape[2])


def normflows(shape: Shape, n_scales: int, n_steps: int, hidden: int) -> Subject:
    nf = peer("normflows")
    bases, merges, flows, (c, h, w) = [], [], [], shape
    for i in range(n_scales):  # from the latents' end
        n, depth = c * 2 ** (n_scales + 1 - i), n_scales - i
        flows.append([nf.flows.GlowBlock(n, hidden) for _ in range(n_steps)] + [nf.flows.Squeeze()])
        merges += [nf.flows.Merge()] * bool(i)
        latent = (n // 2 if i else n, h // 2**depth, w // 2**depth)
        bases.append(nf.distributions.DiagGaussian(latent, trainable=False))
    flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    log_prob: Callable[[Tensor], Tensor] = lambda x: flow.log_prob(x, None)  # noqa: E731
    return Subject(
        flow, log_prob, flow.forward_kld, lambda n: flow.sample(n)[0],
        lambda x: flow.inverse_and_log_det(x)[0], lambda z: flow.forward_and_log_det(z)[0],
    )  # fmt: skip


def ours(shape: Shape, n_scales: int, n_steps: int, hidden: int, memory: Any = "store") -> Subject:
    from invertible.flow import Flow, StandardNormal
    from invertible.layers import ActNorm, Invertible1x1, SigmoidCoupling, Squeeze, multi_scale
    from invertible.layers.conditioner import ConvNet

    levels, (c, h, w) = [], shape
    for i in range(n_scales):
        n = c * 2 ** (i + 2)
        steps = [(ActNorm(n), Invertible1x1(n), SigmoidCoupling(ConvNet(n // 2, n, hidden))) for _ in range(n_steps)]
        levels.append([Squeeze(2), *(layer for step in steps for layer in step)])
    base = StandardNormal((c * 4**n_scales, h // 2**n_scales, w // 2**n_scales))
    return of_flow(Flow(multi_scale(levels, c, memory=memory), base, event_shape=shape))


BUILDERS: dict[str, Callable[[Shape, int, int, int], Subject]] = {
    "plain": plain,
    "nflows": nflows,
    "normflows": normflows,
    "invertible": ours,
    "invertible-compiled": lambda *args: compiled(ours(*args)),
}
