"""The second run of a network is the first one again, and leaves no trace, not even when it fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from invertible import Chain
from invertible.bijection import RUNNER
from invertible.errors import ConfigError, NonFiniteError, RangeError
from invertible.layers import AdditiveCoupling
from reversible._nets import (
    SAVING,
    additive,
    affine,
    against_store,
    assert_right_or_refused,
    conv_net,
    gradients,
    mlp,
    target,
)


def images() -> Tensor:
    return torch.randn(4, 8, 3, 3, dtype=torch.float64, requires_grad=True)


def vectors(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, dtype=torch.float64, requires_grad=True)


def chain_of(net: Callable[[], nn.Module], n_blocks: int = 3) -> Callable[[], Chain]:
    return lambda: additive(n_blocks, net)


def two_steps(chain: Chain, make_x: Callable[[], Tensor] = vectors) -> list[Tensor]:
    """Forward twice, then backward twice: what is replayed must belong to its own forward pass."""
    x = make_x()
    first, second = chain(x), chain(2 * x)
    first.square().sum().backward()
    second.sin().sum().backward()
    return [first, second, x.grad]


class StochasticDepth(nn.Module):
    """Drops a whole branch, per image, by `torch.rand`; and adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def forward(self, x: Tensor) -> Tensor:
        keep = (torch.rand(len(x), 1, 1, 1) < 0.7).to(x.dtype) / 0.7
        return self.net(x) * keep + 0.1 * torch.randn_like(x)


class Leaves(nn.Module):
    """Sometimes does not run its network at all: then its weights get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if torch.rand(()) < 0.5 else torch.zeros_like(x)


class Averaging(nn.Module):
    """Uses a buffer that every training forward changes, in place or by a new tensor."""

    average: Tensor

    def __init__(self, in_place: bool, updates: bool = True) -> None:
        super().__init__()
        self.net, self.in_place, self.updates = mlp(), in_place, updates
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x) * (1 + self.average)
        if self.training and self.updates:
            new = 0.9 * self.average + 0.1 * h.detach().mean(0)
            if self.in_place:
                self.average.copy_(new)
            else:
                self.average = new
        return h


class Walks(nn.Module):
    """Walks through the layers of an `nn.Sequential` one by one, and keeps what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return sum(features, torch.zeros_like(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x[..., None])[0])[..., 0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.up, self.down = (
            nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True), nn.Linear(1, 4), nn.Linear(4, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.layer(self.up(x[..., None])))[..., 0]


class Detaching(nn.Module):
    """Some of its weights get no gradient, some of its arithmetic is not differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.idle = mlp(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.net[0].weight.norm()
        return self.net(x) * scale + self.net(x.detach())


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 3))


def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 3))


def old_spectral() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 3))


def norms(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Linear(8, 3))


def norm_twice() -> nn.Module:
    norm = nn.BatchNorm1d(3)
    return nn.Sequential(norm, nn.Linear(3, 3), norm, nn.ReLU(), norm)


class OwnNorm(nn.BatchNorm1d):
    """A subclass, which the library does not know."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a branch that may be left out": Leaves,
    "buffer changed in place": lambda: Averaging(True),
    "buffer replaced": lambda: Averaging(False),
    "layers of a Sequential one by one": Walks,
    "recurrent": Recurrent,
    "transformer": Attention,
    "detached and idle parts": Detaching,
    "spectral norm": spectral,
    "weight norm": weight_norm,
    "old spectral norm": old_spectral,
    "batch norm": norms(),
    "batch norm, cumulative": norms(momentum=None),
    "batch norm, no weights": norms(affine=False),
    "batch norm, no averages": norms(track_running_stats=False),
    "batch norm, twice": norm_twice,
    "batch norm, subclass": lambda: nn.Sequential(OwnNorm(3), nn.ReLU(), nn.Linear(3, 3)),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, affine=True, track_running_stats=True), nn.Flatten(), mlp()
    ),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(3), mlp()),
    "ReLU in place": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
    "ReLU first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.ReLU(), nn.Linear(4, 3)),
    "one ReLU everywhere": lambda: _one_relu(),
    "alpha dropout": lambda: nn.Sequential(nn.Linear(3, 4), nn.AlphaDropout(0.3), nn.Linear(4, 3)),
}  # fmt: skip


