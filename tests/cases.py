"""One line per bijection: every property in test_properties.py runs over all of them.

To add a layer, add a line: its name, how to build it, the shape of one input (no batch), what is special.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from invertible import Bijection, Chain, Inverse
from invertible.layers import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Alternating,
    ChannelMask,
    Checkerboard,
    ContinuousFlow,
    ConvField,
    FixedMask,
    InjectivePad,
    Invertible1x1,
    Logit,
    MarginalSpline,
    MLPField,
    MomentumCoupling,
    OnFirst,
    Permute,
    Reshape,
    Residual,
    Scaling,
    SigmoidCoupling,
    SoftTails,
    Solver,
    SplineCoupling,
    Squeeze,
    Standardize,
    Tanh,
    constrain,
    multi_scale,
)
from invertible.logdet import ExactLogDet

# Largest error of a round trip, and of a result against the float64 one, for values of order 1.
# bfloat16 has 8 bits.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Case:
    """How to build a bijection and feed it.

    build: makes it, with weights from the global random state (`make` seeds that).
    shape: of one input, without the batch.
    context: shape of one context; None: it takes none.
    onto: whether every point of the output space has a preimage.
    domain: brings any numbers to where the map is defined.
    image: brings any numbers to where its inverse is.
    tolerance: largest error, by dtype; those that solve equations are less exact than formulas.
    traceable: whether compile, export and vmap can see through it; an adaptive solver looks at values.
    """

    build: Callable[[], Bijection]
    shape: tuple[int, ...]
    context: tuple[int, ...] | None = None
    onto: bool = True
    domain: Callable[[Tensor], Tensor] = torch.clone
    image: Callable[[Tensor], Tensor] = torch.clone
    tolerance: Mapping[torch.dtype, float] = field(default_factory=TOLERANCE.copy)
    traceable: bool = True

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Bijection:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().to(dtype)

    def x(self, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        return self.domain(_normal((batch, *self.shape), seed)).to(dtype)

    def y(self, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        """An output: any point if the map is onto, an image otherwise."""
        with torch.no_grad():
            y = self.make()(self.x(batch, seed=seed), *self.args(batch))
        return (self.image(_normal(tuple(y.shape), seed + 1)) if self.onto else y).to(dtype)

    def args(self, batch: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """What goes into a call after the input: the context, or nothing."""
        return () if self.context is None else (_normal((batch, *self.context), 2).to(dtype),)

    def assert_close(self, actual: Tensor, expected: Tensor) -> None:
        assert_close(actual, expected, self.tolerance[actual.dtype])


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mlp(n_in: int, n_out: int) -> nn.Module:
    """On the last dimension."""
    return nn.Sequential(nn.Linear(n_in, 4), nn.Tanh(), nn.Linear(4, n_out))


def conv(n_in: int, n_out: int, n_dims: int = 2) -> nn.Module:
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[n_dims]
    return nn.Sequential(kind(n_in, 3, 3, padding=1), nn.Tanh(), kind(3, n_out, 3, padding=1))


class Constant(nn.Module):
    """The same numbers whatever comes, for each element of the batch or for `n_rows`."""

    def __init__(self, *values: float, n_rows: int | None = None) -> None:
        super().__init__()
        self.values, self.n_rows = values, n_rows

    def forward(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.values).expand(self.n_rows or len(x), -1)


class WithContext(nn.Module):
    """A network whose output depends on a vector as well: tanh(network(x) + A context)."""

    def __init__(self, network: nn.Module, n_context: int, n_out: int) -> None:
        super().__init__()
        self.network, self.of_context = network, nn.Linear(n_context, n_out)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h, c = self.network(x), self.of_context(context)
        return torch.tanh(h + c.reshape(*c.shape, *[1] * (h.ndim - c.ndim)))


def add(n_in: int, n_out: int, **kwargs) -> Bijection:
    return AdditiveCoupling(mlp(n_in, n_out), **kwargs)


def affine(n_in: int, n_out: int, **kwargs) -> Bijection:
    return AffineCoupling(mlp(n_in, 2 * n_out), **kwargs)


def add_conv(n_in: int, n_out: int, n_dims: int = 2, **kwargs) -> Bijection:
    return AdditiveCoupling(conv(n_in, n_out, n_dims), **kwargs)


def affine_conv(n_in: int, n_out: int, n_dims: int = 2, **kwargs) -> Bijection:
    return AffineCoupling(conv(n_in, 2 * n_out, n_dims), **kwargs)


def spline(n_in: int, n_out: int, network: Callable[[int, int], nn.Module] = mlp, **kwargs) -> Bijection:
    """Four bins on [-2, 2], so that some of the inputs lie outside."""
    return SplineCoupling(network(n_in, 11 * n_out), n_bins=4, bound=2.0, **kwargs)


def spline_given(n: int) -> Bijection:
    """Conditional on a vector of 2."""
    return SplineCoupling(WithContext(mlp(n, 11 * n), 2, 11 * n), n_bins=4, bound=2.0, takes_context=True)


def add_given(n: int, network: Callable[[int, int], nn.Module] = mlp) -> Bijection:
    """Conditional on a vector of 2."""
    return AdditiveCoupling(WithContext(network(n, n), 2, n), takes_context=True)


def affine_given(n: int, network: Callable[[int, int], nn.Module] = mlp) -> Bijection:
    """Conditional on a vector of 2."""
    return AffineCoupling(WithContext(network(n, 2 * n), 2, 2 * n), takes_context=True)


def actnorm(n: int, dim: int = 1) -> ActNorm:
    """Initialised."""
    layer = ActNorm(n, dim)
    layer.initialise(2 * torch.randn(8, n).reshape(8, *[1] * (dim - 1), n) + 1)
    return layer


def mixing(n: int, dim: int = 1, **kwargs) -> Invertible1x1:
    """A rotation after a stretch."""
    layer = Invertible1x1(n, dim=dim, **kwargs)
    layer.set_weight(layer.weight.detach() * (0.3 * torch.randn(n)).exp())
    return layer


def scaling(n: int, dim: int = 1) -> Scaling:
    layer = Scaling(n, dim)
    nn.init.normal_(layer.log_scale, std=0.5)
    return layer


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)


class Call(nn.Module):
    """Makes a method a `forward`, which functional_call, compile and export can reach."""

    def __init__(self, bijection: Bijection, method: str) -> None:
        super().__init__()
        self.bijection, self.method = bijection, method

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
        return getattr(self.bijection, self.method)(*args)


def ends_whole() -> Bijection:
    return Chain(add(2, 2), Permute.reverse(4))


def ends_parted() -> Bijection:
    return Chain(Permute.reverse(4), add(2, 2))


def alternating() -> list[Bijection]:
    return [affine(2, 2), Permute.reverse(4), Chain(add(2, 2, target="first"), Inverse(affine(2, 2)))]


def marginal() -> MarginalSpline:
    layer = MarginalSpline(3, n_bins=4, bound=3.0)
    nn.init.normal_(layer.parameters_of_splines)
    return layer


def sigmoid(network: nn.Module, **kwargs) -> Bijection:
    return SigmoidCoupling(network, **kwargs)


TIGHT = Solver(rtol=1e-9, atol=1e-9)
SOLVED = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.1}
STEPPED = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.1}


def ode(n: int, **kwargs) -> Case:
    """Adaptive, the divergence exact."""
    context = (2,) if "n_context" in kwargs else None
    return Case(
        lambda: ContinuousFlow(MLPField(n, **{"hidden": (4,), **kwargs}), 0.5, TIGHT, "exact"),
        (n,),
        context,
        tolerance=SOLVED,
        traceable=False,
    )


def rk4() -> ContinuousFlow:
    return ContinuousFlow(MLPField(2, hidden=(3,)), 0.3, Solver("rk4", n_steps=2))


def ode_conv() -> ContinuousFlow:
    return ContinuousFlow(ConvField(2, hidden=(3,)), 0.3, Solver("dopri5", n_steps=8), "exact")


def residual(network: nn.Module, **kwargs) -> Bijection:
    """Weights enlarged, so that the constraint is at work; the log-determinant without noise."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return Residual(constrain(network, 0.8), logdet=ExactLogDet(), training_logdet=ExactLogDet(), **kwargs)


