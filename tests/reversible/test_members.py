"""Any chain: every case of tests/cases.py, contexts, nesting, members of users' own, against memory="store"."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, WithContext
from invertible import Bijection, Chain, Inverse
from invertible.bijection import VolumePreserving
from invertible.chain import Each
from invertible.errors import ConfigError
from invertible.layers import AdditiveCoupling, AffineCoupling, InjectivePad, Permute, Squeeze
from invertible.layers.coupling import Coupling
from invertible.models.irevnet import IRevNetBlock
from invertible.streams import Split
from reversible._nets import (
    SAVING,
    additive,
    affine,
    against_store,
    assert_right_or_refused,
    gradients,
    mlp,
    names_of_graph,
    target,
)

METHODS = ["forward", "inverse", "forward_with_logdet", "inverse_with_logdet"]


def run_method(chain: Bijection, method: str, z: Tensor, *context: Any) -> list[Tensor]:
    """A loss in which no output is forgotten and all weigh differently."""
    out = getattr(chain, method)(z, *context)
    y, logdet = out if method.endswith("logdet") else (out, None)
    loss = (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum() + y.square().sum()
    if logdet is not None:
        loss = loss + (logdet * torch.arange(1, len(logdet) + 1)).sum()
    loss.backward()
    return [y, *([] if logdet is None else [logdet]), z.grad]


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*has no exact inverse")  # said once a process, of differential equations
def test_every_case(name: str, method: str, memory: str) -> None:
    case = CASES[name]

    def run(chain: Chain) -> list[Tensor]:
        z = (case.y if method.startswith("inverse") else case.x)().requires_grad_()
        context = [c.requires_grad_() for c in case.args()]
        found = run_method(chain, method, z, *context)
        return [*found, *(c.grad for c in context)]

    against_store(lambda: Chain(case.build()), run, memory)


@pytest.mark.parametrize("name", ["chain-stages", "affine-conv-context", "chain-nested-three"])
def test_cases_in_float32(name: str) -> None:
    case = CASES[name]

    def run(chain: Chain) -> list[Tensor]:
        x, args = case.x(dtype=torch.float32).requires_grad_(), case.args(dtype=torch.float32)
        return run_method(chain, "forward_with_logdet", x, *args)

    against_store(lambda: Chain(case.build()), run, "reconstruct", 1e-4, torch.float32)


def given(n_context: int = 2, n: int = 3, n_blocks: int = 3) -> Chain:
    nets = [WithContext(mlp(n, 2 * n), n_context, 2 * n) for _ in range(n_blocks)]
    return Chain(*(AffineCoupling(net, target(i), takes_context=True) for i, net in enumerate(nets)))


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("method", METHODS)
def test_a_context_that_is_computed(method: str, memory: str) -> None:
    """Its gradient goes on into the network that made it."""

    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": nn.Linear(5, 2), "chain": given()})

    def run(model: Any) -> list[Tensor]:
        z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        source = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
        found = run_method(model["chain"], method, z, torch.tanh(model["encoder"](source)))
        return [*found, source.grad]

    against_store(build, run, memory)


class Rich(nn.Module):
    """Takes whatever there is in a context that is a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.embed = mlp(), nn.Embedding(5, 3)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        scale, rest = context["scale"], context["rest"]
        shift = torch.tanh(rest[0]) if rest[1] == "tanh" else rest[0]
        h = self.net(x) * scale + shift + self.embed(context["labels"])
        return h if context["mask"] is None else h * context["mask"]


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("method", METHODS)
def test_a_context_of_dicts_tuples_and_other_things(method: str, memory: str) -> None:
    def build() -> Chain:
        return Chain(*(AdditiveCoupling(Rich(), target(i), takes_context=True) for i in range(3)))

    def run(chain: Chain) -> list[Tensor]:
        scale, shift = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        labels, z = torch.tensor([0, 4, 4, 1]), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        context = {"scale": scale, "rest": (shift, "tanh", 3), "labels": labels, "mask": None}
        found = run_method(chain, method, z, context)
        return [*found, scale.grad, shift.grad]

    against_store(build, run, memory)