def _one_relu() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3))


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_kinds(name: str, memory: str) -> None:
    against_store(chain_of(NETWORKS[name]), two_steps, memory)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_kinds_in_eval_mode(name: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        with torch.no_grad():
            chain(vectors())
        return two_steps(chain.eval())

    against_store(chain_of(NETWORKS[name]), run, "reconstruct")


@pytest.mark.parametrize("name", ["batch norm", "batch norm, twice", "spectral norm", "buffer changed in place"])
def test_second_derivatives_through_what_changes(name: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        x = vectors()
        (grad,) = torch.autograd.grad(chain(x).sin().sum(), x, create_graph=True)
        grad.square().sum().backward()
        return [grad, x.grad]

    against_store(chain_of(NETWORKS[name]), run, "reconstruct", 1e-8)


@pytest.mark.parametrize("memory", SAVING)
def test_stochastic_depth_and_noise(memory: str) -> None:
    against_store(chain_of(StochasticDepth), lambda chain: two_steps(chain, images), memory)


@pytest.mark.parametrize("memory", SAVING)
def test_a_buffer_that_begins_to_change_later(memory: str) -> None:
    """As averages after a warm-up do."""

    def run(chain: Chain) -> list[Tensor]:
        found = []
        for i in range(4):
            for member in chain:
                member.network.updates = i > 1  # type: ignore[union-attr]
            x = vectors()
            y = chain(x)
            y.square().sum().backward()
            found += [y, x.grad]
        return found

    def build() -> Chain:
        return Chain(*(AdditiveCoupling(Averaging(True, updates=False), target(i)) for i in range(3)))

    against_store(build, run, memory)


def test_a_hook_on_all_modules_sees_what_they_gave() -> None:
    """ReLUs overwrite the output of the layer before only where nobody holds it."""

    def run(chain: Chain) -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(module, nn.Linear):
                seen.append(out.detach())

        handle = nn.modules.module.register_module_forward_hook(keep)
        try:
            y = chain(vectors())
        finally:
            handle.remove()
        return [y, *seen]

    build = chain_of(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)))
    against_store(build, run, "reconstruct")


# --- failures leave no trace ----------------------------------------------------------------------------------------