def residual_given(n: int) -> Bijection:
    """Conditional on a vector of 2; the context shifts, so that the network's own bound holds."""
    network = WithContext(constrain(mlp(n, n), 0.9), 2, n)
    return Residual(network, 0.81, takes_context=True, logdet=ExactLogDet(), training_logdet=ExactLogDet())


def two_levels(**kwargs) -> Chain:
    levels = [[Squeeze(2), affine_conv(2, 2)], [Squeeze(2), affine_conv(4, 4), add_conv(4, 4, target="first")]]
    return multi_scale(levels, n_channels=1, **kwargs)


CASES: dict[str, Case] = {
    "squeeze-1d": Case(lambda: Squeeze(2, n_dims=1), (3, 6)),
    "squeeze-2d": Case(lambda: Squeeze(2), (3, 4, 6)),
    "squeeze-3d": Case(lambda: Squeeze(2, n_dims=3), (2, 2, 4, 2)),
    "squeeze-2x3": Case(lambda: Squeeze((2, 3)), (2, 4, 6)),
    "squeeze-1x2x3": Case(lambda: Squeeze((1, 2, 3)), (2, 2, 4, 3)),
    "squeeze-by-1": Case(lambda: Squeeze(1), (2, 3, 3)),
    "squeeze-offset-1d": Case(lambda: Squeeze(3, n_dims=1, order="offset"), (2, 6)),
    "squeeze-offset-2d": Case(lambda: Squeeze(2, order="offset"), (3, 4, 6)),
    "squeeze-offset-2x3": Case(lambda: Squeeze((2, 3), order="offset"), (2, 4, 6)),
    "squeeze-offset-3d": Case(lambda: Squeeze(2, n_dims=3, order="offset"), (3, 2, 4, 2)),
    "pad-vector": Case(lambda: InjectivePad(3, 2), (3,), onto=False),
    "pad-image": Case(lambda: InjectivePad(2, 3), (2, 3, 3), onto=False),
    "pad-nothing": Case(lambda: InjectivePad(3, 0), (3, 2)),
    "permute-list": Case(lambda: Permute([2, 0, 3, 1]), (4, 2)),
    "permute-reverse": Case(lambda: Permute.reverse(5), (5,)),
    "permute-random": Case(lambda: Permute.random(6, seed=3), (6, 2, 2)),
    "permute-dim-2": Case(lambda: Permute([1, 2, 0], dim=2), (2, 3)),
    "additive": Case(lambda: add(3, 3), (6,)),
    "additive-first": Case(lambda: add(3, 3, target="first"), (6,)),
    "additive-odd": Case(lambda: add(2, 3), (5,)),
    "additive-odd-first": Case(lambda: add(3, 2, target="first"), (5,)),
    "additive-uneven": Case(lambda: add(4, 1, sizes=(4, 1)), (5,)),
    "additive-dim-2": Case(lambda: add(2, 2, dim=2), (3, 4)),
    "additive-conv-1d": Case(lambda: add_conv(2, 2, n_dims=1), (4, 5)),
    "additive-conv-2d": Case(lambda: add_conv(2, 2), (4, 3, 3)),
    "additive-conv-first": Case(lambda: add_conv(2, 2, target="first"), (4, 3, 3)),
    "additive-conv-odd": Case(lambda: add_conv(1, 2), (3, 3, 3)),
    "additive-conv-uneven": Case(lambda: add_conv(3, 1, sizes=(3, 1)), (4, 3, 3)),
    "additive-context": Case(lambda: add_given(2), (4,), context=(2,)),
    "additive-conv-context": Case(lambda: add_given(2, conv), (4, 3, 3), context=(2,)),
    "affine": Case(lambda: affine(3, 3), (6,)),
    "affine-first": Case(lambda: affine(3, 3, target="first"), (6,)),
    "affine-odd": Case(lambda: affine(2, 3), (5,)),
    "affine-odd-first": Case(lambda: affine(3, 2, target="first"), (5,)),
    "affine-uneven": Case(lambda: affine(4, 1, sizes=(4, 1)), (5,)),
    "affine-dim-2": Case(lambda: affine(2, 2, dim=2), (3, 4)),
    "affine-unbounded": Case(lambda: affine(3, 3, scale_bound=None), (6,)),
    "affine-tight": Case(lambda: affine(3, 3, scale_bound=0.1), (6,)),
    "affine-conv-1d": Case(lambda: affine_conv(2, 2, n_dims=1), (4, 5)),
    "affine-conv-2d": Case(lambda: affine_conv(2, 2), (4, 3, 3)),
    "affine-conv-first": Case(lambda: affine_conv(2, 2, target="first"), (4, 3, 3)),
    "affine-conv-odd": Case(lambda: affine_conv(1, 2), (3, 3, 3)),
    "affine-conv-uneven": Case(lambda: affine_conv(3, 1, sizes=(3, 1)), (4, 3, 3)),
    "affine-conv-unbounded": Case(lambda: affine_conv(2, 2, scale_bound=None), (4, 3, 3)),
    "affine-context": Case(lambda: affine_given(2), (4,), context=(2,)),
    "affine-conv-context": Case(lambda: affine_given(2, conv), (4, 3, 3), context=(2,)),
    "additive-alternating": Case(lambda: add(5, 5, mask=Alternating()), (5,)),
    "additive-checkerboard-1d": Case(lambda: add_conv(2, 2, n_dims=1, mask=Checkerboard()), (2, 5)),
    "affine-checkerboard": Case(lambda: affine_conv(1, 1, mask=Checkerboard()), (1, 3, 3)),
    "affine-checkerboard-first": Case(lambda: affine_conv(2, 2, mask=Checkerboard(), target="first"), (2, 2, 3)),
    "affine-channel-mask": Case(lambda: affine_conv(3, 3, mask=ChannelMask()), (3, 2, 2)),
    "affine-fixed-mask-unbounded": Case(
        lambda: affine(4, 4, mask=FixedMask([True, False, False, True]), scale_bound=None), (4,)
    ),
    "affine-mask-context": Case(
        lambda: AffineCoupling(WithContext(mlp(4, 8), 2, 8), takes_context=True, mask=Alternating()), (4,), context=(2,)
    ),
    "spline": Case(lambda: spline(3, 3), (6,)),
    "spline-odd-first": Case(lambda: spline(3, 2, target="first"), (5,)),
    "spline-dim-2": Case(lambda: spline(2, 2, dim=2), (3, 4)),
    "spline-conv-2d": Case(lambda: spline(2, 2, conv), (4, 3, 3)),
    "spline-context": Case(lambda: spline_given(2), (4,), context=(2,)),
    "spline-checkerboard": Case(lambda: spline(1, 1, conv, mask=Checkerboard()), (1, 3, 2)),
    "chain-masks": Case(
        lambda: Chain(affine(4, 4, mask=Alternating()), affine(2, 2), add(4, 4, mask=ChannelMask(), target="first")),
        (4,),
    ),
    "inverse-spline": Case(lambda: Inverse(spline(2, 3)), (5,)),
    "momentum": Case(lambda: MomentumCoupling(mlp(3, 3), 0.8), (6,)),
    "momentum-conv-first": Case(lambda: MomentumCoupling(conv(2, 2), target="first"), (4, 3, 3)),
    "momentum-odd-dim-2": Case(lambda: MomentumCoupling(mlp(2, 3), dim=2), (2, 5)),
    "momentum-context": Case(lambda: MomentumCoupling(WithContext(mlp(2, 2), 2, 2), takes_context=True), (4,), (2,)),
    "actnorm": Case(lambda: actnorm(4), (4,)),
    "actnorm-image": Case(lambda: actnorm(3), (3, 2, 3)),
    "actnorm-dim-2": Case(lambda: actnorm(3, dim=2), (2, 3)),
    "actnorm-3d": Case(lambda: actnorm(2).eval(), (2, 1, 2, 2)),
    "scaling": Case(lambda: scaling(4), (4,)),
    "scaling-dim-2": Case(lambda: scaling(3, dim=2), (2, 3, 2)),
    "standardize": Case(lambda: Standardize(torch.tensor([0.5, -1, 2]), torch.tensor([2.0, 0.5, 1])), (3,)),
    "standardize-image": Case(lambda: Standardize(torch.tensor([0.5, -1]), torch.tensor([2.0, 0.5])), (2, 2, 3)),
    "soft-tails": Case(lambda: SoftTails(0.7), (2, 3)),
    "tanh": Case(Tanh, (4,), image=torch.tanh),
    "logit": Case(Logit, (4,), domain=torch.sigmoid),
    "logit-0": Case(lambda: Logit(0), (2, 3), domain=torch.sigmoid),
    "inverse-tanh": Case(lambda: Inverse(Tanh()), (2, 2), domain=torch.tanh),
    "1x1-plu": Case(lambda: mixing(4), (4,)),
    "1x1-plu-image": Case(lambda: mixing(3), (3, 2, 3)),
    "1x1-plu-dim-2": Case(lambda: mixing(3, dim=2), (2, 3)),
    "1x1-plu-3d": Case(lambda: mixing(2), (2, 2, 1, 2)),
    "1x1-direct": Case(lambda: mixing(4, factorization="direct"), (4,)),
    "1x1-direct-image": Case(lambda: mixing(3, factorization="direct"), (3, 2, 2)),
    "reshape-to-vector": Case(lambda: Reshape((2, 3), (6,)), (2, 3)),
    "reshape-to-image": Case(lambda: Reshape((8,), (2, 2, 2)), (8,)),
    "sigmoid": Case(lambda: sigmoid(mlp(3, 6)), (6,)),
    "sigmoid-conv-first": Case(lambda: sigmoid(conv(2, 4), target="first"), (4, 3, 3)),
    "sigmoid-context": Case(lambda: sigmoid(WithContext(mlp(2, 4), 2, 4), takes_context=True), (4,), (2,)),
    "marginal-spline": Case(marginal, (3,)),
    "on-first-whole": Case(lambda: OnFirst(Permute([2, 0, 1]), (3, 2)), (5, 2)),
    "on-first-streams": Case(lambda: OnFirst(affine_conv(2, 2), (4, 1)), (5, 3, 3)),
    "on-first-context": Case(lambda: OnFirst(affine_given(2), (4, 2)), (6,), (2,)),
    "multi-scale": Case(two_levels, (1, 4, 4)),
    "multi-scale-reconstruct": Case(lambda: two_levels(memory="reconstruct", check_every=1), (1, 4, 4)),
    "ode": ode(2, hidden=(4, 3)),
    "ode-context": ode(2, n_context=2),
    "ode-conv": Case(ode_conv, (2, 2, 2), tolerance=SOLVED, traceable=False),
    "ode-rk4": Case(rk4, (2,), tolerance=STEPPED),
    "chain-ode": Case(lambda: Chain(rk4(), Inverse(rk4()), memory="checkpoint"), (2,), tolerance=STEPPED),
    "chain-empty": Case(lambda: Chain(), (3, 2)),
    "chain-of-one": Case(lambda: Chain(affine(2, 2)), (4,)),
    "chain-same-split": Case(lambda: Chain(add(2, 2), affine(2, 2, target="first"), affine(2, 2)), (4,)),
    "chain-mixed-splits": Case(lambda: Chain(affine(2, 3), Permute.reverse(5), affine(1, 4, sizes=(1, 4))), (5,)),
    "chain-mixed-dims": Case(lambda: Chain(affine(2, 2, dim=2), Permute([1, 0]), add(4, 4)), (2, 4)),
    "chain-stages": Case(lambda: Chain(add_conv(1, 1), Squeeze(2), affine_conv(4, 4), Permute.reverse(8)), (2, 4, 4)),
    "chain-nested": Case(lambda: Chain(affine(2, 2), Chain(add(2, 2), Chain(affine(2, 2)))), (4,)),
    "chain-nested-whole-parted": Case(lambda: Chain(ends_whole(), add(2, 2)), (4,)),
    "chain-nested-parted-whole": Case(lambda: Chain(ends_parted(), Permute.reverse(4)), (4,)),
    "chain-nested-inverse": Case(lambda: Chain(Inverse(ends_parted()), add(2, 2)), (4,)),
    "chain-nested-three": Case(lambda: Chain(ends_whole(), ends_parted(), ends_whole()), (4,)),
    "chain-holding-empty": Case(lambda: Chain(affine(2, 2), Chain(), add(2, 2)), (4,)),
    "chain-context": Case(lambda: Chain(add(2, 2), affine_given(2), Permute.reverse(4), add(2, 2)), (4,), context=(2,)),
    "chain-context-nested": Case(lambda: Chain(add(2, 2), Chain(affine_given(2), add(2, 2))), (4,), context=(2,)),
    "chain-reconstruct": Case(lambda: Chain(*alternating(), memory="reconstruct", check_every=1), (4,)),
    "chain-checkpoint": Case(lambda: Chain(*alternating(), memory="checkpoint"), (4,)),
    "chain-glow-step": Case(lambda: Chain(actnorm(4), mixing(4), affine_conv(2, 2), memory="reconstruct"), (4, 2, 2)),
    "chain-pad-last": Case(lambda: Chain(affine(2, 2), InjectivePad(4, 2)), (4,), onto=False),
    "chain-pad-first": Case(lambda: Chain(InjectivePad(1, 1), Squeeze(2), Permute.reverse(8)), (1, 4, 4), onto=False),
    "residual": Case(lambda: residual(mlp(3, 3)), (3,), tolerance=SOLVED, traceable=False),
    "residual-1d": Case(lambda: residual(conv(2, 2, 1)), (2, 4), tolerance=SOLVED, traceable=False),
    "residual-conv": Case(lambda: residual(conv(2, 2)), (2, 3, 3), tolerance=SOLVED, traceable=False),
    "residual-context": Case(lambda: residual_given(3), (3,), (2,), tolerance=SOLVED, traceable=False),
    "inverse-residual": Case(lambda: Inverse(residual(mlp(3, 3))), (3,), tolerance=SOLVED, traceable=False),
    "residual-chain": Case(
        lambda: Chain(actnorm(3), residual(mlp(3, 3)), OnFirst(residual(mlp(2, 2)), (2, 1)), affine(1, 2)),
        (3,),
        tolerance=SOLVED,
        traceable=False,
    ),
    "inverse-squeeze": Case(lambda: Inverse(Squeeze((2, 1))), (4, 2, 3)),
    "inverse-permute": Case(lambda: Inverse(Permute([2, 0, 1])), (3, 2)),
    "inverse-additive": Case(lambda: Inverse(add(2, 3)), (5,)),
    "inverse-affine-conv": Case(lambda: Inverse(affine_conv(2, 2)), (4, 3, 3)),
    "inverse-affine-context": Case(lambda: Inverse(affine_given(2)), (4,), context=(2,)),
    "inverse-inverse": Case(lambda: Inverse(Inverse(affine(2, 3))), (5,)),
    "inverse-chain": Case(lambda: Inverse(Chain(affine(2, 2), Permute.reverse(4), add(2, 2))), (4,)),
    "chain-with-inverse": Case(lambda: Chain(affine(2, 2), Inverse(affine(2, 2)), add(2, 2)), (4,)),
}