class Named(NamedTuple):
    value: Tensor
    power: int


class OfNamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.net(x) * context.value**context.power


def test_a_context_that_is_a_named_tuple() -> None:
    def run(chain: Chain) -> list[Tensor]:
        value = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        return [*run_method(chain, "forward", x, Named(value, 2)), value.grad]

    against_store(lambda: Chain(AdditiveCoupling(OfNamed(), takes_context=True)), run, "reconstruct")


@dataclass
class Opaque:
    value: Tensor
    power: int = 2


@pytest.mark.parametrize("memory", SAVING)
def test_a_gradient_that_would_be_lost_in_an_opaque_context_is_refused(memory: Any) -> None:
    chain = Chain(AdditiveCoupling(OfNamed(), takes_context=True), memory=memory)
    with pytest.raises(ConfigError, match="uses a tensor that would get no gradient"):
        chain(torch.randn(4, 6), Opaque(torch.randn(4, 3, requires_grad=True))).sum().backward()
    chain.zero_grad()
    chain(torch.randn(4, 6), Opaque(torch.randn(4, 3))).sum().backward()
    assert gradients(chain)


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("method", METHODS)
def test_each_member_its_own_context(method: str, memory: str) -> None:
    def build() -> Chain:
        context = [AffineCoupling(WithContext(mlp(3, 6), 2, 6), target(i), takes_context=True) for i in range(2)]
        return Chain(context[0], Permute.reverse(6), AdditiveCoupling(mlp()), context[1])

    def run(chain: Chain) -> list[Tensor]:
        first, last = (torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
        z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        found = run_method(chain, method, z, Each(first.sin(), None, None, last))
        return [*found, first.grad, last.grad]

    against_store(build, run, memory)


@pytest.mark.parametrize("memory", SAVING)
def test_only_the_context_needs_a_gradient(memory: str) -> None:
    """Weights and input are frozen: the conditioning network is trained alone."""

    def run(chain: Chain) -> list[Tensor]:
        chain.requires_grad_(False)
        context = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        y, logdet = chain.forward_with_logdet(torch.randn(4, 6, dtype=torch.float64), context)
        (y.square().sum() - logdet.sum()).backward()
        return [y, context.grad]

    against_store(given, run, memory)


def test_only_the_contexts_of_each_need_a_gradient() -> None:
    def run(chain: Chain) -> list[Tensor]:
        chain.requires_grad_(False)
        context = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        y = chain(torch.randn(4, 6, dtype=torch.float64), Each(context, context, context * 2))
        y.square().sum().backward()
        return [y, context.grad]

    against_store(given, run, "reconstruct")


@pytest.mark.parametrize("memory", SAVING)
def test_a_parameter_that_is_its_own_members_context(memory: str) -> None:
    """Two ways to one leaf: both gradients count."""

    def run(chain: Any) -> list[Tensor]:
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        return run_method(chain, "forward", x, chain[0].network.of_context.weight[:4, :2])

    against_store(given, run, memory)


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("wanted", ["state", "logdet", "one stream"])
def test_part_of_the_result_is_used(wanted: str, memory: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        x = tuple(torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        y, logdet = chain.forward_with_logdet(x)
        {"state": y[0] * y[1], "logdet": logdet, "one stream": y[1]}[wanted].sum().backward()
        return [*y, logdet, *(t.grad for t in x if t.grad is not None)]

    against_store(affine, run, memory)


@pytest.mark.parametrize("memory", SAVING)
def test_second_derivatives_of_a_likelihood(memory: str) -> None:
    """The score is a derivative by itself: score matching differentiates it again."""

    def run(chain: Chain) -> list[Tensor]:
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        context = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        z, logdet = chain.forward_with_logdet(x, context)
        (score,) = torch.autograd.grad((logdet - z.square().sum(1) / 2).sum(), x, create_graph=True)
        score.square().sum().backward()
        return [score, x.grad, context.grad]

    against_store(given, run, memory)


@pytest.mark.parametrize("memory", SAVING)
def test_second_derivative_of_a_log_determinant_alone_is_right_or_refused(memory: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        _, logdet = chain.forward_with_logdet(x)
        (grad,) = torch.autograd.grad(logdet.sum(), x, create_graph=True)
        grad.square().sum().backward()
        return [grad, x.grad]

    assert_right_or_refused(lambda: against_store(affine, run, memory), "memory = 'store'")


# --- members of users' own ------------------------------------------------------------------------------------------


class Scale(Bijection):
    """A user's bijection that knows nothing of reconstruction; on whole tensors."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.randn(n) / 4)

    def _forward(self, x: Tensor, context: None) -> Tensor:
        return x * self.log_scale.exp()

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        return y * (-self.log_scale).exp()

    def _forward_with_logdet(self, x: Tensor, context: None) -> tuple[Tensor, Tensor]:
        return self._forward(x, context), self.log_scale.sum().expand(len(x))

    def _inverse_with_logdet(self, y: Tensor, context: None) -> tuple[Tensor, Tensor]:
        return self._inverse(y, context), -self.log_scale.sum().expand(len(y))


class Momentum(Coupling):
    """x2' = g x2 + F(x1) with a learned g: neither additive nor affine by the book."""

    def __init__(self, network: nn.Module, target: Any) -> None:
        super().__init__(network, target)
        self.raw = nn.Parameter(torch.tensor(0.3))

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(self.raw) * target + h

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        return (target - h) / torch.sigmoid(self.raw)

    def _log_derivative(self, target: Tensor, h: Tensor) -> Tensor:
        return nn.functional.logsigmoid(self.raw).expand_as(target)


class Sinh(Coupling):
    """A change that is not linear in the target: its log-determinant depends on where it is taken."""

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        return torch.sinh(target + h)

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        return torch.asinh(target) - h

    def _log_derivative(self, target: Tensor, h: Tensor) -> Tensor:
        return torch.log(torch.cosh(target + h))


class Rotation(VolumePreserving):
    """Three streams of unlike sizes: (a, b, c) -> (a, b + F(a), c + G(a, b'))."""

    split_in = split_out = Split((1, 2, 3))

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = mlp(1, 2), mlp(3, 3)

    def _forward(self, x: tuple[Tensor, ...], context: None) -> tuple[Tensor, ...]:
        a, b, c = x
        b = b + self.f(a)
        return a, b, c + self.g(torch.cat([a, b], 1))

    def _inverse(self, y: tuple[Tensor, ...], context: None) -> tuple[Tensor, ...]:
        a, b, c = y
        return a, b - self.f(a), c - self.g(torch.cat([a, b], 1))


class HasChainInside(nn.Module):
    """A network that is itself a chain that saves memory."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Chain(AdditiveCoupling(mlp(1, 2)), AdditiveCoupling(mlp(2, 1), "first"), memory="reconstruct")

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.chain(x))


SHARED = "one network in all couplings"


def shared() -> Chain:
    net = mlp()
    return Chain(*(AdditiveCoupling(net, target(i)) for i in range(4)))


def shared_across() -> Chain:
    """A weight that two different networks have in common, and a member that comes twice."""
    first, second = mlp(), mlp()
    second[0].weight = first[0].weight
    once = AffineCoupling(mlp(3, 6))
    return Chain(AdditiveCoupling(first), once, AdditiveCoupling(second, "first"), once)


def pads() -> Chain:
    return Chain(InjectivePad(2, 1), Squeeze(2), *_convolutional(12), Permute.reverse(12), *_convolutional(12))


def _convolutional(n: int) -> list[Bijection]:
    return [AdditiveCoupling(nn.Conv2d(n // 2, n // 2, 3, padding=1), target(i)) for i in range(2)]


VECTORS: dict[str, Callable[[], Chain]] = {
    "user's own": lambda: Chain(Scale(), AffineCoupling(mlp(3, 6)), Scale(), Inverse(Scale())),
    "momentum": lambda: Chain(*(Momentum(mlp(), target(i)) for i in range(4))),
    "not linear": lambda: Chain(Sinh(mlp(), "first"), Scale(), Inverse(Sinh(mlp()))),
    "three streams": lambda: Chain(Rotation(), Permute.reverse(6), Rotation(), Scale(), Inverse(Rotation())),
    "three streams in a row": lambda: Chain(Rotation(), Rotation(), Inverse(Rotation())),
    "chain inside a network": lambda: Chain(*(AdditiveCoupling(HasChainInside(), target(i)) for i in range(3))),
    SHARED: shared,
    "shared weights": shared_across,
    "nested": lambda: Chain(additive(2), Chain(affine(2), Chain(), Scale()), Inverse(Chain(affine(2), Scale()))),
    "uneven": lambda: Chain(
        AffineCoupling(mlp(5, 2), sizes=(5, 1)), AdditiveCoupling(mlp(2, 4), sizes=(2, 4)), AffineCoupling(mlp(3, 6))
    ),
    "inverses": lambda: Chain(Inverse(affine(2)), affine(1), Inverse(Inverse(affine(2)))),
    "i-RevNet blocks": lambda: Chain(*(IRevNetBlock(mlp()) for _ in range(3))),
    "one member": lambda: Chain(Scale()),
    "spread over two": lambda: Chain(affine(2), affine(2)),
}


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", VECTORS)
def test_members_of_all_kinds(name: str, method: str, memory: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        return run_method(chain, method, torch.randn(4, 6, dtype=torch.float64, requires_grad=True))

    result = against_store(VECTORS[name], run, memory)
    assert all(grad is not None for grad in result.grads.values())


@pytest.mark.parametrize("name", ["user's own", "momentum", "not linear", "three streams", SHARED, "nested"])
def test_second_derivatives_of_all_kinds(name: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        y, logdet = chain.forward_with_logdet(x)
        (grad,) = torch.autograd.grad(y.sin().sum() + (logdet * y[:, 0]).sum(), x, create_graph=True)
        grad.square().sum().backward()
        return [grad, x.grad]

    against_store(VECTORS[name], run, "reconstruct")


@pytest.mark.parametrize("memory", SAVING)
def test_padded_and_squeezed(memory: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        return run_method(chain, "forward", torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True))

    against_store(pads, run, memory)


def test_padding_in_float32_is_no_false_alarm() -> None:
    """Channels that are exactly zero come back as rounding errors: nothing to raise about."""

    def run(chain: Chain) -> list[Tensor]:
        return run_method(chain, "forward", torch.randn(3, 2, 4, 4, requires_grad=True))

    against_store(pads, run, "reconstruct", 1e-4, torch.float32)


def test_a_stream_of_zeros_is_no_false_alarm() -> None:
    """As at the start of training, where the last layers of blocks are zero."""

    def run(chain: Chain) -> list[Tensor]:
        x = torch.cat([torch.zeros(4, 3), torch.randn(4, 3)], 1).requires_grad_()
        return run_method(chain, "forward", x)

    against_store(lambda: additive(6), run, "reconstruct", 1e-4, torch.float32)


class Iterated(Scale):
    """Says that its inverse is no formula, and counts how often it is asked for."""

    has_closed_inverse = False
    calls = 0

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        type(self).calls += 1
        return super()._inverse(y, context)


def test_a_member_without_exact_inverse_is_checkpointed_and_says_so_once() -> None:
    class Fresh(Iterated):
        pass

    def build() -> Chain:
        return Chain(affine(2), Fresh(), affine(1), Fresh(), affine(2))

    def run(chain: Chain) -> list[Tensor]:
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        found = run_method(chain, "forward_with_logdet", x)
        return [*found, *torch.autograd.grad(chain(x).sum(), list(chain[0].parameters()))]

    with pytest.warns(UserWarning, match="Fresh has no exact inverse") as record:
        against_store(build, run, "reconstruct")
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        against_store(build, run, "reconstruct")
    assert Fresh.calls == 0, "the input was kept, not solved for"


@pytest.mark.parametrize("memory", SAVING)
def test_several_chains_in_one_graph(memory: str) -> None:
    def build() -> nn.ModuleList:
        return nn.ModuleList([additive(3), affine(3), nn.Linear(6, 6)])

    def run(parts: Any) -> list[Tensor]:
        first, second, linear = parts
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        h = first(x)
        z, logdet = second.forward_with_logdet(torch.tanh(linear(h)) + h)
        back = first.inverse(z) + second.inverse(x)
        (back.square().sum() - (logdet * h[:, 0]).sum() + first(z).sum()).backward()
        return [h, z, logdet, back, x.grad]

    against_store(build, run, memory)


@pytest.mark.parametrize("memory", SAVING)
def test_there_and_back_in_one_graph(memory: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        back = chain.inverse(chain(x).clamp(-0.5, 0.5))
        back.square().sum().backward()
        return [back, x.grad]

    against_store(affine, run, memory)


def test_dim_2() -> None:
    def build() -> Chain:
        couplings = [AffineCoupling(mlp(3, 6), target(i), dim=2) for i in range(3)]
        return Chain(*couplings, AdditiveCoupling(nn.Conv1d(2, 2, 1), dim=1))

    def run(chain: Chain) -> list[Tensor]:
        return run_method(chain, "forward_with_logdet", torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True))

    against_store(build, run, "reconstruct")


def test_memory_can_be_set_later_and_the_outermost_counts() -> None:
    chain = Chain(additive(2), additive(2, memory="reconstruct"))
    x = torch.randn(4, 6)
    assert "_NodeBackward" in names_of_graph(chain(x)), "the inner chain saves by itself"
    chain[1].memory = "store"
    assert "_NodeBackward" not in names_of_graph(chain(x))
    chain.memory = "reconstruct"
    assert names_of_graph(chain(x)).isdisjoint({"AddmmBackward0", "TanhBackward0"})


@pytest.mark.usefixtures("unchecked")
def test_modes_have_names() -> None:
    with pytest.raises(ConfigError, match="bad memory"):
        additive(2).memory = "recompute"  # type: ignore[assignment]


def test_a_slice_keeps_the_mode() -> None:
    chain = additive(4, memory="reconstruct", check_every=7)
    assert (chain[1:3].memory, chain[1:3].check_every) == ("reconstruct", 7)


def test_the_state_dict_is_the_same_in_all_modes() -> None:
    states = []
    for memory in ("store", *SAVING):
        torch.manual_seed(0)
        chain = additive(3, memory=memory)
        chain(torch.randn(4, 6)).sum().backward()
        states.append(chain.state_dict())
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    additive(3, memory="reconstruct").load_state_dict(states[0])


def test_a_copy_is_a_chain_of_its_own() -> None:
    chain = additive(3, memory="reconstruct", exact=True)
    chain(torch.randn(4, 6)).sum().backward()
    again = copy.deepcopy(chain)
    assert (again.memory, again.lattice, again.check_every) == (chain.memory, chain.lattice, chain.check_every)
    x = torch.randn(4, 6)
    chain.zero_grad()
    again.zero_grad()
    chain(x).square().sum().backward()
    assert not gradients(again)
    again(x).square().sum().backward()
    for a, b in zip(gradients(again), gradients(chain), strict=True):
        assert torch.equal(a, b)


def test_pickling(tmp_path: Any) -> None:
    chain = additive(3, memory="reconstruct", exact=14)
    chain(torch.randn(4, 6)).sum().backward()
    torch.save(chain, tmp_path / "chain.pt")
    again = torch.load(tmp_path / "chain.pt", weights_only=False)
    x = torch.randn(4, 6)
    assert (again.memory, again.lattice) == ("reconstruct", chain.lattice)
    assert torch.equal(again(x), chain(x))


def test_an_empty_batch() -> None:
    def run(chain: Chain) -> list[Tensor]:
        return run_method(chain, "forward_with_logdet", torch.randn(0, 6, dtype=torch.float64, requires_grad=True))

    against_store(affine, run, "reconstruct")