class Fails(nn.Module):
    """Fails when told to, in the midst of things: after random numbers, BatchNorm and a buffer of its own."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5))
        self.last, self.fails = nn.Linear(4, 3), ""
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        h = self.first(x)
        if self.fails == ("backward" if torch.is_grad_enabled() else "forward"):
            raise OSError("the disk is on fire")
        return self.last(h)


def everything(chain: Chain) -> dict[str, Any]:
    """All that a failure might leave changed."""
    state: dict[str, Any] = {f"tensor {k}": v.clone() for k, v in chain.state_dict().items()}
    state |= {f"identity {k}": id(v) for k, v in chain.named_parameters()}
    state |= {f"identity {k}": id(v) for k, v in chain.named_buffers()}
    state |= {f"version {k}": v._version for k, v in chain.named_parameters()}
    for name, module in chain.named_modules():
        state[f"attributes {name}"] = sorted(vars(module))
        state[f"inplace {name}"] = getattr(module, "inplace", None)
        state[f"training {name}"] = module.training
    state |= {f"gradient {k}": None if v.grad is None else v.grad.clone() for k, v in chain.named_parameters()}
    return state | {"rng": torch.get_rng_state(), "runner": RUNNER.get(), "grad mode": torch.is_grad_enabled()}


def assert_untouched(before: dict[str, Any], after: dict[str, Any], but: str = "nothing") -> None:
    assert before.keys() == after.keys()
    same = {k: torch.equal(v, after[k]) if isinstance(v, Tensor) else v == after[k] for k, v in before.items()}
    assert [k for k, is_same in same.items() if not is_same and but not in k] == []


def failing(memory: Any, exact: bool = False) -> Chain:
    return Chain(*(AdditiveCoupling(Fails(), target(i)) for i in range(4)), memory=memory, exact=exact)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("memory", SAVING)
def test_a_failure_in_the_backward_pass(memory: Any, create_graph: bool, exact: bool) -> None:
    chain = failing(memory, exact)
    x = torch.randn(4, 6, requires_grad=True)
    loss = chain(x).square().sum()
    chain[1].network.fails = "backward"
    before = everything(chain)
    with pytest.raises(OSError, match="on fire"):
        torch.autograd.grad(loss, [x, *chain.parameters()], create_graph=create_graph)
    assert_untouched(before, everything(chain))
    chain[1].network.fails = ""
    with_failure = _step_after(chain)
    chain = failing(memory, exact)
    chain.load_state_dict({k.removeprefix("tensor "): v for k, v in before.items() if k.startswith("tensor ")})
    without = _step_after(chain)
    for a, b in zip(with_failure, without, strict=True):
        assert torch.equal(a, b), "the next step works as ever"


def _step_after(chain: Chain) -> list[Tensor]:
    chain.zero_grad()
    torch.manual_seed(7)
    x = torch.randn(4, 6)
    y = chain(x)
    y.square().sum().backward()
    return [y.detach(), *gradients(chain), *chain.buffers()]


@pytest.mark.parametrize("memory", SAVING)
def test_a_failure_in_the_forward_pass(memory: Any) -> None:
    def state_after(mode: Any) -> tuple[dict[str, Any], list[Tensor]]:
        torch.manual_seed(0)
        chain = failing(mode)
        chain[2].network.fails = "forward"
        if mode == "store":  # autograd is on in its only run
            chain[2].network.fails = "backward"
        with pytest.raises(OSError, match="on fire"):
            chain(torch.randn(4, 6))
        state = everything(chain)
        chain[2].network.fails = ""
        return state, _step_after(chain)

    (expected, plain), (actual, saved) = state_after("store"), state_after(memory)
    assert_untouched(expected, actual, but="identity")
    for a, b in zip(saved, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_value_out_of_range_leaves_no_trace() -> None:
    chain = failing("reconstruct", exact=True).eval()
    before = everything(chain)
    with pytest.raises(RangeError):
        chain(torch.full((4, 6), 1e6))
    assert_untouched(before, everything(chain))
    with torch.no_grad():
        chain[1].network.last.bias.fill_(1e3)
    with pytest.raises(RangeError):
        chain(torch.randn(4, 6))
    with torch.no_grad():
        chain[1].network.last.bias.fill_(0.0)
    x = torch.randn(4, 6)
    assert torch.equal(chain.inverse(chain(x)), chain.lattice.quantise(x))  # type: ignore[union-attr]


# --- what cannot be right raises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", SAVING)
def test_weights_changed_before_the_backward_pass(memory: Any) -> None:
    chain = additive(3, memory=memory)
    y = chain(torch.randn(4, 6))
    with torch.no_grad():
        chain[1].network[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_context_changed_before_the_backward_pass() -> None:
    net = nn.Bilinear(2, 3, 2)
    chain = Chain(AdditiveCoupling(net, takes_context=True), memory="reconstruct")
    context = torch.randn(4, 3)
    y = chain(torch.randn(4, 4), context)
    context.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("memory", SAVING)
def test_a_second_backward_without_retain_graph(memory: Any) -> None:
    y = additive(3, memory=memory)(torch.randn(4, 6, requires_grad=True)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


class ClosesOver(nn.Module):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.held, self.net = [tensor], mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.held[0]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("is_leaf", [False, True])
@pytest.mark.parametrize("memory", SAVING)
def test_a_network_that_closes_over_a_tensor(memory: Any, is_leaf: bool, create_graph: bool) -> None:
    leaf = torch.ones(3, requires_grad=True)
    chain = Chain(AdditiveCoupling(ClosesOver(leaf if is_leaf else leaf * 2)), memory=memory)
    y = chain(torch.randn(4, 6, requires_grad=True)).square().sum()
    with pytest.raises(ConfigError, match=r"uses a tensor that would get no gradient.*parameter"):
        torch.autograd.grad(y, list(chain.parameters()), create_graph=create_graph)
    free = Chain(AdditiveCoupling(ClosesOver(torch.ones(3))), memory=memory)
    free(torch.randn(4, 6)).sum().backward()


@pytest.mark.parametrize("i", [0, 1])
def test_an_activation_changed_by_a_hook_is_right_or_refused(i: int) -> None:
    def run(chain: Chain) -> list[Tensor]:
        def change(module: nn.Module, args: Any, out: tuple[Tensor, ...]) -> None:
            with torch.no_grad():
                out[i].add_(1)

        chain[1].register_forward_hook(change)
        x = vectors()
        y = chain(x)
        y.square().sum().backward()
        return [y, x.grad]

    assert_right_or_refused(lambda: against_store(lambda: additive(3), run, "reconstruct"), "inplace")


JIT = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch.func's own import warns


# --- torch.func, threads, modes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", SAVING)
def test_functional_call(memory: str) -> None:
    def run(chain: Chain) -> list[Tensor]:
        weights = {name: (p.detach() * 2).requires_grad_() for name, p in chain.named_parameters()}
        x = vectors()
        y = torch.func.functional_call(chain, {k: w.sin() for k, w in weights.items()}, (x,))
        y.square().sum().backward()
        return [y, x.grad, *(w.grad for w in weights.values())]

    result = against_store(lambda: affine(3), run, memory)
    assert all(grad is None for grad in result.grads.values())


@JIT
@pytest.mark.parametrize("memory", SAVING)
def test_torch_func(memory: Any) -> None:
    def run(chain: Chain) -> list[Tensor]:
        weights = {name: p.detach() for name, p in chain.named_parameters()}

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(chain, weights, (x[None],)).square().sum()

        x = torch.randn(4, 6, dtype=torch.float64)
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
        y, tangent = torch.func.jvp(chain, (x,), (torch.ones_like(x),))
        jacobian = torch.func.jacrev(chain)(x[:1])
        rows = torch.func.vmap(lambda row: chain(row[None])[0])(x)
        hessian = torch.func.hessian(lambda v: chain(v[None]).square().sum())(x[0])
        return [*each.values(), y, tangent, jacobian, rows, hessian]

    against_store(lambda: additive(3), run, memory)


@JIT
def test_forward_mode_by_dual_numbers() -> None:
    def run(chain: Chain) -> list[Tensor]:
        with torch.autograd.forward_ad.dual_level():
            x = torch.randn(4, 6, dtype=torch.float64)
            y = chain(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            return [*torch.autograd.forward_ad.unpack_dual(y)]

    against_store(lambda: additive(3), run, "reconstruct")


def test_batched_gradients() -> None:
    """`is_grads_batched`, which vectorised Jacobians use."""

    def run(chain: Chain) -> list[Tensor]:
        x = vectors(2)
        y = chain(x).sum(0)
        return list(torch.autograd.grad(y, x, torch.eye(6, dtype=torch.float64), is_grads_batched=True))

    assert_right_or_refused(lambda: against_store(lambda: additive(3), run, "reconstruct"), "vmap")


def in_threads(functions: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_two_threads_each_with_its_chain() -> None:
    def grads(seed: int, found: dict[int, list[Tensor]]) -> None:
        with threading.Lock():
            chain = chains[seed]
        for _ in range(20):
            chain.zero_grad()
            chain(inputs[seed]).square().sum().backward()
        found[seed] = gradients(chain)

    chains = {seed: additive(4, exact=bool(seed)) for seed in (0, 1)}
    inputs = {seed: torch.randn(4, 6) for seed in (0, 1)}
    alone: dict[int, list[Tensor]] = {}
    together: dict[int, list[Tensor]] = {}
    for chain in chains.values():
        chain.memory = "reconstruct"
    for seed in (0, 1):
        grads(seed, alone)
    expected = {seed: [g.clone() for g in gs] for seed, gs in alone.items()}
    in_threads([lambda seed=seed: grads(seed, together) for seed in (0, 1)])
    for seed in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(together[seed], expected[seed], strict=True))


def test_two_threads_share_one_chain() -> None:
    """As plain autograd allows: each thread asks for gradients of its own loss."""
    chain = additive(6, lambda: mlp(width=200), memory="reconstruct").double()
    inputs = [vectors(64).detach() for _ in range(2)]

    parameters = list(chain.parameters())  # before: in a backward pass the module holds stand-ins

    def grads(x: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(chain(x).square().sum(), parameters))

    expected = [grads(x) for x in inputs]

    def check(i: int) -> None:
        for _ in range(40):
            for a, b in zip(grads(inputs[i]), expected[i], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    in_threads([lambda: check(0), lambda: check(1)])


def test_training_code_under_no_grad_and_inference_mode() -> None:
    chain = additive(3, conv_net, memory="reconstruct")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = chain(torch.randn(4, 8, 3, 3))
            assert not y.requires_grad
            with torch.enable_grad():
                if mode is torch.no_grad:
                    chain(torch.randn(4, 8, 3, 3)).sum().backward()
    assert [int(m.num_batches_tracked) for m in chain.modules() if isinstance(m, nn.BatchNorm2d)] == [3] * 6  # type: ignore[arg-type]


def test_input_made_in_inference_mode() -> None:
    chain = additive(3)
    with torch.inference_mode():
        x = torch.randn(4, 6)
    expected = chain(x.clone()).detach()
    chain.memory = "reconstruct"
    y = chain(x.clone())
    y.sum().backward()
    assert torch.equal(y.detach(), expected)


def test_nothing_is_random_about_the_check() -> None:
    """Checked and unchecked steps draw the same numbers and give the same gradients."""

    def grads(check_every: int | None) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(0)
        chain = additive(3, conv_net, memory="reconstruct", check_every=check_every)
        chain(torch.randn(4, 8, 3, 3)).square().sum().backward()
        return gradients(chain), torch.get_rng_state()

    (a, rng_a), (b, rng_b) = grads(1), grads(None)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(rng_a, rng_b)


@pytest.mark.parametrize("memory", SAVING)
def test_a_failed_backward_pass_can_be_repeated(memory: Any) -> None:
    """Where it stopped is forgotten: the second pass begins at the end again."""

    def run(chain: Chain) -> list[Tensor]:
        x = vectors()
        loss = chain(x).square().sum()
        for i in (2, 0):
            handle = chain[i].network[0].weight.register_hook(_burns)  # type: ignore[union-attr]
            with pytest.raises(OSError, match="on fire"):
                loss.backward(retain_graph=True)
            handle.remove()
            chain.zero_grad()
            x.grad = None
        loss.backward()
        return [loss, x.grad]

    against_store(lambda: additive(4), run, memory)


def _burns(grad: Tensor) -> None:
    raise OSError("the disk is on fire")


# --- what a newcomer found ---


@pytest.mark.parametrize("batch", [1, 2])
def test_second_derivatives_of_single_examples(batch: int) -> None:
    chain, x = additive(3).double(), vectors(batch).detach()
    found = {}
    for memory in ("store", "reconstruct"):
        chain.memory = memory  # type: ignore[assignment]
        found[memory] = torch.autograd.functional.hessian(lambda z: chain(z).pow(2).sum(), x)
    torch.testing.assert_close(found["reconstruct"], found["store"])


def test_an_outside_tensor_that_needs_a_gradient_later_is_noticed() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outside = [torch.ones(3, dtype=torch.float64)]
            self.linear = nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.outside[0]

    network = Outside()
    chain = Chain(AdditiveCoupling(network), memory="reconstruct")
    chain(vectors(2)).sum().backward()
    network.outside[0].requires_grad_()
    with pytest.raises(ConfigError, match="no gradient"):
        chain(vectors(2)).sum().backward()


def test_nan_of_the_forward_pass_is_not_blamed_on_the_reconstruction() -> None:
    chain = additive(2, memory="reconstruct")
    with pytest.raises(NonFiniteError, match="was not finite"):
        chain(torch.full((2, 6), float("nan"))).sum().backward()
